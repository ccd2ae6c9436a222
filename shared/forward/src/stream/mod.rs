//! Syslog over TCP and TLS: one destination, one thread, one connection, and what a broken connection costs: nothing.
//!
//! ```text
//!  queue ─▶ Flight ─ frames ─▶ Connection ─▶ [TLS] ─▶ TCP ─▶ destination
//!             │  ▲                 │ acknowledged by the peer's TCP
//!             │  └─────────────────┘
//!             ▼ what waits too long              Spool ─ capped rate ─▶ Connection
//!           Spool (on disk), or a drop
//! ```
//! **At least once.** A message counts as sent when the peer's TCP has acknowledged its last byte, and only then is its batch
//! committed to the group. When a connection breaks, everything that is not acknowledged is sent again on the next one, in the same
//! order and before anything newer: a message may arrive twice. What the peer's TCP has acknowledged and the peer never reads is
//! lost, for syslog has no answers that would tell. The first acknowledgements of a connection are therefore not believed before
//! it has lasted for half a second or was ended in order: a balancer that accepts and resets, or a server that refuses our certificate
//! after the handshake (TLS 1.3 tells it no sooner), takes nothing along.
//!
//! **Order** within the live stream is that of the queue. What was spooled is replayed in its own order beside live traffic.
//!
//! A slow peer is never disconnected: only one that no longer answers what the kernel repeats.

mod backoff;
mod connection;
mod flight;
mod frame;
mod place;
mod spooling;
mod tls;
mod worker;

use std::{io, path::PathBuf, sync::Arc, time::Instant};

pub use tls::{Tls, TlsError, TlsSettings};
pub(crate) use worker::StreamWorker;

use sekiwake_bus::Transport;
use sekiwake_runtime::{Losses, Scope};
pub use sekiwake_segments::LogError;

use crate::{
    Host, Parcel, Registry, Resolution,
    metrics::{DestinationMetrics, DropReason},
    queue::{Intake, queue},
    selection::Selection,
};

/// Messages a second that a spool is replayed with, unless something else is wanted.
pub const DEFAULT_REPLAY_RATE: u32 = 5_000;

/// A destination that takes syslog over TCP.
#[derive(Clone, Debug)]
pub struct StreamSettings {
    /// The host that receives.
    pub host: Host,
    /// Its TCP port.
    pub port: u16,
    /// The value of the label `destination`.
    pub label: String,
    /// What was loaded by [`TlsSettings::load`]; `None`: plain TCP.
    pub tls: Option<Tls>,
    /// Where to keep what the destination misses; `None`: nowhere.
    pub spool: Option<SpoolSettings>,
    /// Messages a second that are replayed from the spool, at most.
    pub replay_rate: u32,
    /// Whether the device's address goes into each message, as RFC 5424 structured data.
    pub add_source: bool,
}

/// Where to keep on disk what a destination misses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpoolSettings {
    /// A directory that nobody else uses. It is made if it is not there.
    pub dir: PathBuf,
    /// The most that is kept, bytes on disk; the oldest goes first.
    pub max_bytes: u64,
}

/// The folder of a destination's spool, in the directory of them all: its label, without what a name of a file must not hold.
pub(crate) fn spool_name(label: &str) -> String {
    label.replace("://", "_").replace([':', '/'], "_")
}

/// Why a stream destination cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The system gives no thread.
    #[error("cannot start a thread")]
    Thread(#[from] io::Error),
    /// The spool cannot be opened.
    #[error("cannot open the spool {}: {source}", dir.display())]
    Spool {
        /// Its directory.
        dir: PathBuf,
        /// Why not.
        source: LogError,
    },
}

/// One stream destination by itself, as [`Engine`](crate::Engine) has many: a queue and a worker.
///
/// Dropping it lets the worker send what is queued, until the role's deadline when it is stopping, and end.
pub struct StreamDestination<B> {
    intake: Intake<B>,
    dropped: Losses<DropReason>,
}

impl<B: AsRef<[u8]> + Send + Sync + 'static> StreamDestination<B> {
    /// Starts the worker.
    ///
    /// # Errors
    /// When there is no thread, or no spool although one is wanted. A destination that cannot be reached is no error.
    pub fn start(
        settings: StreamSettings,
        resolution: &Resolution,
        registry: &Registry,
        scope: &Scope,
    ) -> Result<StreamDestination<B>, StreamError> {
        let metrics = DestinationMetrics::new(scope, &settings.label);
        let (intake, outlet) = queue(metrics.queue_records.clone(), metrics.queue_bytes.clone());
        let registration = registry.register_over(Transport::Tcp);
        let dropped = metrics.dropped.clone();
        let name = settings.label.clone();
        let worker = StreamWorker::new(settings, outlet, resolution.clone(), registration, metrics, scope)?;
        scope.spawn(name, move |thread| {
            worker.run(thread);
            Ok(())
        })?;
        Ok(StreamDestination { intake, dropped })
    }

    /// Queues a parcel, and never waits: where the queue is full its records are dropped and counted.
    pub fn forward(&self, parcel: &Arc<Parcel<B>>) {
        if !parcel.batch.is_empty() && !self.intake.offer(parcel, Selection::All, Instant::now()) {
            self.dropped.add(DropReason::QueueFull, parcel.batch.len() as u64);
        }
    }
}
