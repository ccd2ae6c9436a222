//! What a publisher says of its own stream, once a second and at its end, behind the data it speaks of.
//!
//! Topic `@stream/<name>/`, one frame after it:
//! ```text
//! [version, stream_name, stream_epoch, ended, [[topic, oldest_sequence, next_sequence], ...]]
//! ```
//! A topic on which the stream has published nothing is not listed.

use std::fmt;

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{IgnoredAny, SeqAccess, Visitor},
};

use crate::{
    DecodeError, Name, PROTOCOL_VERSION, Topic,
    header::{at_end, malformed, next, stream_name},
};

/// Where a stream stands on one topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopicPosition {
    /// The topic.
    pub topic: Topic,
    /// The sequence number of the oldest record that the publisher can still repeat.
    pub oldest_sequence: u64,
    /// The sequence number that the next record will have.
    pub next_sequence: u64,
}

/// A stream's own account of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// The publisher's name.
    pub stream_name: String,
    /// The random number of this run of the publisher.
    pub stream_epoch: u64,
    /// Whether this is the stream's last word.
    pub ended: bool,
    /// Its topics, each at most once.
    pub positions: Vec<TopicPosition>,
}

impl Announcement {
    /// The prefix under which every stream announces itself.
    pub const TOPIC_PREFIX: &'static str = "@stream/";

    /// The topic under which the stream of this publisher announces itself.
    pub fn topic(publisher: &Name) -> String {
        format!("{}{publisher}/", Self::TOPIC_PREFIX)
    }

    /// Writes the frame into `out`, replacing what it held.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.clear();
        let positions: Vec<(&str, u64, u64)> =
            self.positions.iter().map(|p| (p.topic.as_str(), p.oldest_sequence, p.next_sequence)).collect();
        (PROTOCOL_VERSION, &self.stream_name, self.stream_epoch, self.ended, positions)
            .serialize(&mut rmp_serde::Serializer::new(out))
            .expect("an announcement always has a msgpack form");
    }

    /// Reads the frame. Topics that this version does not know are skipped.
    ///
    /// # Errors
    /// Anything that is not of the announced shape, a stream name that is no [`Name`], another protocol version, or bytes after the array.
    pub fn decode(frame: &[u8]) -> Result<Announcement, DecodeError> {
        let mut reader = rmp_serde::Deserializer::from_read_ref(frame);
        let versioned = Versioned::deserialize(&mut reader).map_err(|error| malformed("announcement", &error))?;
        match versioned {
            Versioned::Other(version) => Err(DecodeError::Version(version)),
            Versioned::Known(announcement) => at_end(&mut reader, "announcement").map(|()| announcement),
        }
    }
}

enum Versioned {
    Known(Announcement),
    Other(u64),
}

struct Position(Option<TopicPosition>);

impl<'de> Deserialize<'de> for Position {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Position, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Position;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array of topic, oldest and next sequence")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<Position, A::Error> {
                let topic: &str = next(&mut array, 0)?;
                let (oldest_sequence, next_sequence) = (next(&mut array, 1)?, next(&mut array, 2)?);
                while array.next_element::<IgnoredAny>()?.is_some() {}
                let topic = Topic::parse(topic.as_bytes());
                Ok(Position(topic.map(|topic| TopicPosition { topic, oldest_sequence, next_sequence })))
            }
        }
        deserializer.deserialize_seq(Fields)
    }
}

/// The list of positions. It is never longer than there are topics: what comes after is skipped unread.
struct Positions(Vec<TopicPosition>);

impl<'de> Deserialize<'de> for Positions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Positions, D::Error> {
        struct Items;
        impl<'de> Visitor<'de> for Items {
            type Value = Positions;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array of positions")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<Positions, A::Error> {
                let mut positions = Vec::new();
                while positions.len() < Topic::COUNT {
                    match array.next_element::<Position>()? {
                        Some(Position(known)) => positions.extend(known),
                        None => return Ok(Positions(positions)),
                    }
                }
                while array.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Positions(positions))
            }
        }
        deserializer.deserialize_seq(Items)
    }
}

impl<'de> Deserialize<'de> for Versioned {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Versioned, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Versioned;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array of at least 5 elements")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<Versioned, A::Error> {
                let version = next(&mut array, 0)?;
                if version != PROTOCOL_VERSION {
                    while array.next_element::<IgnoredAny>()?.is_some() {}
                    return Ok(Versioned::Other(version));
                }
                let announcement = Announcement {
                    stream_name: stream_name(&mut array, 1)?.to_owned(),
                    stream_epoch: next(&mut array, 2)?,
                    ended: next(&mut array, 3)?,
                    positions: next::<_, Positions>(&mut array, 4)?.0,
                };
                while array.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Versioned::Known(announcement))
            }
        }
        deserializer.deserialize_seq(Fields)
    }
}
