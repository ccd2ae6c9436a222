//! Records for a reader that is in no group.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use sekiwake_group::Tracker;
use sekiwake_record::{DecodeError, Kind};
use sekiwake_runtime::{Hangups, Latch, Metrics, RateLimited};
use sekiwake_sys::clock::wall_now_ns;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tracing::{debug, warn};

use super::{
    connection::{Connection, Nats},
    reader::{Incoming, Reader, Start},
    settings::JetStreamSettings,
    streams::{data_stream, data_subjects},
};
use crate::{
    BusError, Delivery, MissingRecent, Source,
    metrics::SubscriberMetrics,
    reading::age_seconds,
    reminder::{Due, Reminder},
};

/// Messages that wait for the caller, at most half a MiB each.
const WAITING: usize = 64;
/// The pause before a reader is opened again.
const REOPEN_AFTER: Duration = Duration::from_millis(250);
/// The longest wait for a message.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How much earlier than asked for a reader begins: records are stored after they were captured,
/// by another host's clock.
pub(crate) const EARLIER: Duration = Duration::from_secs(2);

/// A reader of some topics. Belongs to one thread.
pub(crate) struct JetStreamSource {
    messages: Receiver<Incoming>,
    tracker: Tracker,
    metrics: SubscriberMetrics,
    connected: Option<Latch>,
    opened_at_ns: u64,
    since_ns: u64,
    forgotten: u64,
    loss_log: RateLimited,
    // The tasks end before the connection is dropped.
    connection: Connection,
}

impl JetStreamSource {
    /// Reads the topics that begin with one of `prefixes`: the records of the last `age` first, or
    /// from now on. `connected` is set while there is a connection.
    ///
    /// # Errors
    /// No descriptor or thread is left, or files cannot be used.
    pub(crate) fn open(
        from: &Arc<JetStreamSettings>,
        hangups: &Hangups,
        prefixes: &[String],
        age: Option<Duration>,
        metrics: &Metrics,
        connected: Option<Latch>,
    ) -> Result<JetStreamSource, BusError> {
        let connection = Connection::open(from, hangups, "reader")?;
        let (sender, messages) = channel(WAITING);
        let opened_at_ns = wall_now_ns();
        let since_ns = age.map_or(0, |age| opened_at_ns.saturating_sub(age.as_nanos() as u64));
        let start = match age {
            Some(_) => Start::Time(since_ns.saturating_sub(EARLIER.as_nanos() as u64)),
            None => Start::New,
        };
        for kind in Kind::ALL {
            let subjects = data_subjects(kind, prefixes);
            if !subjects.is_empty() {
                let nats = connection.nats().clone();
                connection.spawn(read(nats, data_stream(kind), subjects, start, sender.clone()));
            }
        }
        Ok(JetStreamSource {
            messages,
            tracker: Tracker::default(),
            metrics: SubscriberMetrics::new(metrics),
            connected,
            opened_at_ns,
            since_ns,
            forgotten: 0,
            loss_log: RateLimited::default(),
            connection,
        })
    }

    fn delivery(&mut self, incoming: Incoming) -> Result<Option<Delivery>, DecodeError> {
        let (topic, header, mut batch) = incoming.decode()?;
        let seen = self.tracker.observe(topic, &header);
        let kind = topic.kind.index();
        self.metrics.lost[kind].inc_by(seen.missing);
        self.metrics.duplicates[kind].inc_by(u64::from(seen.duplicates));
        self.metrics.received[kind].inc_by(u64::from(header.count - seen.duplicates));
        if seen.missing > 0
            && let Some(suppressed) = self.loss_log.allow(Instant::now())
        {
            let records = seen.missing;
            warn!(stream = header.stream_name, records, suppressed, "records lost: published but not received");
        }
        if seen.duplicates == header.count {
            return Ok(None);
        }
        batch.drop_first(seen.duplicates as usize);
        self.metrics.received_age_seconds.set(age_seconds(header.last_captured_at_ns));
        Ok(Some(Delivery {
            topic,
            stream_name: seen.stream_name,
            stream_epoch: header.stream_epoch,
            first_sequence: header.first_sequence + u64::from(seen.duplicates),
            batch,
            is_retransmitted: self.since_ns > 0 && incoming.stored_at_ns < self.opened_at_ns,
        }))
    }

