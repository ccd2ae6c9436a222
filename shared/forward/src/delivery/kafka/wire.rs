//! Requests and answers of the Kafka protocol, as far as a producer needs them.
//!
//! ```text
//! frame   length 4 | request or answer             all numbers are big endian
//! request key 2 | version 2 | correlation 4 | client id, string | body
//! answer  correlation 4 | body                      InitProducerId has a byte 0 before each body
//! string  length 2 (-1: null) | text        bytes  length 4 (-1: null) | bytes        array  count 4 | items
//! ```
//! Each request has one version, which brokers since 2.5 have in common: Produce 7 is the first one
//! with zstd, and the last one that some compatible brokers know; InitProducerId 3 is the first one
//! that all of them answer with a number.

use std::collections::BTreeMap;

/// The name that brokers show for this client.
const CLIENT_ID: &str = "sekiwake";

/// All in-sync replicas.
const ACKS_ALL: i16 = -1;

/// A request and its version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Api {
    Produce,
    Metadata,
    SaslHandshake,
    InitProducerId,
    SaslAuthenticate,
}

impl Api {
    const fn key_and_version(self) -> (i16, i16) {
        match self {
            Api::Produce => (0, 7),
            Api::Metadata => (3, 4),
            Api::SaslHandshake => (17, 1),
            Api::InitProducerId => (22, 3),
            Api::SaslAuthenticate => (36, 0),
        }
    }
}

/// Writes one request.
pub(super) struct Writer<'a>(&'a mut Vec<u8>);

impl<'a> Writer<'a> {
    /// Begins a request.
    pub(super) fn begin(out: &'a mut Vec<u8>, api: Api, correlation: i32) -> Writer<'a> {
        out.clear();
        let (key, version) = api.key_and_version();
        let mut writer = Writer(out);
        // The length, which `finish` sets.
        writer.int32(0);
        writer.int16(key);
        writer.int16(version);
        writer.int32(correlation);
        writer.string(CLIENT_ID);
        writer
    }

    pub(super) fn finish(self) {
        let length = (self.0.len() - 4) as u32;
        self.0[..4].copy_from_slice(&length.to_be_bytes());
    }

    fn int8(&mut self, value: i8) {
        self.0.extend_from_slice(&value.to_be_bytes());
    }

    fn int16(&mut self, value: i16) {
        self.0.extend_from_slice(&value.to_be_bytes());
    }

    fn int32(&mut self, value: i32) {
        self.0.extend_from_slice(&value.to_be_bytes());
    }

    fn int64(&mut self, value: i64) {
        self.0.extend_from_slice(&value.to_be_bytes());
    }

    fn null_string(&mut self) {
        self.int16(-1);
    }

    /// Names of topics, mechanisms and users have at most some hundred bytes.
    fn string(&mut self, text: &str) {
        self.int16(text.len() as i16);
        self.0.extend_from_slice(text.as_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.int32(bytes.len() as i32);
        self.0.extend_from_slice(bytes);
    }

    /// Asks for the partitions of a topic, which is not created.
    pub(super) fn metadata(mut self, topic: &str) {
        self.int32(1);
        self.string(topic);
        self.int8(0);
        self.finish();
    }

    /// Asks for the number of an idempotent producer without transactions. This version has tagged
    /// fields after the head and at the end, and another null.
    pub(super) fn init_producer_id(mut self) {
        self.int8(0);
        self.int8(0);
        self.int32(i32::MAX);
        self.int64(-1);
        self.int16(-1);
        self.int8(0);
        self.finish();
    }

    pub(super) fn sasl_handshake(mut self, mechanism: &str) {
        self.string(mechanism);
        self.finish();
    }

    pub(super) fn sasl_authenticate(mut self, message: &[u8]) {
        self.bytes(message);
        self.finish();
    }

    /// Begins a request that stores record batches, one per partition.
    pub(super) fn produce(mut self, topic: &str, timeout_ms: i32, partitions: usize) -> Writer<'a> {
        self.null_string();
        self.int16(ACKS_ALL);
        self.int32(timeout_ms);
        self.int32(1);
        self.string(topic);
        self.int32(partitions as i32);
        self
    }

    /// A record batch: its head and its records.
    pub(super) fn batch(&mut self, partition: i32, head: &[u8], records: &[u8]) {
        self.int32(partition);
        self.int32((head.len() + records.len()) as i32);
        self.0.extend_from_slice(head);
        self.0.extend_from_slice(records);
    }
}

/// Reads one answer. `None`: it is malformed.
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader(bytes)
    }

    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    fn int8(&mut self) -> Option<i8> {
        self.take().map(i8::from_be_bytes)
    }

    fn int16(&mut self) -> Option<i16> {
        self.take().map(i16::from_be_bytes)
    }

    pub(super) fn int32(&mut self) -> Option<i32> {
        self.take().map(i32::from_be_bytes)
    }

    fn int64(&mut self) -> Option<i64> {
        self.take().map(i64::from_be_bytes)
    }

    fn slice(&mut self, length: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(head)
    }

    /// A string; empty if it is null.
    fn string(&mut self) -> Option<&'a str> {
        match self.int16()? {
            -1 => Some(""),
            length => str::from_utf8(self.slice(usize::try_from(length).ok()?)?).ok(),
        }
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        match self.int32()? {
            -1 => Some(&[]),
            length => self.slice(usize::try_from(length).ok()?),
        }
    }

    /// The number of items. Each has at least one byte, so that a loop over them ends.
    fn count(&mut self) -> Option<usize> {
        match self.int32()? {
            -1 => Some(0),
            count => usize::try_from(count).ok().filter(|&count| count <= self.0.len()),
        }
    }
}

