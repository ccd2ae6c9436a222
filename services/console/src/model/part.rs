//! The parts of a status, as far as the console shows them. Parsing only; input is hostile.
//!
//! Fields that are absent have their default, because earlier versions lack them and large lists
//! are left out. A field of another type makes the part invalid. Texts, lists and maps are bounded.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fmt,
    marker::PhantomData,
};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, IgnoredAny, MapAccess, SeqAccess, Visitor},
};

/// The longest text that is kept, bytes; the rest is cut off.
const MAX_TEXT: usize = 256;
/// The most entries of a map; a part with more is invalid.
const MAX_ENTRIES: usize = 64;
/// The most elements of a list; the rest is left out.
const MAX_ELEMENTS: usize = 512;
/// What stands for the group in the topic of a service that is in no group.
const NO_GROUP: &str = "-";

/// A text of bounded length.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Text(pub String);

/// A map with a bounded number of entries.
#[derive(Clone, Debug, PartialEq)]
pub struct Bounded<T>(pub BTreeMap<Text, T>);

/// A list of bounded length.
#[derive(Clone, Debug, PartialEq)]
pub struct Elements<T>(pub Vec<T>);

/// Counts by reason or format.
pub type Counts = Bounded<u64>;

/// Whose part it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Identity {
    /// The service, as `syslog-forwarder`.
    pub service: Text,
    /// Its group, without the service's name.
    pub group: Option<Text>,
    /// The member's or publisher's name.
    pub member: Text,
    /// The run.
    pub incarnation: Text,
}

#[derive(Deserialize)]
struct Head {
    service: Text,
    group: Option<Text>,
    member: Text,
    incarnation: Text,
    part: Text,
    sent_at_ns: u64,
}

/// A received part.
#[derive(Clone, Debug)]
pub struct Received {
    /// Whose it is.
    pub identity: Identity,
    /// Its name, as `destinations.0`.
    pub name: Text,
    /// When it was collected, nanoseconds since 1970, by the service's clock.
    pub sent_at_ns: u64,
    /// Its content.
    pub part: Part,
}

/// The content of a part.
#[derive(Clone, Debug)]
pub enum Part {
    /// The process.
    Process(Process),
    /// A member's own view of its group.
    Group(Group),
    /// A destination.
    Destination(Destination),
    /// A captured interface.
    Interface(Interface),
    /// A capture's stream.
    Stream(Stream),
    /// A store.
    Store(Store),
    /// The anomaly detector.
    Detector(Detector),
    /// The proxy's control plane.
    Control(Control),
}

/// The part of the process.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Process {
    /// The version.
    pub version: Text,
    /// `starting`, `running` or `stopping`.
    pub state: Text,
    /// As `/readyz`.
    pub is_ready: bool,
    /// What it waits for.
    pub waits_for: Elements<Text>,
    /// Since the role started, seconds.
    pub uptime_seconds: f64,
    /// Processor time, seconds.
    pub cpu_seconds: f64,
    /// Resident memory, bytes.
    pub memory_bytes: u64,
}

/// A member's view of its group.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Group {
    /// Whether it has a lease.
    pub leased: bool,
    /// Its shards.
    pub shards: Elements<Shard>,
    /// The streams that it follows.
    pub streams: Elements<MemberStream>,
    /// Records lost, by reason.
    pub given_up: Counts,
    /// Delivered and not yet handled, bytes.
    pub unacknowledged_bytes: u64,
    /// Members whose destinations differ.
    pub members_with_other_destinations: Elements<Text>,
}

/// A shard of a member.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Shard {
    /// Its number, two hexadecimal digits.
    pub shard: Text,
    /// The generation of its grant.
    pub generation: u64,
    /// `owned`, …
    pub state: Text,
}

/// A stream as a member sees it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct MemberStream {
    /// Its name.
    pub stream: Text,
    /// Shards whose position in the stream is known.
    pub located_shards: u64,
    /// Records received.
    pub received: u64,
    /// The sum of the positions of its shards, records.
    pub handled: u64,
    /// Published and not yet handled, records.
    pub lag_records: u64,
}

/// An error that happened.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct LastError {
    /// What it says.
    pub error: Text,
    /// Its age, seconds.
    pub seconds_ago: f64,
}

/// What waits for a destination.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Queue {
    /// Records.
    pub records: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What waits for a destination on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Spool {
    /// Datagrams.
    pub datagrams: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Errors.
    pub errors: u64,
}

/// A destination of a forwarder.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Destination {
    /// Its URI, without secrets.
    pub destination: Text,
    /// The address in use.
    pub address: Option<Text>,
    /// `up`, `down` or `unknown`.
    pub state: Text,
    /// For how long, seconds.
    pub seconds_in_state: f64,
    /// The last error, also if it was overcome.
    pub last_error: Option<LastError>,
    /// Datagrams sent.
    pub sent: u64,
    /// Datagrams dropped, by reason.
    pub dropped: Counts,
    /// Datagrams that are not for this destination.
    pub filtered_out: Counts,
    /// What waits in memory.
    pub queue: Queue,
    /// What waits on disk.
    pub spool: Option<Spool>,
}

