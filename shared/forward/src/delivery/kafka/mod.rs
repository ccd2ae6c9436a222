//! Kafka: an idempotent producer for one topic.
//!
//! ```text
//! request ─▶ partition by key ─▶ batches per partition ─▶ one Produce per leader ─▶ answers
//!                                  ▲        │ too large: halved, until the record is found
//!                                  └────────┘ not acknowledged: kept, and sent again as it is
//! ```
//! | answer about a batch | what happens |
//! |---|---|
//! | stored, or stored before | sent |
//! | too large, or invalid | halved until the record is found, which is rejected |
//! | leader changed, too few replicas, no answer | sent again, with the same sequence numbers |
//! | producer unknown | sent again with a new producer number |
//! | any other | an outage: a mistake of settings must not cost records that fit the spool |
//!
//! The client is ours: what has no answer must be sent again unchanged, so that brokers recognise
//! it, and before anything newer. The outbox does that already, while the producers of client
//! crates have a queue, retries and an order of their own (krafka, with forty more crates), are not
//! idempotent (rskafka), or allocate what an answer claims to contain (kafka-protocol).

mod batch;
mod connection;
mod error;
mod producer;
mod sasl;
mod wire;

use std::{io::Write, path::Path};

use sekiwake_json::{Payload, timestamp, write_line};
use sekiwake_record::Kind;

pub(crate) use self::sasl::Credentials;
pub use self::{batch::Compression, sasl::Mechanism};
use self::{
    batch::{NewRecord, Packed, Records, partition_of},
    connection::Access,
    producer::Producer,
};
use super::{
    Value,
    entries::Entry,
    outbox::{MAX_SUSPECTS, Part},
    places::{Place, after, places},
    secrets,
    sending::{Answer, Request, Sink},
};
use crate::{config::destination::Endpoint, metrics::ErrorKind, stream::Tls};

/// A batch has at most this many bytes before compression, unless one record has more: topics take
/// 1,048,588 by default.
const BATCH_BYTES: usize = 900_000;

/// Batches that a topic does not take are not halved below this for all later ones.
const LEAST_BATCH_BYTES: usize = 16 << 10;

/// The most characters of a broker's text in an error.
const MAX_EXCERPT: usize = 200;

/// What a sink for Kafka needs.
pub(crate) struct KafkaSettings {
    pub(crate) kind: Kind,
    pub(crate) value: Value,
    pub(crate) compression: Compression,
    pub(crate) bootstrap: Vec<Endpoint>,
    pub(crate) topic: String,
    /// Set with `tls=true`.
    pub(crate) tls: Option<Tls>,
    /// All certificates have the server name of `tls`, and not each that of its broker's host.
    pub(crate) is_server_named: bool,
    pub(crate) credentials: Option<Credentials>,
}

impl Credentials {
    /// Reads the password, the first line of a file.
    ///
    /// # Errors
    /// The file cannot be read, everybody may read it, or it has no password.
    pub(crate) fn read(mechanism: Mechanism, user: &str, file: &Path) -> Result<Credentials, String> {
        let text = secrets::read(file)?;
        let password = text.lines().next().unwrap_or_default();
        if password.is_empty() {
            return Err(format!("{}: expected a password on the first line", file.display()));
        }
        Ok(Credentials { mechanism, user: user.to_owned(), password: password.to_owned() })
    }
}

/// Why something was not done.
#[derive(Clone, Debug)]
struct Failure {
    kind: ErrorKind,
    why: String,
    /// Another attempt soon may succeed.
    is_passing: bool,
}

/// A topic.
pub(crate) struct KafkaSink {
    encoder: Encoder,
    producer: Producer,
    unfinished: Option<Unfinished>,
    /// The most bytes of a batch.
    batch_bytes: usize,
    /// How often in a row an unfinished request has timed out.
    timed_out: u32,
}

