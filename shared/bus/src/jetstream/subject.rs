//! Publishes to a subject that a stream of the site takes.
//!
//! ```text
//! Outgoing ─▶ lanes ─▶ in flight, one per lane (or more) ─▶ acknowledgement of the stream
//!                        │                        ▲
//!                        └ no answer, no leader, new connection: sent again with its id
//! ```
//! One message per lane, because servers do not keep the order of a pipeline: during an election,
//! or in a stream that is full, a message can be lost and the next one be stored. So more than one
//! is for those who prefer speed. Lanes do not wait for each other.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use async_nats::{HeaderMap, Message, StatusCode, Subscriber, client::Request, jetstream::ErrorCode};
use futures_util::{FutureExt, StreamExt};
use sekiwake_runtime::Hangups;
use serde_json::{Value, json};

use super::{
    connection::{Connection, Nats},
    settings::{JetStreamSettings, NatsAccess},
    streams::is_own_stream,
};
use crate::{BusError, NotPublished, NotPublishedCause, Outgoing, Published, SubjectPublisher};

/// The most messages in flight: few enough for the queue of the connection, which holds 2048.
const MAX_IN_FLIGHT: usize = 512;
/// The most bytes in flight, unless one message has more.
const MAX_BYTES_IN_FLIGHT: usize = 4 << 20;
/// A message without an answer is sent again after this time.
const ACKNOWLEDGE_WITHIN: Duration = Duration::from_secs(2);
/// One that nobody takes at the moment, after this.
const RETRY_AFTER: Duration = Duration::from_millis(100);
/// How long nothing is stored, and servers say that nobody takes it, before that is a failure.
const NOBODY_FOR: Duration = Duration::from_secs(2);
/// How long the first connection is waited for: long enough for a second server.
const CONNECTED_WITHIN: Duration = Duration::from_secs(3);
/// The same for another one.
const CONNECTED_AGAIN_WITHIN: Duration = Duration::from_secs(1);
/// How long servers may take to say which streams they have.
const STREAMS_WITHIN: Duration = Duration::from_secs(2);
/// How long the connection runs between messages.
const TENDED_FOR: Duration = Duration::from_millis(2);
/// The header by which a stream recognises a message.
const MESSAGE_ID: &str = "Nats-Msg-Id";
/// Bytes of the first and the last line of a header, and of the separators of a field.
const HEADER_BYTES: usize = "NATS/1.0\r\n\r\n".len();
const FIELD_BYTES: usize = ": \r\n".len();
/// The most characters of a server's text in an error.
const MAX_EXCERPT: usize = 200;

/// A connection whose messages all have the same subject.
pub(crate) struct JetStreamSubject {
    connection: Connection,
    publishing: Publishing,
}

struct Publishing {
    subject: String,
    per_lane: usize,
    inbox: String,
    answers: Subscriber,
    /// The number of the next message that is sent for the first time.
    next_number: u64,
    /// Connections that have been seen.
    connects: u64,
    /// The stream that takes the subject is not the bus's own.
    is_checked: bool,
}

impl JetStreamSubject {
    /// Begins to connect. The servers may be started later. At most `per_lane` messages of a lane
    /// are in flight. Each of `hangups` makes it connect again, with the secrets and certificates
    /// that the files have then.
    ///
    /// # Errors
    /// No descriptor or thread is left, or files cannot be used.
    pub(crate) fn open(
        access: NatsAccess,
        hangups: &Hangups,
        subject: &str,
        per_lane: usize,
    ) -> Result<JetStreamSubject, BusError> {
        let connection = Connection::open(&JetStreamSettings::without_streams(access), hangups, "delivery")?;
        let client = &connection.nats().client;
        let inbox = client.new_inbox();
        let failed = |source: async_nats::SubscribeError| BusError::Io { role: "delivery", source: source.into() };
        let answers = connection.block_on(client.subscribe(format!("{inbox}.*"))).map_err(failed)?;
        let subject = subject.to_owned();
        let publishing =
            Publishing { subject, per_lane, inbox, answers, next_number: 0, connects: 0, is_checked: false };
        Ok(JetStreamSubject { connection, publishing })
    }
}