/// An interface of a capture.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Interface {
    /// Its name.
    pub interface: Text,
    /// `up` or `down`.
    pub state: Text,
    /// For how long, seconds.
    pub seconds_in_state: f64,
    /// The last error.
    pub last_error: Option<LastError>,
    /// Packets captured.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Datagrams captured.
    pub datagrams: u64,
    /// Datagrams published, by kind and format.
    pub published: Bounded<Counts>,
    /// Datagrams not published, by reason.
    pub not_published: Counts,
    /// Packets dropped, by reason.
    pub dropped_packets: Counts,
}

/// The stream of a capture.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Stream {
    /// Whether it may publish.
    pub may_publish: bool,
    /// The memory for retransmission.
    pub retained: Elements<Retained>,
    /// Records that were not published, by reason.
    pub unpublished: Counts,
}

/// A kind's part of the memory for retransmission.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Retained {
    /// The kind.
    pub kind: Text,
    /// Bytes.
    pub bytes: u64,
    /// The age of its oldest batch, seconds.
    pub seconds: Option<f64>,
}

/// A store.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Store {
    /// Its directory.
    pub directory: Text,
    /// Why writing fails.
    pub error: Option<Text>,
    /// Records written.
    pub written_records: u64,
    /// Not synced yet.
    pub unsynced_records: u64,
    /// Files stored.
    pub files: u64,
    /// Bytes stored.
    pub bytes: u64,
}

/// The anomaly detector.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Detector {
    /// `standby`, `restoring` or `counting`.
    pub phase: Text,
    /// The interval, seconds.
    pub interval_seconds: f64,
    /// The next interval to be closed, seconds since 1970.
    pub next_interval: i64,
    /// The events that fire.
    pub firing: Elements<BTreeMap<Text, serde_json::Value>>,
    /// The series by name.
    pub series: Bounded<Series>,
}

/// A series of the detector.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Series {
    /// Messages per interval.
    pub window: Elements<f64>,
    /// In the last interval, if it was counted completely.
    pub count: Option<f64>,
    /// The average.
    pub average: Option<f64>,
    /// The lower band.
    pub lower: Option<f64>,
    /// The upper band.
    pub upper: Option<f64>,
    /// The verdict of the last interval: a text, or an object with one member.
    pub verdict: serde_json::Value,
}

/// The control plane.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Control {
    /// The groups.
    pub groups: Elements<ControlGroup>,
    /// The streams.
    pub streams: Elements<ControlStream>,
    /// Clients that registered destinations.
    pub clients: Elements<Client>,
}

/// A group as the proxy sees it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ControlGroup {
    /// Its full name, as `syslog-forwarder.default`.
    pub name: Text,
    /// Its kind.
    pub kind: Text,
    /// Its members.
    pub members: Elements<ControlMember>,
    /// Shards without an owner.
    pub unowned_shards: u64,
    /// Published and not yet committed, records.
    pub lag_records: u64,
}

/// A member as the proxy sees it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ControlMember {
    /// Its name.
    pub label: Text,
    /// Its run.
    pub incarnation: Text,
    /// How many shards it owns.
    pub shards: u64,
    /// Whether it is leaving.
    pub leaving: bool,
}

/// A stream as the proxy sees it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ControlStream {
    /// Its name.
    pub stream: Text,
    /// Whether its publisher is connected.
    pub live: bool,
    /// Whether it has ended.
    pub ended: bool,
    /// Records published, by kind.
    pub published: Counts,
}

/// A client in no group that registered destinations.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Client {
    /// Its name.
    pub client: Text,
    /// Its destinations, which captures leave alone.
    pub destinations: Elements<Text>,
    /// Datagrams to them, left alone.
    pub left_alone_datagrams: u64,
    /// Whether it has left or is silent.
    pub ended: bool,
}

/// Why a message is no part.
#[derive(Debug)]
pub enum Rejected {
    /// It is not the JSON object that its name promises.
    Invalid,
    /// The console does not show this part.
    Unused,
}

impl Head {
    /// The topic that the proxy gives to this part.
    fn topic(&self) -> String {
        let Head { service, group, member, incarnation, part, .. } = self;
        let group = group.as_ref().map_or(NO_GROUP, Text::as_str);
        format!("status/{service}.{group}.{member}.{incarnation}/{part}")
    }
}

