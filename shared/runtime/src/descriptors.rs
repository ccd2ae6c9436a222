//! The limit of open files (`RLIMIT_NOFILE`), and the descriptors that are kept for the admin
//! server and for libzmq, which aborts the process if it has none to bind.
//!
//! ```text
//!   0 ──────── everything ────────▶ soft limit ── reserve ──▶ hard limit, at most MOST
//! ```
//! A process without free descriptors is one that an operator wants to look into. The soft limit is
//! raised for the moment in which a descriptor is needed; a descriptor above it stays
//! valid, and is not lost to others when it is closed.

use std::sync::{
    Mutex, OnceLock,
    atomic::{AtomicBool, Ordering},
};

use rustix::{
    event::{EventfdFlags, eventfd},
    io::Errno,
    process::{Resource, Rlimit, getrlimit, setrlimit},
};
use tracing::warn;

use crate::health::lock;

/// The most descriptors of a process. A limit, because each of them may be the connection of a
/// stranger, which takes some 30 KiB in a proxy.
const MOST: u64 = 16_384;

/// The descriptors that are kept, or an eighth of all if these are few.
const RESERVED: u64 = 32;

/// The soft limits, once [`set_limit`] has succeeded.
static LIMITS: OnceLock<Limits> = OnceLock::new();

/// Whether the limit is raised.
static IS_RAISED: AtomicBool = AtomicBool::new(false);

#[derive(Clone, Copy, Debug)]
struct Limits {
    usual: u64,
    with_reserve: u64,
}

/// Sets the soft limit of open files to the hard one, at most [`MOST`], less the reserve.
pub(crate) fn set_limit() {
    let most = getrlimit(Resource::Nofile).maximum.map_or(MOST, |maximum| maximum.min(MOST));
    let limits = Limits { usual: most - RESERVED.min(most / 8), with_reserve: most };
    match set_soft(limits.usual) {
        Ok(()) => drop(LIMITS.set(limits)),
        Err(error) => warn!(%error, limit = limits.usual, "cannot set the limit of open files"),
    }
}

/// Calls `open`, which must not fail for want of a descriptor and opens only a few: with the
/// reserve, if there is no other one left.
pub fn with_reserve<T>(open: impl FnOnce() -> T) -> T {
    if has_free_descriptor() { open() } else { on_reserve(open) }
}

/// Calls `open` with the reserve, after it has failed because no descriptor was free. One that has
/// become free since may be taken by another thread first.
pub(crate) fn on_reserve<T>(open: impl FnOnce() -> T) -> T {
    let Some(limits) = LIMITS.get() else { return open() };
    // Two threads at a time would lower it for each other.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _one = lock(&ONE_AT_A_TIME);
    IS_RAISED.store(true, Ordering::SeqCst);
    // If this fails, there is no reserve.
    let _ = set_soft(limits.with_reserve);
    let opened = open();
    let _ = set_soft(limits.usual);
    IS_RAISED.store(false, Ordering::SeqCst);
    opened
}

/// Whether the process, and the system, could open another file. The reserve does not count.
pub fn has_free_descriptor() -> bool {
    !IS_RAISED.load(Ordering::SeqCst) && !matches!(eventfd(0, EventfdFlags::CLOEXEC), Err(Errno::MFILE | Errno::NFILE))
}

fn set_soft(limit: u64) -> rustix::io::Result<()> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: Some(limit), maximum })
}