impl SubjectPublisher for JetStreamSubject {
    fn publish(&mut self, messages: &mut [Outgoing], within: Duration) -> Result<(), NotPublished> {
        let nats = self.connection.nats().clone();
        let deadline = Instant::now() + within;
        self.connection.block_on(self.publishing.publish(&nats, messages, deadline))
    }

    fn tend(&mut self) {
        // The timer belongs to the runtime that it is made in.
        self.connection.block_on(async { tokio::time::sleep(TENDED_FOR).await });
    }
}

impl Publishing {
    async fn publish(&mut self, nats: &Nats, messages: &mut [Outgoing], deadline: Instant) -> Result<(), NotPublished> {
        // Answers to messages that an earlier call gave up: those are sent again, and recognised.
        while let Some(Some(_)) = self.answers.next().now_or_never() {}
        let begun_at = Instant::now();
        let mut flights = Flights::new(messages, self.per_lane, self.next_number);
        let mut nobody_since = None;
        while !flights.is_empty() {
            let now = Instant::now();
            if !nats.link.is_connected() {
                let within = if self.connects == 0 { CONNECTED_WITHIN } else { CONNECTED_AGAIN_WITHIN };
                if now >= deadline.min(begun_at + within) {
                    return Err(unreachable(nats));
                }
                let changed = nats.link.changed();
                drop(tokio::time::timeout(RETRY_AFTER, changed).await);
                continue;
            }
            self.follow_connection(nats, &mut flights, now).await?;
            if let Some(error) = nats.link.refusal(&format!("\"{}\"", self.subject), begun_at) {
                return Err(refused(error));
            }
            if now >= deadline {
                let late = || NotPublished { cause: NotPublishedCause::Late, why: "no answer in time".to_owned() };
                return Err(self.who_takes_it(nats).await.err().unwrap_or_else(late));
            }
            self.send(nats, &mut flights, messages, now).await;
            self.next_number = flights.next_number;
            let wait = flights.due_at().map_or(RETRY_AFTER, |at| at.saturating_duration_since(now));
            let answer = tokio::select! {
                answer = self.answers.next() => answer,
                () = nats.link.changed() => None,
                () = tokio::time::sleep(wait.min(deadline.saturating_duration_since(now))) => None,
            };
            let mut answer = answer;
            while let Some(message) = answer.take() {
                match read_answer(&message) {
                    (Some(number), Answer::Outcome(outcome)) => {
                        flights.settle(number, outcome, messages);
                        nobody_since = None;
                    }
                    (Some(number), Answer::Later(why)) => {
                        let now = Instant::now();
                        flights.retry(number, now + RETRY_AFTER);
                        if now.duration_since(*nobody_since.get_or_insert(now)) >= NOBODY_FOR {
                            return Err(self.who_takes_it(nats).await.err().unwrap_or_else(|| refused(why)));
                        }
                    }
                    (_, Answer::Refused(why)) => return Err(refused(why)),
                    (None, _) => {}
                }
                answer = self.answers.next().now_or_never().flatten();
            }
        }
        Ok(())
    }

    /// After a new connection, everything in flight is sent again.
    async fn follow_connection(
        &mut self,
        nats: &Nats,
        flights: &mut Flights,
        now: Instant,
    ) -> Result<(), NotPublished> {
        let connects = nats.link.connects();
        if connects != self.connects {
            self.connects = connects;
            self.is_checked = false;
            flights.send_all_again(now);
        }
        if !self.is_checked {
            // Records in the bus's own streams would be taken for batches.
            if self.subject.starts_with("sekiwake.") {
                self.who_takes_it(nats).await?;
            }
            self.is_checked = true;
        }
        Ok(())
    }

