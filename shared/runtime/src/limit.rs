//! Log lines that do not come more often than somebody wants to read them.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::health::lock;

/// How often the same thing is logged, at most.
pub const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Lets one line through per interval and counts the others. One for each place that logs:
///
/// ```
/// # use std::time::Instant;
/// # use sekiwake_runtime::RateLimited;
/// let refused = RateLimited::default();
/// if let Some(suppressed) = refused.allow(Instant::now()) {
///     tracing::warn!(suppressed, "a peer was refused");
/// }
/// ```
#[derive(Debug)]
pub struct RateLimited {
    interval: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    last: Option<Instant>,
    suppressed: u64,
}

impl Default for RateLimited {
    fn default() -> RateLimited {
        RateLimited::new(LOG_INTERVAL)
    }
}

impl RateLimited {
    /// At most one line per `interval`.
    pub fn new(interval: Duration) -> RateLimited {
        RateLimited { interval, state: Mutex::default() }
    }

    /// Whether to log now: `Some` with the number of lines that were suppressed since the last one, or `None`.
    pub fn allow(&self, now: Instant) -> Option<u64> {
        let mut state = lock(&self.state);
        let is_due = state.last.is_none_or(|last| now.saturating_duration_since(last) >= self.interval);
        if !is_due {
            state.suppressed += 1;
            return None;
        }
        state.last = Some(now);
        Some(std::mem::take(&mut state.suppressed))
    }
}
