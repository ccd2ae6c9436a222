//! Liveness and readiness: heartbeats of workers and latches of roles.

use std::{
    fmt, fs,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicI32, AtomicU8, AtomicU64, Ordering},
    },
    time::Duration,
};

use rustix::{
    thread::gettid,
    time::{ClockId, clock_gettime},
};

/// A condition of a role's readiness. Made by [`Scope::readiness`](crate::Scope::readiness),
/// initially unset. A dropped latch no longer counts, because its subject no longer exists.
#[derive(Debug)]
pub struct Latch {
    is_set: Arc<AtomicBool>,
}

impl Latch {
    /// Sets or resets the condition.
    pub fn set(&self, ready: bool) {
        self.is_set.store(ready, Ordering::Relaxed);
    }
}

/// The heartbeat of one worker.
#[derive(Debug)]
pub(crate) struct Pulse {
    name: String,
    /// By the coarse monotonic clock. 0 before the first heartbeat: the worker is not watched until
    /// then.
    last_beat_ns: AtomicU64,
    /// The kernel's number of the worker's thread. 0 before it has started.
    thread_id: AtomicI32,
}

impl Pulse {
    pub(crate) fn new(name: String) -> Pulse {
        Pulse { name, last_beat_ns: AtomicU64::new(0), thread_id: AtomicI32::new(0) }
    }

    /// Records that the current thread is the worker's.
    pub(crate) fn begin(&self) {
        self.thread_id.store(gettid().as_raw_pid(), Ordering::Relaxed);
    }

    /// Records a heartbeat. Costs a read of the coarse clock (about 5 ns) and a store.
    pub(crate) fn beat(&self) {
        self.last_beat_ns.store(coarse_now_ns(), Ordering::Relaxed);
    }

    #[cfg(test)]
    pub(crate) fn beat_at(&self, now_ns: u64) {
        self.last_beat_ns.store(now_ns, Ordering::Relaxed);
    }

    fn silence(&self, now_ns: u64) -> Option<Duration> {
        match self.last_beat_ns.load(Ordering::Relaxed) {
            0 => None,
            last => Some(Duration::from_nanos(now_ns.saturating_sub(last))),
        }
    }

    /// Whether the kernel lets the thread wait for a disk or a file server that does not answer. A
    /// restart would not help: the next process would wait for the same disk.
    fn waits_for_disk(&self) -> bool {
        let path = format!("/proc/self/task/{}/stat", self.thread_id.load(Ordering::Relaxed));
        fs::read_to_string(path).is_ok_and(|stat| is_uninterruptible(&stat))
    }
}

/// The phase of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Phase {
    Starting,
    Running,
    Stopping,
}

/// The state behind `/healthz` and `/readyz`.
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

    /// The workers whose last heartbeat is too old.
    pub(crate) fn stuck(&self) -> Vec<StuckWorker> {
        self.collect_stuck(|pulse, silence| StuckWorker { name: pulse.name.clone(), silence })
    }

    /// Whether a worker is stuck for a reason that a restart removes.
    pub(crate) fn is_wedged(&self) -> bool {
        self.collect_stuck(|pulse, _| pulse.waits_for_disk()).contains(&false)
    }

    fn collect_stuck<T>(&self, describe: impl Fn(&Pulse, Duration) -> T) -> Vec<T> {
        let now_ns = coarse_now_ns();
        let stuck = |pulse: &Arc<Pulse>| {
            let silence = pulse.silence(now_ns).filter(|silence| *silence > self.stuck_after)?;
            Some(describe(pulse, silence))
        };
        lock(&self.pulses).iter().filter_map(stuck).collect()
    }

    /// The conditions that are missing before the process is ready.
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

    /// Whether the process is stopping.
    pub(crate) fn is_stopping(&self) -> bool {
        self.phase.load(Ordering::Relaxed) == Phase::Stopping as u8
    }

    /// The name of the phase, in status.
    pub(crate) fn phase_name(&self) -> &'static str {
        match self.phase.load(Ordering::Relaxed) {
            phase if phase == Phase::Starting as u8 => "starting",
            phase if phase == Phase::Stopping as u8 => "stopping",
            _ => "running",
        }
    }

    /// Whether this role is ready, independently of the others.
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

/// A worker whose last heartbeat is too old.
#[derive(Clone, Debug)]
pub(crate) struct StuckWorker {
    name: String,
    silence: Duration,
}

impl StuckWorker {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for StuckWorker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: no heartbeat for {:.1} s", self.name, self.silence.as_secs_f64())
    }
}

/// Whether a line of `/proc/PID/task/TID/stat` has the state D (proc(5), field 3). The name in
/// field 2 may contain spaces and parentheses.
fn is_uninterruptible(stat: &str) -> bool {
    stat.rsplit_once(") ").is_some_and(|(_, after_name)| after_name.starts_with('D'))
}

/// CLOCK_MONOTONIC_COARSE in nanoseconds. Its resolution is the kernel's tick, which is enough
/// here. Never 0.
fn coarse_now_ns() -> u64 {
    let now = clock_gettime(ClockId::MonotonicCoarse);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(now.tv_nsec).unwrap_or(0);
    (seconds * 1_000_000_000 + nanoseconds).max(1)
}

/// Locks although a thread may have panicked with the lock held: the protected values are valid
/// after every statement.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_thread_that_waits_for_a_disk_is_not_wedged() {
        assert!(is_uninterruptible("42 (write) D 1 42 42 0 -1 4194304"));
        assert!(is_uninterruptible("42 (a) S b) D 1 42 42 0 -1 4194304"));
        assert!(!is_uninterruptible("42 (D) S 1 42 42 0 -1 4194304"));
        assert!(!is_uninterruptible(""));

        let health = Health::new(Duration::ZERO);
        assert!(!health.is_wedged());
        let pulse = Arc::new(Pulse::new("toy".to_owned()));
        pulse.begin();
        health.watch(&pulse);
        assert!(!health.is_wedged(), "it has no heartbeat yet");
        pulse.beat_at(1);
        assert!(health.is_wedged(), "this thread runs");
    }
}