    async fn send(&self, nats: &Nats, flights: &mut Flights, messages: &mut [Outgoing], now: Instant) {
        let max_payload = nats.client.max_payload();
        while let Some(Send { number, index }) = flights.next(now, messages) {
            let message = &messages[index];
            let size = size(message);
            if size > max_payload {
                let why = format!("{size} bytes, more than max_payload of the NATS server ({max_payload})");
                flights.settle(number, Published::Rejected(why), messages);
                continue;
            }
            let mut headers = HeaderMap::new();
            headers.insert(MESSAGE_ID, message.id.as_str());
            for (name, value) in &message.headers {
                headers.insert(*name, value.as_str());
            }
            let reply = format!("{}.{number}", self.inbox);
            let payload = message.payload.clone().into();
            let sent = nats.client.publish_with_reply_and_headers(self.subject.clone(), reply, headers, payload);
            // The queue of the connection is full only if that is about to end.
            drop(tokio::time::timeout(Duration::from_secs(1), sent).await);
        }
    }

    /// Finds out which streams take the subject.
    ///
    /// # Errors
    /// None does, or one of the bus does.
    async fn who_takes_it(&self, nats: &Nats) -> Result<(), NotPublished> {
        let request = Request::new().payload(json!({ "subject": self.subject }).to_string().into());
        let asked = nats.client.send_request("$JS.API.STREAM.NAMES", request.timeout(Some(STREAMS_WITHIN))).await;
        let Ok(answer) = asked else {
            // Perhaps it may not be asked.
            return Ok(());
        };
        if answer.status == Some(StatusCode::NO_RESPONDERS) {
            return Err(refused(format!("the NATS server {} has no JetStream for this account", nats.server())));
        }
        match streams(&answer.payload) {
            None => Ok(()),
            Some(names) if names.is_empty() => {
                let subject = &self.subject;
                let name: String = subject.chars().map(|letter| if letter == '.' { '_' } else { letter }).collect();
                Err(refused(format!(
                    "no stream takes the subject {subject}; to create one: nats stream add {} --subjects='{subject}' \
                     --defaults",
                    name.to_uppercase()
                )))
            }
            Some(names) => match names.into_iter().find(|name| is_own_stream(name)) {
                Some(own) => {
                    let why = format!("the stream {own}, which takes the subject {}, is that of the bus", self.subject);
                    Err(refused(why))
                }
                None => Ok(()),
            },
        }
    }
}

fn refused(why: String) -> NotPublished {
    NotPublished { cause: NotPublishedCause::Refused, why }
}

fn unreachable(nats: &Nats) -> NotPublished {
    let error = nats.link.recent_error(2 * CONNECTED_WITHIN).map(|error| format!(" ({error})")).unwrap_or_default();
    let why = format!("no NATS server of {} is connected{error}", nats.settings.servers());
    NotPublished { cause: NotPublishedCause::Unreachable, why }
}

/// The bytes of a message as servers count them.
fn size(message: &Outgoing) -> usize {
    let fields = message.headers.iter().map(|(name, value)| name.len() + value.len() + FIELD_BYTES).sum::<usize>();
    HEADER_BYTES + fields + MESSAGE_ID.len() + message.id.len() + FIELD_BYTES + message.payload.len()
}

/// What an answer says about its message.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Answer {
    Outcome(Published),
    /// It is not stored now, and soon perhaps.
    Later(String),
    /// It is not stored before something is changed.
    Refused(String),
}

fn read_answer(message: &Message) -> (Option<u64>, Answer) {
    let number = message.subject.rsplit('.').next().and_then(|number| number.parse().ok());
    let answer = match message.status {
        Some(StatusCode::NO_RESPONDERS) => Answer::Later("no stream with a leader takes the subject".to_owned()),
        _ => judge(&message.payload),
    };
    (number, answer)
}

/// Reads an acknowledgement: `{"stream": …, "seq": …}` or `{"error": …}`.
pub(super) fn read(answer: &[u8]) {
    let _ = (judge(answer), streams(answer));
}