/// A topic and its brokers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Metadata {
    pub(super) brokers: BTreeMap<i32, BrokerAddress>,
    /// What is wrong with the topic, 0 if nothing.
    pub(super) error: i16,
    /// The leaders of the partitions, by number; -1 without one.
    pub(super) leaders: Vec<i32>,
}

/// Where a broker is, as it says itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BrokerAddress {
    pub(super) host: String,
    pub(super) port: u16,
}

/// A topic with more partitions is not used.
pub(super) const MAX_PARTITIONS: usize = 1 << 14;

impl Metadata {
    /// The answer about one topic.
    pub(super) fn read(answer: &[u8], topic: &str) -> Option<Metadata> {
        let mut reader = Reader::new(answer);
        reader.int32()?;
        let mut metadata = Metadata { error: super::error::UNKNOWN_TOPIC_OR_PARTITION, ..Metadata::default() };
        for _ in 0..reader.count()? {
            let id = reader.int32()?;
            let host = reader.string()?.to_owned();
            let port = u16::try_from(reader.int32()?).ok()?;
            reader.string()?;
            metadata.brokers.insert(id, BrokerAddress { host, port });
        }
        reader.string()?;
        reader.int32()?;
        for _ in 0..reader.count()? {
            let error = reader.int16()?;
            let is_asked_for = reader.string()? == topic;
            reader.int8()?;
            let mut leaders = BTreeMap::new();
            for _ in 0..reader.count()? {
                reader.int16()?;
                let partition = usize::try_from(reader.int32()?).ok()?;
                leaders.insert(partition, reader.int32()?);
                for _ in 0..2 {
                    for _ in 0..reader.count()? {
                        reader.int32()?;
                    }
                }
            }
            // Partitions are numbered from 0.
            let last = leaders.last_key_value().map(|(&partition, _)| partition);
            if is_asked_for && last.is_none_or(|last| last < MAX_PARTITIONS) {
                metadata.error = error;
                let count = last.map_or(0, |last| last + 1);
                metadata.leaders = (0..count).map(|partition| leaders.get(&partition).copied().unwrap_or(-1)).collect();
            }
        }
        Some(metadata)
    }
}

/// The number of an idempotent producer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ProducerId {
    pub(super) id: i64,
    pub(super) epoch: i16,
}

