//! The shell: sockets, the clock, and batches of system calls.

use std::{
    io::{self, IoSlice},
    net::SocketAddr,
    os::fd::AsFd,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant, SystemTime},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};
use sekiwake_sys::{MAX_SEGMENTED_BYTES, Outgoing, send_batch};
use socket2::Socket;
use xxhash_rust::xxh3::xxh3_128;

use crate::{
    cli::Arguments,
    generate::{Cursor, Generator, Moment, Request},
    pacer::{Due, Pacer},
    plan::Plan,
    sizes::Sizes,
    sources::{OpenError, allow_descriptors, open},
    summary::{Errors, Sent, Summary},
};

/// How often progress is told.
const PROGRESS: Duration = Duration::from_secs(1);
/// How long a full queue is waited for before the stop flag is looked at.
const FULL: Timespec = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };

/// A datagram that cannot be sent.
#[derive(Debug, thiserror::Error)]
#[error("cannot send {bytes} bytes to {to}")]
pub struct SendError {
    to: SocketAddr,
    bytes: usize,
    #[source]
    error: io::Error,
}

/// Everything that a run needs.
#[derive(Debug)]
pub struct Sender {
    plan: Plan,
    lanes: Vec<Lane>,
    streams: Vec<Stream>,
    /// Which of `streams` are each protocol's.
    sizes: Sizes,
    template_every: u64,
    template_interval: Duration,
    pacer: Pacer,
    batch: Batch,
    elapsed: Duration,
}

/// One protocol.
#[derive(Debug)]
struct Lane {
    generator: Generator,
    to: SocketAddr,
    /// Where the sockets to `to` begin in the list of all.
    next_source: usize,
    sent: Sent,
}

/// One source in one protocol.
#[derive(Debug)]
struct Stream {
    socket: std::rc::Rc<Socket>,
    cursor: Cursor,
    template_sent: Option<(u64, Duration)>,
}