/// A request of which not everything is acknowledged.
#[derive(Default)]
struct Unfinished {
    parts: Vec<Part>,
    batches: Vec<Batch>,
    stored: u64,
    rejected: u64,
    /// Why the last one was rejected.
    why: Option<String>,
}

/// Records of one partition. Batches of a partition are stored in order, one at a time.
struct Batch {
    partition: usize,
    packed: Packed,
    datagrams: Vec<Place>,
    /// It was sent, and whether it was stored is not known.
    is_in_doubt: bool,
    /// The same before the newest attempt.
    was_in_doubt: bool,
}

/// Makes records of datagrams.
struct Encoder {
    kind: Kind,
    value: Value,
    compression: Compression,
    key: Vec<u8>,
    envelope: Vec<u8>,
}

/// A batch that may grow.
#[derive(Default)]
struct Open {
    records: Records,
    datagrams: Vec<Place>,
}

impl KafkaSink {
    pub(crate) fn new(settings: KafkaSettings) -> KafkaSink {
        let KafkaSettings { kind, value, compression, bootstrap, topic, tls, is_server_named, credentials } = settings;
        let server_name = tls.as_ref().filter(|_| is_server_named).map(|tls| tls.server_name.clone());
        let access = Access { tls, server_name, credentials };
        KafkaSink {
            encoder: Encoder { kind, value, compression, key: Vec::new(), envelope: Vec::new() },
            producer: Producer::new(bootstrap, topic, access),
            unfinished: None,
            batch_bytes: BATCH_BYTES,
            timed_out: 0,
        }
    }

    /// Delivers all of these parts, going on with an unfinished request that they begin with.
    fn deliver(&mut self, parts: &[Part]) -> Result<Unfinished, Failure> {
        self.producer.begin();
        let begun = match self.unfinished.take() {
            None => None,
            Some(unfinished) => match after(&unfinished.parts, parts) {
                Some(more) => Some((unfinished, more)),
                None => {
                    // Its records come again in other batches, or not at all: brokers must not
                    // take those for what they may have stored.
                    self.forget(&unfinished);
                    None
                }
            },
        };
        let (mut unfinished, places) = begun.unwrap_or_else(|| (Unfinished::default(), places(parts)));
        if !places.is_empty() {
            let partitions = match self.producer.partitions() {
                Ok(partitions) => partitions,
                Err(failure) => {
                    self.unfinished = Some(unfinished).filter(|unfinished| !unfinished.parts.is_empty());
                    return Err(failure);
                }
            };
            unfinished.batches.extend(self.encoder.batches(parts, &places, partitions, self.batch_bytes));
        }
        unfinished.parts = parts.to_vec();
        self.finish(unfinished)
    }

    fn forget(&mut self, unfinished: &Unfinished) {
        if unfinished.batches.iter().any(|batch| batch.is_in_doubt) {
            self.producer.renew();
        }
    }

    /// Sends batches until none is left. On a failure the rest is kept for the next attempt.
    fn finish(&mut self, mut unfinished: Unfinished) -> Result<Unfinished, Failure> {
        match self.run(&mut unfinished) {
            Ok(()) => {
                self.timed_out = 0;
                Ok(unfinished)
            }
            Err(failure) => {
                if failure.kind == ErrorKind::TimedOut {
                    self.timed_out += 1;
                }
                self.unfinished = Some(unfinished);
                Err(failure)
            }
        }
    }