impl Received {
    /// Parses a part. `topic` is that of the message; its last segment is the name of the part.
    ///
    /// The proxy makes the topic from what it knows of the sender, but passes the text on as it is:
    /// a text that claims to be another service's is invalid.
    ///
    /// # Errors
    /// The part is invalid, or not shown.
    pub fn parse(topic: &str, json: &str) -> Result<Received, Rejected> {
        let (_, name) = topic.rsplit_once('/').ok_or(Rejected::Invalid)?;
        // Before the text is looked at, because these are the largest.
        let read = reader(name).ok_or(Rejected::Unused)?;
        let head: Head = serde_json::from_str(json).map_err(|_| Rejected::Invalid)?;
        if head.topic() != topic || head.group.as_ref().is_some_and(|group| group.as_str() == NO_GROUP) {
            return Err(Rejected::Invalid);
        }
        let part = read(json).ok_or(Rejected::Invalid)?;
        let Head { service, group, member, incarnation, part: name, sent_at_ns } = head;
        Ok(Received { identity: Identity { service, group, member, incarnation }, name, sent_at_ns, part })
    }
}

impl Part {
    /// The destination or interface that it is about.
    pub fn place(&self) -> Option<&Text> {
        match self {
            Part::Destination(destination) => Some(&destination.destination),
            Part::Interface(interface) => Some(&interface.interface),
            _ => None,
        }
    }
}

type Read = fn(&str) -> Option<Part>;

/// What reads the part of this name.
fn reader(name: &str) -> Option<Read> {
    fn from<T: DeserializeOwned>(json: &str) -> Option<T> {
        serde_json::from_str(json).ok()
    }
    let (first, rest) = name.split_once('.').unwrap_or((name, ""));
    Some(match (first, rest) {
        ("process", "") => |json| from(json).map(Part::Process),
        ("group", _) => |json| from(json).map(Part::Group),
        ("destinations", _) => |json| from(json).map(Part::Destination),
        ("interfaces", _) => |json| from(json).map(Part::Interface),
        ("stream", "") => |json| from(json).map(Part::Stream),
        ("store", "") => |json| from(json).map(Part::Store),
        // With many series they are a part of their own, whose members are the series.
        ("detector", "series") => |json| {
            let members: BTreeMap<Text, serde_json::Value> = from(json)?;
            let series = |(name, value): (Text, serde_json::Value)| Some((name, serde_json::from_value(value).ok()?));
            let series = members.into_iter().filter(|(_, value)| value.is_object()).filter_map(series);
            let series = Bounded(series.take(MAX_ENTRIES).collect());
            Some(Part::Detector(Detector { series, ..Detector::default() }))
        },
        ("detector", _) => |json| from(json).map(Part::Detector),
        ("control", _) if !rest.starts_with("topics") => |json| from(json).map(Part::Control),
        _ => return None,
    })
}

impl Text {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Text {
        let end = text.floor_char_boundary(MAX_TEXT);
        Text(text[..end].to_owned())
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Text, D::Error> {
        struct Bound;
        impl Visitor<'_> for Bound {
            type Value = Text;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text")
            }

            fn visit_str<E>(self, text: &str) -> Result<Text, E> {
                Ok(text.into())
            }
        }
        deserializer.deserialize_str(Bound)
    }
}

impl<T> Default for Bounded<T> {
    fn default() -> Bounded<T> {
        Bounded(BTreeMap::new())
    }
}

impl Counts {
    /// The sum.
    pub fn total(&self) -> u64 {
        self.0.values().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// Those that are not zero.
    pub fn nonzero(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().filter(|(_, count)| **count > 0).map(|(reason, count)| (reason.as_str(), *count))
    }

    /// Adds others.
    pub fn add(&mut self, other: &Counts) {
        for (reason, count) in &other.0 {
            let has_room = self.0.len() < MAX_ENTRIES;
            match self.0.entry(reason.clone()) {
                Entry::Occupied(mut sum) => *sum.get_mut() = sum.get().saturating_add(*count),
                Entry::Vacant(entry) if has_room => {
                    entry.insert(*count);
                }
                Entry::Vacant(_) => {}
            }
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Bounded<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Bounded<T>, D::Error> {
        struct Bound<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Bound<T> {
            type Value = Bounded<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "an object with at most {MAX_ENTRIES} members")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Bounded<T>, A::Error> {
                let mut map = BTreeMap::new();
                while let Some((name, value)) = access.next_entry()? {
                    map.insert(name, value);
                    if map.len() > MAX_ENTRIES {
                        return Err(serde::de::Error::custom("too many members"));
                    }
                }
                Ok(Bounded(map))
            }
        }
        deserializer.deserialize_map(Bound(PhantomData))
    }
}

impl<T> Default for Elements<T> {
    fn default() -> Elements<T> {
        Elements(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Elements<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Elements<T>, D::Error> {
        struct Bound<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Bound<T> {
            type Value = Elements<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Elements<T>, A::Error> {
                let mut list = Vec::new();
                while list.len() < MAX_ELEMENTS {
                    match access.next_element()? {
                        Some(element) => list.push(element),
                        None => return Ok(Elements(list)),
                    }
                }
                while access.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Elements(list))
            }
        }
        deserializer.deserialize_seq(Bound(PhantomData))
    }
}
