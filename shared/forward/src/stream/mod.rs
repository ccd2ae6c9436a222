//! Syslog over TCP and TLS: one endpoint, one thread, one connection, and no loss when a connection
//! breaks.
//!
//! ```text
//!  queue ─▶ Flight ─ frames ─▶ Connection ─▶ [TLS] ─▶ TCP ─▶ destination
//!             │  ▲                 │ acknowledged by the peer's TCP
//!             │  └─────────────────┘
//!             ▼ waited too long                  Spool ─ capped rate ─▶ Connection
//!           Spool (on disk), or a drop
//! ```
//! **At least once.** A message counts as sent when the peer's TCP has acknowledged its last byte,
//! and only then is its batch committed to the group. When a connection breaks, everything
//! unacknowledged is sent again on the next one, in the same order and before anything newer: a
//! message may arrive twice. Messages that the peer's TCP has acknowledged and the peer never reads
//! are lost, because syslog has no application-level acknowledgements. So the first
//! acknowledgements of a connection are not trusted before it has lasted for half a second. That
//! way nothing is lost to a balancer that accepts and resets, or to a server that rejects our
//! certificate after the handshake (with TLS 1.3 only then).
//!
//! **A message at which the peer ends the connection** is found by giving it less at a time, and
//! dropped after some tries (`suspects`). Without that it would be sent again for ever, with
//! everything before it.
//!
//! **Order** within the live stream is that of the queue. Spooled messages are replayed in their
//! own order beside live traffic.
//!
//! A slow peer is never disconnected, only one that no longer answers retransmissions.

pub(crate) mod backoff;
pub(crate) mod connection;
mod flight;
mod frame;
mod link;
mod spool_policy;
mod spooling;
pub(crate) mod spools;
mod suspects;
mod tls;
mod worker;

use std::{io, path::PathBuf, sync::Arc, time::Instant};

pub use frame::Framing;
pub(crate) use tls::HttpTls;
pub use tls::{Tls, TlsError, TlsSettings};
pub(crate) use worker::StreamWorker;

use sekiwake_bus::Transport;
use sekiwake_runtime::{Losses, Scope};
pub use sekiwake_segments::LogError;

use crate::{
    Host, Parcel, Registry, Resolution,
    metrics::{DestinationMetrics, DropReason},
    queue::{Intake, queue},
    routing::selection::Selection,
};

/// The default of messages per second that are replayed from a spool.
pub const DEFAULT_REPLAY_RATE: u32 = 5_000;

/// The settings of a destination over TCP or TLS.
#[derive(Clone, Debug)]
pub struct StreamSettings {
    /// The receiving host.
    pub host: Host,
    /// Its TCP port.
    pub port: u16,
    /// The value of the label `destination`.
    pub label: String,
    /// Loaded by [`TlsSettings::load`]; `None`: plain TCP.
    pub tls: Option<Tls>,
    /// How messages are told apart.
    pub framing: Framing,
    /// The spool for messages that the destination misses; `None`: no spool.
    pub spool: Option<SpoolSettings>,
    /// Maximum number of messages per second that are replayed from the spool.
    pub replay_rate: u32,
    /// Whether the device's address is added to each message, as RFC 5424 structured data.
    pub add_source: bool,
}

/// The spool of one destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpoolSettings {
    /// Its own directory. It is created if it does not exist.
    pub dir: PathBuf,
    /// Maximum bytes on disk; the oldest messages are dropped first.
    pub max_bytes: u64,
}

/// The folder of a destination's spool in the directory of spools: its label without characters
/// that a file name cannot have.
pub(crate) fn spool_name(label: &str) -> String {
    label.replace("://", "_").replace([':', '/'], "_")
}

/// Why a stream destination cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// A thread cannot be spawned.
    #[error("cannot spawn a thread")]
    Thread(#[from] io::Error),
    /// The spool cannot be opened.
    #[error("cannot open the spool {}: {source}", dir.display())]
    Spool {
        /// Its directory.
        dir: PathBuf,
        /// The cause.
        source: LogError,
    },
}

/// A single stream destination without an [`Engine`](crate::Engine): a queue and a worker.
///
/// Dropping it lets the worker send the queued batches, until the role's deadline when it is
/// stopping, and end.
pub struct StreamDestination<B> {
    intake: Intake<B>,
    dropped: Losses<DropReason>,
}

impl<B: AsRef<[u8]> + From<Vec<u8>> + Send + Sync + 'static> StreamDestination<B> {
    /// Starts the worker.
    ///
    /// # Errors
    /// When a thread cannot be spawned or the spool cannot be opened. An unreachable destination is
    /// not an error.
    pub fn start(
        settings: StreamSettings,
        resolution: &Resolution,
        registry: &Registry,
        scope: &Scope,
    ) -> Result<StreamDestination<B>, StreamError> {
        let metrics = DestinationMetrics::new(scope, &settings.label);
        let (intake, outlet) = queue(metrics.queue_records.clone(), metrics.queue_bytes.clone());
        let registration = registry.register(Transport::Tcp);
        let dropped = metrics.dropped.clone();
        let name = settings.label.clone();
        let worker = StreamWorker::new(settings, outlet, resolution.clone(), registration, metrics, scope)?;
        scope.spawn(name, move |thread| {
            worker.run(thread);
            Ok(())
        })?;
        Ok(StreamDestination { intake, dropped })
    }

    /// Queues a parcel, and never waits: if the queue is full, its records are dropped and counted.
    pub fn forward(&mut self, parcel: &Arc<Parcel<B>>) {
        let records = parcel.batch.len();
        let is_full = records > 0 && !self.intake.offer(parcel, Selection::All, Instant::now());
        let rejected = self.intake.flush() + if is_full { records } else { 0 };
        if rejected > 0 {
            self.dropped.add(DropReason::QueueFull, rejected as u64);
        }
    }
}