    fn run(&mut self, unfinished: &mut Unfinished) -> Result<(), Failure> {
        // A link too slow for the batches: an outage usually ends before.
        if self.timed_out >= 3 {
            self.timed_out = 0;
            self.batch_bytes = (self.batch_bytes / 2).max(LEAST_BATCH_BYTES);
            self.encode_again(unfinished)?;
        }
        let mut attempts = producer::Attempts::begin();
        while !unfinished.batches.is_empty() {
            let left = unfinished.batches.len();
            let partitions = self.producer.partitions()?;
            if unfinished.batches.iter().any(|batch| batch.partition >= partitions) {
                // The topic was made again.
                self.encode_again(unfinished)?;
            }
            let round = self.producer.round(&mut unfinished.batches);
            for index in round.stored.into_iter().rev() {
                let batch = unfinished.batches.remove(index);
                unfinished.stored += batch.datagrams.len() as u64;
            }
            // Indexes are those of batches after the stored ones are taken out.
            for (place, error) in round.rejected {
                self.reject(unfinished, place, error);
            }
            if unfinished.stored == 0 && unfinished.rejected >= MAX_SUSPECTS as u64 {
                let why = format!("everything is rejected: {}", unfinished.why.take().unwrap_or_default());
                // All of it is tried again: it may be the settings.
                self.forget(unfinished);
                *unfinished = Unfinished::default();
                return Err(Failure { kind: ErrorKind::Answer, why, is_passing: false });
            }
            match round.failure {
                None => attempts = producer::Attempts::begin(),
                Some(_) if unfinished.batches.len() < left => attempts = producer::Attempts::begin(),
                Some(failure) => attempts.pause(failure)?,
            }
        }
        Ok(())
    }

    /// A batch that the topic does not take: its halves are sent, or its one datagram is given up.
    fn reject(&mut self, unfinished: &mut Unfinished, first: Place, error: i16) {
        let Some(index) = unfinished.batches.iter().position(|batch| batch.datagrams.first() == Some(&first)) else {
            return;
        };
        let batch = unfinished.batches.remove(index);
        if batch.is_in_doubt {
            self.producer.renew();
        }
        if batch.datagrams.len() <= 1 {
            unfinished.rejected += 1;
            unfinished.why = Some(error::describe(error));
            return;
        }
        if batch.packed.uncompressed >= 2 * LEAST_BATCH_BYTES && error == error::MESSAGE_TOO_LARGE {
            self.batch_bytes = self.batch_bytes.min(batch.packed.uncompressed / 2).max(LEAST_BATCH_BYTES);
        }
        let (one, other) = batch.datagrams.split_at(batch.datagrams.len() / 2);
        for half in [other, one] {
            let halves = self.encoder.one_partition(&unfinished.parts, half, batch.partition, self.batch_bytes);
            unfinished.batches.splice(index..index, halves);
        }
    }

    /// Makes new batches of what is left.
    fn encode_again(&mut self, unfinished: &mut Unfinished) -> Result<(), Failure> {
        let partitions = self.producer.partitions()?;
        if unfinished.batches.iter().any(|batch| batch.is_in_doubt) {
            self.producer.renew();
        }
        let mut left: Vec<Place> =
            unfinished.batches.iter().flat_map(|batch| batch.datagrams.iter().copied()).collect();
        left.sort_unstable();
        unfinished.batches = self.encoder.batches(&unfinished.parts, &left, partitions, self.batch_bytes);
        Ok(())
    }
}

impl Sink for KafkaSink {
    fn send(&mut self, request: &Request) -> Answer {
        match self.deliver(&request.parts) {
            Ok(done) if done.stored == 0 && done.rejected > 0 => Answer::Rejected { why: done.why.unwrap_or_default() },
            Ok(done) => Answer::Accepted { rejected: done.rejected, why: done.why },
            Err(Failure { kind, why, is_passing: _ }) => Answer::Failed { kind, why, after: None, is_too_slow: false },
        }
    }
}

