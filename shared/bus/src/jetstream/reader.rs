//! Reading a stream from a position: one throw-away consumer, which acknowledges nothing.
//!
//! A reader that fails in any way is dropped, and its owner opens another from its own position:
//! the server keeps no position that would matter.

use std::{
    num::NonZeroU64,
    time::{Duration, Instant},
};

use async_nats::{Subscriber, jetstream};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use sekiwake_record::{Batch, DecodeError, Header, Topic};
use serde_json::{Value, json};

use super::{
    connection::{Nats, REQUEST_WITHIN},
    streams::topic_of,
};
use crate::{Frame, reading::check_sequence};

/// Messages that are requested at a time.
const PULL_MESSAGES: usize = 200;
/// Bytes that are requested at a time.
const PULL_BYTES: usize = 4 << 20;
/// How long a request for messages lasts.
const PULL_EXPIRES: Duration = Duration::from_secs(5);
/// How often the server says that the consumer is alive while it has no messages.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Silence after which the consumer is lost.
const SILENCE: Duration = Duration::from_millis(2500);
/// How long the server keeps a consumer that nobody reads.
const INACTIVE: Duration = Duration::from_secs(30);

/// Where to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// At the oldest message.
    Oldest,
    /// After the newest message.
    New,
    /// At the first message with at least this sequence number in the stream.
    Sequence(u64),
    /// At the first message stored at this time or later, nanoseconds since 1970.
    Time(u64),
    /// At the newest message of each subject.
    LastPerSubject,
}

/// A message of a stream.
#[derive(Debug)]
pub(crate) struct Incoming {
    pub(crate) subject: String,
    pub(crate) payload: Bytes,
    /// Its sequence number in the stream, which counts other subjects too.
    pub(crate) stream_sequence: u64,
    /// When the server stored it, nanoseconds since 1970.
    pub(crate) stored_at_ns: u64,
    /// How many messages of the reader's subjects follow it for now.
    pub(crate) pending: u64,
}

impl Incoming {
    /// Reads a message of records.
    ///
    /// # Errors
    /// Another subject or structure, or numbers out of range.
    pub(crate) fn decode(&self) -> Result<(Topic, Header<'_>, Batch<Frame>), DecodeError> {
        let malformed = |reason: &str| DecodeError::Malformed { part: "message", reason: reason.to_owned() };
        let topic = topic_of(&self.subject).ok_or_else(|| malformed("no topic"))?;
        let (header, body) = Header::split(&self.payload).ok_or_else(|| malformed("no header"))?;
        let header = Header::decode(header)?;
        check_sequence(header.next_sequence(), "header")?;
        let batch = Batch::decode(Frame::from(self.payload.slice_ref(body)), header.count)?;
        Ok((topic, header, batch))
    }
}

/// Why a reader cannot go on, or was not opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ReaderLost {
    /// The connection was lost meanwhile.
    #[error("the connection was lost")]
    Disconnected,
    /// The server has said nothing for too long.
    #[error("no heartbeat of the consumer")]
    Silent,
    /// The consumer's messages are not consecutive.
    #[error("messages of the consumer are missing")]
    Gap,
    /// No server has the stream, or it has no leader.
    #[error("no server has the stream {0}, or it has no leader")]
    NoLeader(String),
    /// There was no answer in time.
    #[error("no answer within {}s", REQUEST_WITHIN.as_secs())]
    Late,
    /// The server said why.
    #[error("{0}")]
    Refused(String),
}

/// A consumer of a stream, in memory at one server, and the messages on their way.
pub(crate) struct Reader {
    nats: Nats,
    stream: String,
    consumer: String,
    inbox: String,
    messages: Subscriber,
    /// Connections when it was opened.
    connects: u64,
    /// Requested and not received.
    wanted_messages: usize,
    wanted_bytes: usize,
    /// When a request that lasts was made.
    pulled_at: Instant,
    heard_at: Instant,
    /// The number of the consumer's next message.
    next: NonZeroU64,
    has_messages: bool,
}