fn judge(answer: &[u8]) -> Answer {
    let not_jetstream =
        || Answer::Refused("the answer is not one of JetStream: who answers on the subject?".to_owned());
    let Ok(answer) = serde_json::from_slice::<Value>(answer) else { return not_jetstream() };
    let Some(error) = answer.get("error") else {
        let is_stored = answer.get("stream").is_some() && answer.get("seq").and_then(Value::as_u64).is_some();
        return if is_stored { Answer::Outcome(Published::Stored) } else { not_jetstream() };
    };
    let code: Option<ErrorCode> = error.get("err_code").and_then(|code| serde_json::from_value(code.clone()).ok());
    let status = error.get("code").and_then(Value::as_u64).unwrap_or(0);
    let text = error.get("description").and_then(Value::as_str).unwrap_or("unknown error");
    let text: String = text.chars().take(MAX_EXCERPT).flat_map(char::escape_debug).collect();
    match code {
        Some(ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM) => {
            Answer::Outcome(Published::Rejected(format!("{text}, see max_msg_size of the stream")))
        }
        Some(ErrorCode::STREAM_HEADER_EXCEEDS_MAXIMUM) => Answer::Outcome(Published::Rejected(text)),
        // The message is being stored already.
        Some(ErrorCode::STREAM_DUPLICATE_MESSAGE_CONFLICT) => Answer::Later(text),
        // No leader, no room for the moment.
        _ if status == 503 => Answer::Later(text),
        _ => Answer::Refused(text),
    }
}

/// The streams in an answer of the API, `None` if it has none because of an error.
fn streams(answer: &[u8]) -> Option<Vec<String>> {
    let answer: Value = serde_json::from_slice(answer).ok()?;
    if answer.get("error").is_some() {
        return None;
    }
    let names = answer.get("streams").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    Some(names.iter().filter_map(|name| name.as_str().map(str::to_owned)).collect())
}

/// What is to be sent.
struct Send {
    number: u64,
    index: usize,
}

/// A message in flight.
struct Flight {
    index: usize,
    send_at: Instant,
}

/// Which messages wait, and which are in flight. Logic without I/O.
struct Flights {
    lanes: BTreeMap<usize, Lane>,
    /// Lanes whose next message may be sent.
    ready: VecDeque<usize>,
    per_lane: usize,
    flying: BTreeMap<u64, Flight>,
    next_number: u64,
    bytes: usize,
    /// No message in flight is to be sent again before this.
    due_at: Option<Instant>,
}

/// Messages in order.
#[derive(Default)]
struct Lane {
    waiting: VecDeque<usize>,
    flying: usize,
}

impl Flights {
    /// Of the messages that have no outcome.
    fn new(messages: &[Outgoing], per_lane: usize, next_number: u64) -> Flights {
        let mut lanes: BTreeMap<usize, Lane> = BTreeMap::new();
        let mut ready = VecDeque::new();
        for (index, message) in messages.iter().enumerate().filter(|(_, message)| message.outcome.is_none()) {
            let lane = lanes.entry(message.lane).or_default();
            if lane.waiting.is_empty() {
                ready.push_back(message.lane);
            }
            lane.waiting.push_back(index);
        }
        Flights { lanes, ready, per_lane, flying: BTreeMap::new(), next_number, bytes: 0, due_at: None }
    }

    fn is_empty(&self) -> bool {
        self.ready.is_empty() && self.flying.is_empty()
    }

    fn due_at(&self) -> Option<Instant> {
        self.due_at
    }