impl ProducerId {
    /// The number, or the error.
    pub(super) fn read(answer: &[u8]) -> Option<Result<ProducerId, i16>> {
        let mut reader = Reader::new(answer);
        if reader.int8()? != 0 {
            return None;
        }
        reader.int32()?;
        let error = reader.int16()?;
        let id = reader.int64()?;
        let epoch = reader.int16()?;
        Some(if error == 0 { Ok(ProducerId { id, epoch }) } else { Err(error) })
    }
}

/// Errors of the partitions of a produce request, by number.
pub(super) fn read_produced(answer: &[u8]) -> Option<Vec<(i32, i16)>> {
    let mut reader = Reader::new(answer);
    let mut partitions = Vec::new();
    for _ in 0..reader.count()? {
        reader.string()?;
        for _ in 0..reader.count()? {
            let partition = reader.int32()?;
            let error = reader.int16()?;
            for _ in 0..3 {
                reader.int64()?;
            }
            partitions.push((partition, error));
        }
    }
    Some(partitions)
}

/// The mechanisms of a broker, if it does not know the one that was named.
pub(super) fn read_handshake(answer: &[u8]) -> Option<Result<(), String>> {
    let mut reader = Reader::new(answer);
    let error = reader.int16()?;
    let mut mechanisms = Vec::new();
    for _ in 0..reader.count()? {
        mechanisms.push(reader.string()?);
    }
    Some(if error == 0 { Ok(()) } else { Err(mechanisms.join(", ")) })
}

/// The server's message, or its error and why.
pub(super) fn read_authenticated(answer: &[u8]) -> Option<Result<&[u8], (i16, &str)>> {
    let mut reader = Reader::new(answer);
    let error = reader.int16()?;
    let why = reader.string()?;
    let message = reader.bytes()?;
    Some(if error == 0 { Ok(message) } else { Err((error, why)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_has_a_length_and_a_head() {
        let mut out = vec![7];
        Writer::begin(&mut out, Api::Metadata, 5).metadata("logs");
        let expected = b"\0\0\0\x1d\0\x03\0\x04\0\0\0\x05\0\x08sekiwake\0\0\0\x01\0\x04logs\0";
        assert_eq!(out, expected);
    }

    fn metadata_answer() -> Vec<u8> {
        [
            &b"\0\0\0\0"[..],
            b"\0\0\0\x01\0\0\0\x07\0\x04host\0\0\x23\x84\xff\xff",
            b"\0\x01c\0\0\0\x07",
            b"\0\0\0\x01\0\0\0\x04logs\0",
            b"\0\0\0\x02",
            b"\0\0\0\0\0\x01\0\0\0\x07\0\0\0\x01\0\0\0\x07\0\0\0\x01\0\0\0\x07",
            b"\0\x05\0\0\0\0\xff\xff\xff\xff\0\0\0\0\0\0\0\0",
        ]
        .concat()
    }

    #[test]
    fn metadata_name_leaders_in_the_order_of_partitions() {
        let answer = metadata_answer();
        let metadata = Metadata::read(&answer, "logs").unwrap();
        assert_eq!((metadata.error, &metadata.leaders[..]), (0, &[-1, 7][..]));
        assert_eq!(metadata.brokers[&7], BrokerAddress { host: "host".to_owned(), port: 9092 });
        assert_eq!(Metadata::read(&answer, "other").unwrap().error, 3);
        for length in 0..answer.len() {
            assert_eq!(Metadata::read(&answer[..length], "logs"), None, "{length} bytes");
        }
    }

    #[test]
    fn count_beyond_the_answer_is_malformed() {
        assert_eq!(read_produced(b"\x7f\xff\xff\xff"), None);
        assert_eq!(read_produced(b"\0\0\0\0"), Some(Vec::new()));
        assert_eq!(read_handshake(b"\0\x21\0\0\0\x01\0\x05PLAIN"), Some(Err("PLAIN".to_owned())));
    }
}
