//! Waiting for conditions instead of sleeping.

use std::{
    thread,
    time::{Duration, Instant},
};

/// Interval between checks of a condition.
const INTERVAL: Duration = Duration::from_millis(2);

/// A condition that was not met in time.
#[derive(Debug, thiserror::Error)]
#[error("{what} did not happen within {timeout:?}")]
pub struct TimedOut {
    /// The expected condition.
    pub what: String,
    /// The time limit.
    pub timeout: Duration,
}

/// Checks `condition` every two milliseconds until it holds. `what` completes the sentence "… did
/// not happen".
pub fn wait_for(what: &str, timeout: Duration, mut condition: impl FnMut() -> bool) -> Result<(), TimedOut> {
    wait_for_some(what, timeout, || condition().then_some(()))
}

/// Waits for a condition that yields a value once it holds.
pub fn wait_for_some<T>(
    what: &str,
    timeout: Duration,
    mut condition: impl FnMut() -> Option<T>,
) -> Result<T, TimedOut> {
    let started = Instant::now();
    loop {
        if let Some(value) = condition() {
            return Ok(value);
        }
        if started.elapsed() >= timeout {
            return Err(TimedOut { what: what.to_owned(), timeout });
        }
        thread::sleep(INTERVAL);
    }
}