impl Reader {
    /// Opens a consumer for these subjects of a stream; all if there are none.
    ///
    /// # Errors
    /// See [`ReaderLost`].
    pub(crate) async fn open(
        nats: &Nats,
        stream: &str,
        subjects: &[String],
        start: Start,
    ) -> Result<Reader, ReaderLost> {
        let opened_at = Instant::now();
        let connects = nats.link.connects();
        let name =
            format!("sekiwake{:016x}", getrandom::u64().map_err(|error| ReaderLost::Refused(error.to_string()))?);
        let mut config = json!({
            "name": name,
            "ack_policy": "none",
            "replay_policy": "instant",
            "mem_storage": true,
            "num_replicas": 1,
            "max_deliver": -1,
            "inactive_threshold": INACTIVE.as_nanos() as u64,
        });
        match subjects {
            [] => {}
            // A permission can name the filter only if there is one.
            [one] => config["filter_subject"] = json!(one),
            several => config["filter_subjects"] = json!(several),
        }
        match start {
            Start::Oldest => config["deliver_policy"] = json!("all"),
            Start::New => config["deliver_policy"] = json!("new"),
            Start::LastPerSubject => config["deliver_policy"] = json!("last_per_subject"),
            Start::Sequence(sequence) => {
                config["deliver_policy"] = json!("by_start_sequence");
                config["opt_start_seq"] = json!(sequence.max(1));
            }
            Start::Time(at_ns) => {
                let at = jiff::Timestamp::from_nanosecond(i128::from(at_ns)).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
                config["deliver_policy"] = json!("by_start_time");
                config["opt_start_time"] = json!(at.to_string());
            }
        }
        let inbox = nats.client.new_inbox();
        let messages = nats.client.subscribe(inbox.clone()).await.map_err(|_| ReaderLost::Disconnected)?;
        let subject = match subjects {
            [one] => format!("CONSUMER.CREATE.{stream}.{name}.{one}"),
            _ => format!("CONSUMER.CREATE.{stream}.{name}"),
        };
        let request = json!({ "stream_name": stream, "config": config, "action": "create" });
        let answer: Result<Value, _> = nats.jetstream.request(subject.clone(), &request).await;
        let answer = answer.map_err(|error| match error.kind() {
            jetstream::context::RequestErrorKind::NoResponders => ReaderLost::NoLeader(stream.to_owned()),
            _ => nats.link.refusal(&subject, opened_at).map_or(ReaderLost::Late, ReaderLost::Refused),
        })?;
        if let Some(error) = answer.get("error") {
            let description = error.get("description").and_then(Value::as_str).unwrap_or("rejected");
            return Err(match error.get("code").and_then(Value::as_u64) {
                Some(503) | Some(404) => ReaderLost::NoLeader(stream.to_owned()),
                _ => ReaderLost::Refused(description.to_owned()),
            });
        }
        let has_messages = answer.get("num_pending").and_then(Value::as_u64) != Some(0);
        let now = Instant::now();
        let mut reader = Reader {
            nats: nats.clone(),
            stream: stream.to_owned(),
            consumer: name,
            inbox,
            messages,
            connects,
            wanted_messages: 0,
            wanted_bytes: 0,
            pulled_at: now,
            heard_at: now,
            next: NonZeroU64::MIN,
            has_messages,
        };
        reader.pull().await?;
        Ok(reader)
    }

    /// Whether there was a message to read when it was opened, as far as the server said.
    pub(crate) fn has_messages(&self) -> bool {
        self.has_messages
    }

    /// The next message, or `None` if none is received within `timeout`.
    ///
    /// # Errors
    /// The reader is of no more use; see [`ReaderLost`].
    pub(crate) async fn next(&mut self, timeout: Duration) -> Result<Option<Incoming>, ReaderLost> {
        let until = Instant::now() + timeout;
        loop {
            if self.nats.link.connects() != self.connects {
                return Err(ReaderLost::Disconnected);
            }
            if self.wanted_messages <= PULL_MESSAGES / 2
                || self.wanted_bytes <= PULL_BYTES / 2
                || self.pulled_at.elapsed() >= PULL_EXPIRES
            {
                self.pull().await?;
            }
            // A caller that was away for long looks at what has arrived before it counts silence.
            let ready = self.messages.next().now_or_never();
            let message = match ready {
                Some(message) => message,
                None => {
                    let silent_at = self.heard_at + SILENCE;
                    let wake_at = until.min(silent_at);
                    let left = wake_at.saturating_duration_since(Instant::now());
                    match tokio::time::timeout(left, self.messages.next()).await {
                        Ok(message) => message,
                        Err(_) if Instant::now() >= silent_at => return Err(ReaderLost::Silent),
                        Err(_) => return Ok(None),
                    }
                }
            };
            let Some(message) = message else { return Err(ReaderLost::Disconnected) };
            self.heard_at = Instant::now();
            if let Some(status) = message.status.filter(|status| status.as_u16() != 200) {
                self.on_status(status.as_u16(), &message)?;
                continue;
            }
            return self.incoming(message).map(Some);
        }
    }

