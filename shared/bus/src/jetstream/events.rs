//! Events and status over core NATS: as lossy as on ZeroMQ, and never stored.

use std::{
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use async_nats::Subscriber;
use futures_util::StreamExt;
use prometheus::IntCounter;
use sekiwake_record::Name;
use sekiwake_runtime::{Hangups, Metrics};
use tokio::sync::mpsc::{Receiver, Sender, channel, error::TrySendError};
use tracing::debug;

use super::{
    connection::{Connection, Nats},
    settings::JetStreamSettings,
    status::{STATUS, STATUS_WANTED, subject_of, topic_of},
};
use crate::{
    BusError, EVENT_PREFIX, Event, EventSink, EventSource, MAX_EVENT_BYTES, STATUS_PREFIX,
    events::{event, object},
    metrics::{EventMetrics, malformed_messages},
};

/// Events that wait for a connection.
const WAITING: usize = 64;
/// How often a reader of status says that it reads.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// How long the last events may take.
const LAST_WITHIN: Duration = Duration::from_secs(1);

/// A subscription to events or status. Belongs to one thread.
pub(crate) struct JetStreamEventSource {
    prefixes: Vec<String>,
    messages: Receiver<async_nats::Message>,
    malformed: IntCounter,
    connection: Connection,
}

impl JetStreamEventSource {
    /// Subscribes to the events and the status whose topics begin with one of `prefixes`.
    ///
    /// # Errors
    /// No descriptor or thread is left, or files cannot be used.
    pub(crate) fn open(
        from: &Arc<JetStreamSettings>,
        hangups: &Hangups,
        prefixes: &[String],
        metrics: &Metrics,
    ) -> Result<JetStreamEventSource, BusError> {
        let connection = Connection::open(from, hangups, "events")?;
        let overlaps =
            |kind: &str| prefixes.iter().any(|prefix| prefix.starts_with(kind) || kind.starts_with(prefix.as_str()));
        let (sender, messages) = channel(WAITING);
        let nats = connection.nats();
        if overlaps(EVENT_PREFIX) {
            connection.spawn(subscribe(nats.clone(), "sekiwake.anomaly.*".to_owned(), sender.clone()));
        }
        if overlaps(STATUS_PREFIX) {
            connection.spawn(subscribe(nats.clone(), format!("{STATUS}>"), sender));
            connection.spawn(ask_for_status(nats.clone()));
        }
        let malformed = malformed_messages(metrics, "malformed");
        Ok(JetStreamEventSource { prefixes: prefixes.to_vec(), messages, malformed, connection })
    }
}

impl EventSource for JetStreamEventSource {
    fn receive(&mut self, timeout: Duration) -> Result<Option<Event>, BusError> {
        let until = Instant::now() + timeout;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let messages = &mut self.messages;
            let received = self.connection.block_on(async { tokio::time::timeout(left, messages.recv()).await });
            let Ok(Some(message)) = received else { return Ok(None) };
            let topic = topic_of(message.subject.as_str()).unwrap_or_default();
            if self.prefixes.iter().any(|prefix| topic.starts_with(prefix.as_str())) {
                let event = event(topic.as_bytes(), &message.payload);
                if event.is_some() {
                    return Ok(event);
                }
                self.malformed.inc();
                debug!(subject = message.subject.as_str(), "event rejected");
            }
            if Instant::now() >= until {
                return Ok(None);
            }
        }
    }

    fn is_connected(&self) -> bool {
        self.connection.is_connected()
    }
}

async fn subscribe(nats: Nats, subject: String, messages: Sender<async_nats::Message>) {
    // The client subscribes again after each connection.
    let Ok(mut received): Result<Subscriber, _> = nats.client.subscribe(subject).await else { return };
    while let Some(message) = received.next().await {
        if messages.send(message).await.is_err() {
            return;
        }
    }
}

async fn ask_for_status(nats: Nats) {
    loop {
        nats.send(STATUS_WANTED, Vec::new()).await;
        tokio::time::sleep(ASK_EVERY).await;
    }
}

/// Publishes events, through a thread with a connection of its own.
pub(crate) struct JetStreamEventSink {
    events: Option<Sender<Vec<u8>>>,
    thread: Option<JoinHandle<()>>,
    metrics: EventMetrics,
}

impl JetStreamEventSink {
    /// For the events of the publisher of this name.
    ///
    /// # Errors
    /// No descriptor or thread is left, or files cannot be used.
    pub(crate) fn open(
        to: &Arc<JetStreamSettings>,
        hangups: &Hangups,
        name: &Name,
        metrics: &Metrics,
    ) -> Result<JetStreamEventSink, BusError> {
        let connection = Connection::open(to, hangups, "events")?;
        let subject = subject_of(&format!("{EVENT_PREFIX}{name}/"));
        let (sender, events) = channel(WAITING);
        let publish = move || connection.block_on(publish_events(connection.nats(), &subject, events));
        let thread = thread::Builder::new().name("events".to_owned()).spawn(publish).map_err(BusError::Thread)?;
        Ok(JetStreamEventSink { events: Some(sender), thread: Some(thread), metrics: EventMetrics::new(metrics) })
    }
}

async fn publish_events(nats: &Nats, subject: &str, mut events: Receiver<Vec<u8>>) {
    while let Some(json) = events.recv().await {
        while !nats.link.is_connected() {
            if events.is_closed() {
                return;
            }
            drop(tokio::time::timeout(ASK_EVERY, nats.link.changed()).await);
        }
        nats.send(subject, json).await;
    }
    drop(tokio::time::timeout(LAST_WITHIN, nats.client.flush()).await);
}

impl EventSink for JetStreamEventSink {
    fn publish(&mut self, json: &[u8]) -> bool {
        if json.len() > MAX_EVENT_BYTES || object(json).is_none() {
            self.metrics.rejected.inc();
            return false;
        }
        let sent = self.events.as_ref().map(|events| events.try_send(json.to_vec()));
        match sent {
            Some(Ok(())) => {
                self.metrics.published.inc();
                true
            }
            Some(Err(TrySendError::Full(_) | TrySendError::Closed(_))) | None => {
                self.metrics.no_room.inc();
                false
            }
        }
    }

    fn poll(&mut self) {}
}

impl Drop for JetStreamEventSink {
    fn drop(&mut self) {
        self.events = None;
        if let Some(thread) = self.thread.take() {
            // It ends within the time for the last events.
            drop(thread.join());
        }
    }
}