impl Encoder {
    /// Batches of these datagrams, those of each partition in order.
    fn batches(&mut self, parts: &[Part], places: &[Place], partitions: usize, batch_bytes: usize) -> Vec<Batch> {
        let mut open: Vec<Open> = (0..partitions).map(|_| Open::default()).collect();
        let mut batches = Vec::new();
        for &place in places {
            let Some(entry) = parts.get(place.part).and_then(|part| part.entries.get(place.index)) else { continue };
            self.key.clear();
            // Writing to memory does not fail.
            let _ = write!(self.key, "{}", entry.record.source);
            let partition = partition_of(&self.key, partitions);
            let Some(filling) = open.get_mut(partition) else { continue };
            self.push(&entry, place, partition, filling, batch_bytes, &mut batches);
        }
        for (partition, filled) in open.into_iter().enumerate() {
            batches.extend(self.close(filled, partition));
        }
        batches
    }

    /// The same for datagrams of one partition.
    fn one_partition(&mut self, parts: &[Part], places: &[Place], partition: usize, batch_bytes: usize) -> Vec<Batch> {
        let mut filling = Open::default();
        let mut batches = Vec::new();
        for &place in places {
            let Some(entry) = parts.get(place.part).and_then(|part| part.entries.get(place.index)) else { continue };
            self.key.clear();
            let _ = write!(self.key, "{}", entry.record.source);
            self.push(&entry, place, partition, &mut filling, batch_bytes, &mut batches);
        }
        batches.extend(self.close(filling, partition));
        batches
    }

    /// Adds the records of a datagram, all to one batch.
    fn push(
        &mut self,
        entry: &Entry<'_>,
        place: Place,
        partition: usize,
        open: &mut Open,
        batch_bytes: usize,
        batches: &mut Vec<Batch>,
    ) {
        let record = &entry.record;
        let roughly = match self.value {
            Value::Raw => record.payload.len(),
            Value::Json => 2 * record.payload.len(),
            Value::Decoded => entry.rows().map(|row| row.len() + 128).sum(),
        };
        if !open.records.is_empty() && open.records.len() + roughly + 512 > batch_bytes {
            batches.extend(self.close(std::mem::take(open), partition));
        }
        let captured_at = timestamp(record.captured_at_ns);
        let headers = [
            ("kind", self.kind.as_str().as_bytes()),
            ("format", record.format.as_str().as_bytes()),
            ("captured_at", captured_at.as_bytes()),
        ];
        let at_ms = (record.captured_at_ns / 1_000_000) as i64;
        let new = |value| NewRecord { at_ms, key: &self.key, value, headers };
        match self.value {
            Value::Raw => open.records.push(&new(record.payload)),
            Value::Json => {
                self.envelope.clear();
                let _ = write_line(&mut self.envelope, Some(self.kind), record, Payload::Included);
                open.records.push(&new(self.envelope.trim_ascii_end()));
            }
            Value::Decoded => entry.rows().for_each(|row| open.records.push(&new(row))),
        }
        open.datagrams.push(place);
    }

    fn close(&self, open: Open, partition: usize) -> Option<Batch> {
        let Open { records, datagrams } = open;
        (!records.is_empty()).then(|| Batch {
            partition,
            packed: records.pack(self.compression),
            datagrams,
            is_in_doubt: false,
            was_in_doubt: false,
        })
    }
}

/// Reads an answer as each of those that brokers give, for the fuzz target.
pub(super) fn read_answers(answer: &[u8]) {
    if let Some(metadata) = wire::Metadata::read(answer, "logs") {
        assert!(metadata.leaders.len() <= wire::MAX_PARTITIONS && metadata.brokers.len() <= answer.len());
    }
    assert!(wire::read_produced(answer).is_none_or(|partitions| partitions.len() <= answer.len()));
    if let Some(Err(mechanisms)) = wire::read_handshake(answer) {
        assert!(mechanisms.len() <= 2 * answer.len());
    }
    let _ = (wire::ProducerId::read(answer), wire::read_authenticated(answer));
    sasl::read_answers(answer);
}

/// The beginning of a text of the other side, on one line.
fn excerpt(text: &str) -> String {
    let line = text.trim().lines().next().unwrap_or_default();
    line.chars().take(MAX_EXCERPT).flat_map(char::escape_debug).collect()
}
