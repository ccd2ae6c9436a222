//! The state of an endpoint, as its worker, the router and the metrics see it.

use std::{
    fmt::Display,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use prometheus::Gauge;

/// The least time between two errors that are kept, because each datagram may fail.
const KEEP_ERROR_EVERY: Duration = Duration::from_millis(100);

/// The state of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EndpointState {
    /// Nothing sent yet, or not for long enough.
    Unknown,
    /// Datagrams are sent without errors.
    Up,
    /// Unreachable, disconnected, or without an address.
    Down,
}

impl EndpointState {
    fn of(number: u8) -> EndpointState {
        [EndpointState::Up, EndpointState::Down]
            .into_iter()
            .find(|state| *state as u8 == number)
            .unwrap_or(EndpointState::Unknown)
    }

    /// Its name, in `/status`.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            EndpointState::Unknown => "unknown",
            EndpointState::Up => "up",
            EndpointState::Down => "down",
        }
    }

    /// The value of the gauge.
    pub(crate) fn as_gauge(self) -> f64 {
        match self {
            EndpointState::Unknown => f64::NAN,
            EndpointState::Up => 1.0,
            EndpointState::Down => 0.0,
        }
    }
}

/// The state of one endpoint, shared between threads: the gauge, and the state by which a pool
/// sends.
#[derive(Clone, Debug)]
pub(crate) struct EndpointStatus {
    gauge: Gauge,
    state: Arc<AtomicU8>,
    /// Counts changes of the address: another host may receive from then on.
    moves: Arc<AtomicU32>,
    /// Records were dropped that the endpoint may need to decode later ones.
    has_lost: Arc<AtomicBool>,
    /// The name has not been resolved yet.
    is_unresolved: Arc<AtomicBool>,
    /// It still counts as down, but no longer refuses datagrams.
    is_quiet: Arc<AtomicBool>,
    history: Arc<Mutex<History>>,
}

/// The recent past of an endpoint, for `/status`.
#[derive(Clone, Debug)]
pub(crate) struct History {
    /// When its state last changed.
    pub(crate) changed_at: Instant,
    /// The address in use.
    pub(crate) address: Option<SocketAddr>,
    /// The last error, also if it was overcome.
    pub(crate) last_error: Option<LastError>,
}

/// An error, and when it occurred.
#[derive(Clone, Debug)]
pub(crate) struct LastError {
    pub(crate) text: String,
    pub(crate) at: Instant,
}

impl EndpointStatus {
    pub(crate) fn new(gauge: Gauge) -> EndpointStatus {
        let status = EndpointStatus {
            gauge,
            state: Arc::default(),
            moves: Arc::default(),
            has_lost: Arc::default(),
            is_unresolved: Arc::default(),
            is_quiet: Arc::default(),
            history: Arc::new(Mutex::new(History { changed_at: Instant::now(), address: None, last_error: None })),
        };
        status.set(EndpointState::Unknown);
        status
    }

    /// A status of its own with the same gauge, for a worker that replaces another.
    pub(crate) fn fresh(&self) -> EndpointStatus {
        EndpointStatus::new(self.gauge.clone())
    }

    /// Records for the endpoint were dropped.
    pub(crate) fn set_lost(&self) {
        self.has_lost.store(true, Relaxed);
    }

    /// Whether records were dropped since the last call.
    pub(crate) fn take_lost(&self) -> bool {
        self.has_lost.load(Relaxed) && self.has_lost.swap(false, Relaxed)
    }

    /// Whether the endpoint waits for its name to be resolved for the first time.
    pub(crate) fn set_unresolved(&self, is_unresolved: bool) {
        self.is_unresolved.store(is_unresolved, Relaxed);
    }

    pub(crate) fn is_unresolved(&self) -> bool {
        self.is_unresolved.load(Relaxed)
    }

    /// Whether the endpoint, if it counts as down, has not refused anything for a while.
    pub(crate) fn set_quiet(&self, is_quiet: bool) {
        self.is_quiet.store(is_quiet, Relaxed);
    }

    pub(crate) fn is_quiet(&self) -> bool {
        self.is_quiet.load(Relaxed)
    }

    pub(crate) fn set(&self, state: EndpointState) {
        self.gauge.set(state.as_gauge());
        if self.state.swap(state as u8, Relaxed) != state as u8 {
            self.lock().changed_at = Instant::now();
        }
    }

    pub(crate) fn state(&self) -> EndpointState {
        EndpointState::of(self.state.load(Relaxed))
    }

    /// Something failed.
    pub(crate) fn set_error(&self, error: &dyn Display) {
        let mut history = self.lock();
        let at = Instant::now();
        let last_at = history.last_error.as_ref().map(|last| last.at);
        if last_at.is_none_or(|last_at| at.saturating_duration_since(last_at) >= KEEP_ERROR_EVERY) {
            history.last_error = Some(LastError { text: error.to_string(), at });
        }
    }

    /// This address is in use.
    pub(crate) fn set_address(&self, address: SocketAddr) {
        self.lock().address = Some(address);
    }

    pub(crate) fn history(&self) -> History {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another address is in use from now on.
    pub(crate) fn set_moved(&self) {
        self.moves.fetch_add(1, Relaxed);
    }

    pub(crate) fn moves(&self) -> u32 {
        self.moves.load(Relaxed)
    }

    pub(crate) fn is_down(&self) -> bool {
        self.state.load(Relaxed) == EndpointState::Down as u8
    }
}