    /// The next message to be sent: one that is due again, or the first one of a lane.
    fn next(&mut self, now: Instant, messages: &[Outgoing]) -> Option<Send> {
        let send_at = now + ACKNOWLEDGE_WITHIN;
        if self.due_at.is_some_and(|at| at <= now) {
            if let Some((&number, flight)) = self.flying.iter_mut().find(|(_, flight)| flight.send_at <= now) {
                flight.send_at = send_at;
                return Some(Send { number, index: flight.index });
            }
            self.due_at = self.flying.values().map(|flight| flight.send_at).min();
        }
        let number_of_lane = *self.ready.front()?;
        let lane = self.lanes.get_mut(&number_of_lane)?;
        let index = *lane.waiting.front()?;
        let bytes = size(&messages[index]);
        let is_full = self.flying.len() >= MAX_IN_FLIGHT || self.bytes + bytes > MAX_BYTES_IN_FLIGHT;
        if is_full && !self.flying.is_empty() {
            return None;
        }
        self.ready.pop_front();
        lane.waiting.pop_front();
        lane.flying += 1;
        if lane.flying < self.per_lane && !lane.waiting.is_empty() {
            // After the other lanes.
            self.ready.push_back(number_of_lane);
        }
        self.bytes += bytes;
        let number = self.next_number;
        self.next_number += 1;
        self.flying.insert(number, Flight { index, send_at });
        self.due_at = Some(self.due_at.map_or(send_at, |at| at.min(send_at)));
        Some(Send { number, index })
    }

    /// The outcome of a message: another one of its lane may be sent.
    fn settle(&mut self, number: u64, outcome: Published, messages: &mut [Outgoing]) {
        let Some(Flight { index, .. }) = self.flying.remove(&number) else { return };
        let message = &mut messages[index];
        self.bytes -= size(message);
        message.outcome = Some(outcome);
        let Some(lane) = self.lanes.get_mut(&message.lane) else { return };
        let was_full = lane.flying == self.per_lane;
        lane.flying -= 1;
        if was_full && !lane.waiting.is_empty() {
            self.ready.push_back(message.lane);
        }
    }

    /// Sends a message again, not before this.
    fn retry(&mut self, number: u64, at: Instant) {
        if let Some(flight) = self.flying.get_mut(&number) {
            flight.send_at = flight.send_at.min(at);
            self.due_at = Some(self.due_at.map_or(at, |due| due.min(at)));
        }
    }