    fn meter(&mut self) {
        let is_connected = self.connection.is_connected();
        if let Some(latch) = &self.connected {
            latch.set(is_connected);
        }
        self.metrics.connected.set(i64::from(is_connected));
        self.metrics.streams.set(self.tracker.streams() as i64);
        self.metrics.forgotten.inc_by(self.tracker.forgotten() - self.forgotten);
        self.forgotten = self.tracker.forgotten();
    }
}

impl Source for JetStreamSource {
    fn receive(&mut self, timeout: Duration) -> Result<Option<Delivery>, BusError> {
        let until = Instant::now() + timeout;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let messages = &mut self.messages;
            let received = self.connection.block_on(async { tokio::time::timeout(left, messages.recv()).await });
            let Ok(Some(incoming)) = received else {
                self.meter();
                return Ok(None);
            };
            match self.delivery(incoming) {
                Ok(Some(delivery)) => return Ok(Some(delivery)),
                Ok(None) => {}
                Err(error) => {
                    self.metrics.malformed.inc();
                    debug!(%error, "message rejected");
                }
            }
            if Instant::now() >= until {
                self.meter();
                return Ok(None);
            }
        }
    }

    fn next_missing(&mut self) -> Option<MissingRecent> {
        None
    }

    fn since_ns(&self) -> u64 {
        self.since_ns
    }
}

/// Reads one stream for as long as somebody takes its messages.
async fn read(nats: Nats, stream: &'static str, subjects: Vec<String>, start: Start, messages: Sender<Incoming>) {
    let mut start = start;
    let mut waiting_for = Reminder::default();
    while !messages.is_closed() {
        match read_until_lost(&nats, stream, &subjects, &mut start, &messages, &mut waiting_for).await {
            Ok(()) => return,
            Err(error) => {
                // A lost connection is logged by the connection itself.
                let error = nats.link.is_connected().then_some(error);
                if waiting_for.due(error.as_ref(), Instant::now()) == Some(Due::Lasts) {
                    warn!(stream, error, "records cannot be read, trying again");
                }
            }
        }
        tokio::time::sleep(REOPEN_AFTER).await;
    }
}

/// Reads from `start` on, and moves it past what has been read.
async fn read_until_lost(
    nats: &Nats,
    stream: &str,
    subjects: &[String],
    start: &mut Start,
    messages: &Sender<Incoming>,
    waiting_for: &mut Reminder<String>,
) -> Result<(), String> {
    let info = nats.stream_info(stream).await.map_err(|error| error.to_string())?;
    let state = info.ok_or_else(|| format!("the stream {stream} does not exist yet"))?.state;
    *start = match *start {
        // From here on by number, so that nothing is missed when it is opened again.
        Start::New => Start::Sequence(state.last_sequence + 1),
        // The stream was deleted and made again.
        Start::Sequence(next) if next > state.last_sequence + 1 => Start::Sequence(1),
        other => other,
    };
    let mut reader = Reader::open(nats, stream, subjects, *start).await.map_err(|error| error.to_string())?;
    if waiting_for.due(None, Instant::now()) == Some(Due::Over) {
        tracing::info!(stream, "records can be read again");
    }
    loop {
        let next = reader.next(LOOK_EVERY).await.map_err(|error| error.to_string())?;
        if let Some(incoming) = next {
            let after = Start::Sequence(incoming.stream_sequence + 1);
            if messages.send(incoming).await.is_err() {
                return Ok(());
            }
            *start = after;
        } else if messages.is_closed() {
            return Ok(());
        }
    }
}
