//! Is it alive, is it ready: heartbeats of workers and latches of roles.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// One thing that must be so before a role is ready. Made by [`Scope::readiness`](crate::Scope::readiness), at first unset.
/// A latch that is dropped no longer counts: what it spoke of is gone.
#[derive(Debug)]
pub struct Latch {
    is_set: Arc<AtomicBool>,
}

impl Latch {
    /// Ready, or (again) not.
    pub fn set(&self, ready: bool) {
        self.is_set.store(ready, Ordering::Relaxed);
    }
}

/// When one worker was last heard of.
#[derive(Debug)]
pub(crate) struct Pulse {
    name: String,
    /// By the coarse monotonic clock; 0: it has never beaten, and is not watched.
    last_beat_ns: AtomicU64,
}

impl Pulse {
    pub(crate) fn new(name: String) -> Pulse {
        Pulse { name, last_beat_ns: AtomicU64::new(0) }
    }

    /// Notes that the worker is alive. Costs a read of the coarse clock (about 5 ns) and a store.
    pub(crate) fn beat(&self) {
        self.last_beat_ns.store(coarse_now_ns(), Ordering::Relaxed);
    }

    fn silence(&self, now_ns: u64) -> Option<Duration> {
        match self.last_beat_ns.load(Ordering::Relaxed) {
            0 => None,
            last => Some(Duration::from_nanos(now_ns.saturating_sub(last))),
        }
    }
}

/// Where the process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Phase {
    Starting,
    Running,
    Stopping,
}

/// The state that `/healthz` and `/readyz` answer from.
#[derive(Debug)]
pub(crate) struct Health {
    stuck_after: Duration,
    phase: AtomicU8,
    pulses: Mutex<Vec<Arc<Pulse>>>,
    latches: Mutex<Vec<RegisteredLatch>>,
}

#[derive(Debug)]
struct RegisteredLatch {
    service: &'static str,
    what: String,
    is_set: Arc<AtomicBool>,
}

impl Health {
    pub(crate) fn new(stuck_after: Duration) -> Health {
        Health {
            stuck_after,
            phase: AtomicU8::new(Phase::Starting as u8),
            pulses: Mutex::default(),
            latches: Mutex::default(),
        }
    }

    pub(crate) fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    pub(crate) fn watch(&self, pulse: &Arc<Pulse>) {
        lock(&self.pulses).push(pulse.clone());
    }

    pub(crate) fn forget(&self, pulse: &Arc<Pulse>) {
        lock(&self.pulses).retain(|watched| !Arc::ptr_eq(watched, pulse));
    }

    pub(crate) fn latch(&self, service: &'static str, what: String) -> Latch {
        let is_set = Arc::new(AtomicBool::new(false));
        let mut latches = lock(&self.latches);
        latches.retain(RegisteredLatch::is_held);
        latches.push(RegisteredLatch { service, what, is_set: is_set.clone() });
        Latch { is_set }
    }

    /// The workers that have beaten and then fell silent, with the time since, or nothing.
    pub(crate) fn stuck(&self) -> Vec<StuckWorker> {
        let now_ns = coarse_now_ns();
        let stuck_worker = |pulse: &Arc<Pulse>| {
            let silence = pulse.silence(now_ns).filter(|silence| *silence > self.stuck_after)?;
            Some(StuckWorker { name: pulse.name.clone(), silence })
        };
        lock(&self.pulses).iter().filter_map(stuck_worker).collect()
    }

    /// What is missing for the process to be ready, or nothing.
    pub(crate) fn missing(&self) -> Vec<String> {
        match self.phase.load(Ordering::Relaxed) {
            phase if phase == Phase::Stopping as u8 => return vec!["stopping".to_owned()],
            phase if phase == Phase::Starting as u8 => return vec!["starting".to_owned()],
            _ => {}
        }
        let is_missing = |latch: &&RegisteredLatch| latch.is_held() && !latch.is_set.load(Ordering::Relaxed);
        let describe = |latch: &RegisteredLatch| format!("{}: {}", latch.service, latch.what);
        lock(&self.latches).iter().filter(is_missing).map(describe).collect()
    }

    /// Whether this role misses nothing, whatever the others do.
    pub(crate) fn is_ready(&self, service: &str) -> bool {
        let is_missing = |latch: &RegisteredLatch| {
            latch.service == service && latch.is_held() && !latch.is_set.load(Ordering::Relaxed)
        };
        self.phase.load(Ordering::Relaxed) == Phase::Running as u8 && !lock(&self.latches).iter().any(is_missing)
    }
}

impl RegisteredLatch {
    fn is_held(&self) -> bool {
        Arc::strong_count(&self.is_set) > 1
    }
}

/// A worker that has not been heard of for too long.
#[derive(Clone, Debug)]
pub(crate) struct StuckWorker {
    name: String,
    silence: Duration,
}

impl fmt::Display for StuckWorker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: silent for {:.1} s", self.name, self.silence.as_secs_f64())
    }
}

/// CLOCK_MONOTONIC_COARSE in nanoseconds; as fine as the kernel's tick, which is plenty here. Never 0.
fn coarse_now_ns() -> u64 {
    let now = clock_gettime(ClockId::MonotonicCoarse);
    let (seconds, nanoseconds) = (u64::try_from(now.tv_sec).unwrap_or(0), u64::try_from(now.tv_nsec).unwrap_or(0));
    (seconds * 1_000_000_000 + nanoseconds).max(1)
}

/// What the lock protects is valid after every statement, so a panic elsewhere while it was held does no harm.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