    /// What was sent on another connection may be lost.
    fn send_all_again(&mut self, now: Instant) {
        for flight in self.flying.values_mut() {
            flight.send_at = now;
            self.due_at = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(lanes: &[usize]) -> Vec<Outgoing> {
        let message = |(number, &lane): (usize, &usize)| Outgoing {
            lane,
            id: number.to_string(),
            headers: Vec::new(),
            payload: Vec::new(),
            outcome: None,
        };
        lanes.iter().enumerate().map(message).collect()
    }

    fn sent(flights: &mut Flights, messages: &[Outgoing], now: Instant) -> Vec<(u64, usize)> {
        std::iter::from_fn(|| flights.next(now, messages)).map(|send| (send.number, send.index)).collect()
    }

    #[test]
    fn lane_has_one_message_in_flight_until_its_outcome() {
        let now = Instant::now();
        let mut messages = messages(&[0, 0, 1, 0, 1]);
        let mut flights = Flights::new(&messages, 1, 7);
        assert_eq!(sent(&mut flights, &messages, now), [(7, 0), (8, 2)]);
        flights.settle(9, Published::Stored, &mut messages);
        assert_eq!(sent(&mut flights, &messages, now), []);
        flights.settle(7, Published::Rejected("too large".to_owned()), &mut messages);
        assert_eq!(sent(&mut flights, &messages, now), [(9, 1)]);
        for number in [8, 9] {
            flights.settle(number, Published::Stored, &mut messages);
        }
        assert_eq!(sent(&mut flights, &messages, now), [(10, 4), (11, 3)]);
        flights.settle(10, Published::Stored, &mut messages);
        // What has no outcome is left to the next attempt.
        let mut flights = Flights::new(&messages, 1, 12);
        assert_eq!(sent(&mut flights, &messages, now), [(12, 3)]);
        flights.settle(12, Published::Stored, &mut messages);
        assert!(flights.is_empty() && flights.bytes == 0 && messages.iter().all(|message| message.outcome.is_some()));
    }

    #[test]
    fn lane_may_have_several_messages_in_flight() {
        let now = Instant::now();
        let mut messages = messages(&[0, 0, 0, 0, 1]);
        let mut flights = Flights::new(&messages, 2, 0);
        assert_eq!(sent(&mut flights, &messages, now), [(0, 0), (1, 4), (2, 1)]);
        flights.settle(2, Published::Stored, &mut messages);
        assert_eq!(sent(&mut flights, &messages, now), [(3, 2)]);
        flights.send_all_again(now);
        assert_eq!(sent(&mut flights, &messages, now), [(0, 0), (1, 4), (3, 2)], "in order");
        for number in [0, 1, 3] {
            flights.settle(number, Published::Stored, &mut messages);
        }
        assert_eq!(sent(&mut flights, &messages, now), [(4, 3)]);
        flights.settle(4, Published::Stored, &mut messages);
        assert!(flights.is_empty());
    }

    #[test]
    fn message_without_an_answer_is_sent_again_with_its_number() {
        let now = Instant::now();
        let messages = messages(&[0, 1]);
        let mut flights = Flights::new(&messages, 1, 0);
        assert_eq!(sent(&mut flights, &messages, now), [(0, 0), (1, 1)]);
        flights.retry(1, now + RETRY_AFTER);
        assert_eq!(flights.due_at(), Some(now + RETRY_AFTER));
        assert_eq!(sent(&mut flights, &messages, now + RETRY_AFTER), [(1, 1)]);
        assert_eq!(sent(&mut flights, &messages, now + ACKNOWLEDGE_WITHIN), [(0, 0)]);
        flights.send_all_again(now + ACKNOWLEDGE_WITHIN);
        assert_eq!(sent(&mut flights, &messages, now + ACKNOWLEDGE_WITHIN), [(0, 0), (1, 1)]);
    }

    #[test]
    fn messages_in_flight_are_bounded() {
        let now = Instant::now();
        let mut messages = messages(&(0..2 * MAX_IN_FLIGHT).collect::<Vec<_>>());
        let mut flights = Flights::new(&messages, 1, 0);
        assert_eq!(sent(&mut flights, &messages, now).len(), MAX_IN_FLIGHT);
        messages.truncate(3);
        messages.iter_mut().for_each(|message| message.payload = vec![0; 3 << 20]);
        let mut flights = Flights::new(&messages, 1, 0);
        assert_eq!(sent(&mut flights, &messages, now), [(0, 0)]);
        flights.settle(0, Published::Stored, &mut messages);
        assert_eq!(sent(&mut flights, &messages, now), [(1, 1)]);
    }

    #[test]
    fn answers_are_judged() {
        let stored = Answer::Outcome(Published::Stored);
        assert_eq!(judge(br#"{"stream":"LOGS","seq":7}"#), stored);
        assert_eq!(judge(br#"{"stream":"LOGS","seq":7,"duplicate":true}"#), stored);
        let error = |code: u16, err_code: u16| {
            judge(format!(r#"{{"error":{{"code":{code},"err_code":{err_code},"description":"text"}}}}"#).as_bytes())
        };
        assert!(matches!(error(400, 10054), Answer::Outcome(Published::Rejected(_))));
        assert!(matches!(error(503, 10077), Answer::Later(_)));
        assert!(matches!(error(409, 10158), Answer::Later(_)));
        assert!(matches!(error(400, 10071), Answer::Refused(_)));
        for other in ["", "[]", "7", "{}", r#"{"seq":1}"#] {
            assert!(matches!(judge(other.as_bytes()), Answer::Refused(_)), "{other}");
        }
    }

    #[test]
    fn streams_of_an_answer() {
        assert_eq!(streams(br#"{"total":1,"streams":["A"]}"#), Some(vec!["A".to_owned()]));
        assert_eq!(streams(br#"{"total":0,"streams":null}"#), Some(Vec::new()));
        assert_eq!(streams(br#"{"error":{"code":503}}"#), None);
    }
}
