//! Data topics, `<kind>/<shard>`, and names of publishers, groups and members.

use std::{fmt, net::IpAddr, sync::OnceLock};

use xxhash_rust::xxh3::xxh3_64;

use crate::Kind;

/// The number of shards per kind. It is part of the protocol: publishers and subscribers have to
/// agree on it.
pub const SHARDS: usize = 64;

/// One of the 64 partitions of a kind, by source address.
///
/// All datagrams of one exporter are in one shard, so that they stay in order and templates reach
/// the subscriber that gets the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Shard(u8);

impl Shard {
    /// The first shard.
    pub const FIRST: Shard = Shard(0);

    /// The shard of a source address: the six highest bits of XXH3-64 (seed 0) over the address's
    /// canonical 16 bytes (IPv4 as `::ffff:a.b.c.d`).
    pub fn of(source: IpAddr) -> Shard {
        Shard((xxh3_64(&canonical_octets(source)) >> 58) as u8)
    }

    /// The shard of this number, if it is below [`SHARDS`].
    pub fn new(number: u8) -> Option<Shard> {
        (usize::from(number) < SHARDS).then_some(Shard(number))
    }

    /// All shards, in order.
    pub fn all() -> impl Iterator<Item = Shard> {
        (0..SHARDS as u8).map(Shard)
    }

    /// The number, 0 to 63.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// The 16 bytes of an address in hashes and comparisons: an IPv4 address in its mapped form.
pub fn canonical_octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// A data topic: a kind and a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Topic {
    /// The kind of traffic.
    pub kind: Kind,
    /// The shard of the source address.
    pub shard: Shard,
}

impl Topic {
    /// The number of data topics.
    pub const COUNT: usize = Kind::ALL.len() * SHARDS;

    /// The topic of a datagram of this kind from this source.
    pub fn of(kind: Kind, source: IpAddr) -> Topic {
        Topic { kind, shard: Shard::of(source) }
    }

    /// A dense index, 0 to [`Topic::COUNT`] - 1, for tables.
    pub const fn index(self) -> usize {
        self.kind.index() * SHARDS + self.shard.index()
    }

    /// The topic with this index, or `None`.
    pub fn from_index(index: usize) -> Option<Topic> {
        let kind = *Kind::ALL.get(index / SHARDS)?;
        Some(Topic { kind, shard: Shard((index % SHARDS) as u8) })
    }

    /// Every data topic, in the order of [`Topic::index`].
    pub fn all() -> impl Iterator<Item = Topic> {
        (0..Topic::COUNT).filter_map(Topic::from_index)
    }

    /// The name on the wire, such as `xflow/0a`.
    pub fn as_str(self) -> &'static str {
        static NAMES: OnceLock<Vec<String>> = OnceLock::new();
        &NAMES.get_or_init(|| Topic::all().map(|t| format!("{}/{:02x}", t.kind, t.shard.0)).collect())[self.index()]
    }

    /// Parses a topic name: the kind, a slash, and a number below 64 as two lower-case hex digits.
    pub fn parse(name: &[u8]) -> Option<Topic> {
        let slash = name.iter().position(|&byte| byte == b'/')?;
        let kind = std::str::from_utf8(&name[..slash]).ok()?;
        let [high, low] = &name[slash + 1..] else { return None };
        let shard = Shard::new(hex(*high)? * 16 + hex(*low)?)?;
        Some(Topic { kind: Kind::from_name(kind)?, shard })
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

/// The name of a publisher, group or member, `[A-Za-z0-9._-]{1,63}`: safe in topics, metrics and
/// logs.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(String);

/// The text is not a valid [`Name`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected 1 to 63 letters, digits, dots, hyphens or underscores")]
pub struct NameError;

impl Name {
    /// Checks the text.
    pub fn new(text: &str) -> Result<Name, NameError> {
        if Name::allows(text) { Ok(Name(text.to_owned())) } else { Err(NameError) }
    }

    /// Whether a text is a valid name.
    pub(crate) fn allows(text: &str) -> bool {
        (1..=63).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for Name {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Name, NameError> {
        Name::new(text)
    }
}