    /// What the server says instead of a message.
    fn on_status(&mut self, status: u16, message: &async_nats::Message) -> Result<(), ReaderLost> {
        match status {
            // A heartbeat.
            100 => {}
            // A request has expired, or is over because it is full.
            408 | 409 => {
                let description = message.description.as_deref().unwrap_or_default();
                if status == 409 && !description.contains("Exceed") {
                    return Err(ReaderLost::Refused(description.to_owned()));
                }
                let left = |name: &str| {
                    let headers = message.headers.as_ref()?;
                    headers.get(name)?.as_str().parse::<usize>().ok()
                };
                let messages = left("Nats-Pending-Messages").unwrap_or(self.wanted_messages);
                let bytes = left("Nats-Pending-Bytes").unwrap_or(self.wanted_bytes);
                self.wanted_messages = self.wanted_messages.saturating_sub(messages);
                self.wanted_bytes = self.wanted_bytes.saturating_sub(bytes);
            }
            503 => return Err(ReaderLost::NoLeader(self.stream.clone())),
            code => {
                let description = message.description.as_deref().unwrap_or_default();
                return Err(ReaderLost::Refused(format!("{code} {description}")));
            }
        }
        Ok(())
    }

    fn incoming(&mut self, message: async_nats::Message) -> Result<Incoming, ReaderLost> {
        self.wanted_messages = self.wanted_messages.saturating_sub(1);
        self.wanted_bytes = self.wanted_bytes.saturating_sub(message.length);
        let message = jetstream::Message { message, context: self.nats.jetstream.clone() };
        let Ok(info) = message.info() else { return Err(ReaderLost::Gap) };
        // Consecutive per consumer: a message that was lost on its way leaves a gap.
        if info.consumer_sequence != self.next.get() {
            return Err(ReaderLost::Gap);
        }
        self.next = self.next.saturating_add(1);
        let (stream_sequence, pending) = (info.stream_sequence, info.pending);
        let stored_at_ns = u64::try_from(info.published.unix_timestamp_nanos()).unwrap_or(0);
        let subject = message.subject.to_string();
        Ok(Incoming { subject, payload: message.message.payload, stream_sequence, stored_at_ns, pending })
    }

    /// Requests more messages.
    async fn pull(&mut self) -> Result<(), ReaderLost> {
        let messages = PULL_MESSAGES.saturating_sub(self.wanted_messages).max(1);
        let bytes = PULL_BYTES.saturating_sub(self.wanted_bytes).max(1 << 20);
        let request = json!({
            "batch": messages,
            "max_bytes": bytes,
            "expires": PULL_EXPIRES.as_nanos() as u64,
            "idle_heartbeat": HEARTBEAT.as_nanos() as u64,
        });
        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{}.{}", self.stream, self.consumer);
        let sent = self.nats.client.publish_with_reply(subject, self.inbox.clone(), request.to_string().into());
        tokio::time::timeout(REQUEST_WITHIN, sent)
            .await
            .map_err(|_| ReaderLost::Disconnected)?
            .map_err(|_| ReaderLost::Disconnected)?;
        self.wanted_messages += messages;
        self.wanted_bytes += bytes;
        self.pulled_at = Instant::now();
        Ok(())
    }
}

impl Drop for Reader {
    /// Deletes the consumer. If this message is lost, the server does so by itself.
    fn drop(&mut self) {
        let subject = format!("$JS.API.CONSUMER.DELETE.{}.{}", self.stream, self.consumer);
        if self.nats.link.is_connected() {
            drop(self.nats.client.publish(subject, Bytes::new()).now_or_never());
        }
    }
}
