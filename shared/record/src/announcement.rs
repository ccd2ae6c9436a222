//! Announcements: the positions of a stream, which its publisher sends once per second and at the
//! end, after the data that they describe.
//!
//! ```text
//! frame 1  topic         "@stream/<name>/"
//! frame 2  announcement  [version, stream_name, stream_epoch, ended,
//!                         [[topic, oldest_sequence, next_sequence], ...], clock_ns]
//! ```
//!
//! `clock_ns` is appended: earlier versions do not know it. Topics on which the stream has not
//! published are not listed.

use rmp::encode::{ValueWriteError, write_array_len, write_bool, write_str, write_uint};

use crate::{
    DecodeError, Name, PROTOCOL_VERSION, Topic,
    header::{decode, read_stream_name},
    msgpack::{Unexpected, read_array, read_number, read_optional_number, read_text, read_truth, skip},
};

/// The position of a stream on one topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopicPosition {
    /// The topic.
    pub topic: Topic,
    /// The sequence number of the oldest record that the publisher can retransmit.
    pub oldest_sequence: u64,
    /// The sequence number of the next record.
    pub next_sequence: u64,
}

/// A stream's announcement of its positions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// The publisher's name.
    pub stream_name: String,
    /// The random number of this run of the publisher.
    pub stream_epoch: u64,
    /// Whether the stream has ended: this is its last announcement.
    pub ended: bool,
    /// Its topics, each at most once.
    pub positions: Vec<TopicPosition>,
    /// The publisher's clock when it was made, nanoseconds since 1970-01-01T00:00:00Z; `None` from
    /// an earlier version.
    pub clock_ns: Option<u64>,
}

const FIELDS: u32 = 5;
const CLOCK_FIELDS: u32 = 1;
const POSITION_FIELDS: u32 = 3;

impl Announcement {
    /// The topic prefix of all announcements.
    pub const TOPIC_PREFIX: &'static str = "@stream/";

    /// The topic of this publisher's announcements.
    pub fn topic(publisher: &Name) -> String {
        format!("{}{publisher}/", Self::TOPIC_PREFIX)
    }

    /// Writes the frame to `out`, replacing its contents.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.clear();
        self.write(out).expect("writing to a Vec cannot fail");
    }

    fn write(&self, out: &mut Vec<u8>) -> Result<(), ValueWriteError> {
        write_array_len(out, FIELDS + if self.clock_ns.is_some() { CLOCK_FIELDS } else { 0 })?;
        write_uint(out, PROTOCOL_VERSION)?;
        write_str(out, &self.stream_name)?;
        write_uint(out, self.stream_epoch)?;
        write_bool(out, self.ended).map_err(ValueWriteError::InvalidMarkerWrite)?;
        write_array_len(out, self.positions.len() as u32)?;
        for position in &self.positions {
            write_array_len(out, POSITION_FIELDS)?;
            write_str(out, position.topic.as_str())?;
            write_uint(out, position.oldest_sequence)?;
            write_uint(out, position.next_sequence)?;
        }
        if let Some(clock_ns) = self.clock_ns {
            write_uint(out, clock_ns)?;
        }
        Ok(())
    }

    /// Reads the frame. Unknown topics are skipped.
    ///
    /// # Errors
    /// Another structure, a stream name that is not a [`Name`], another protocol version, or bytes
    /// after the array.
    pub fn decode(frame: &[u8]) -> Result<Announcement, DecodeError> {
        decode("announcement", FIELDS, frame, |rest, appended| {
            let announcement = Announcement {
                stream_name: read_stream_name(rest)?.to_owned(),
                stream_epoch: read_number(rest, "stream epoch")?,
                ended: read_truth(rest, "end of the stream")?,
                positions: read_positions(rest)?,
                clock_ns: None,
            };
            let Some(unknown) = appended.checked_sub(CLOCK_FIELDS) else { return Ok((announcement, appended)) };
            let clock_ns = read_optional_number(rest, "clock or nil")?;
            Ok((Announcement { clock_ns, ..announcement }, unknown))
        })
    }
}

/// Reads at most [`Topic::COUNT`] positions; further ones are skipped, so that a hostile list
/// cannot take memory.
fn read_positions(rest: &mut &[u8]) -> Result<Vec<TopicPosition>, Unexpected> {
    let mut positions = Vec::new();
    let mut left = read_array(rest, "list of positions")?;
    while left > 0 && positions.len() < Topic::COUNT {
        positions.extend(read_position(rest)?);
        left -= 1;
    }
    skip(rest, left)?;
    Ok(positions)
}

/// Reads a position; `None` if its topic is unknown.
fn read_position(rest: &mut &[u8]) -> Result<Option<TopicPosition>, Unexpected> {
    let elements = read_array(rest, "position")?;
    let appended = elements.checked_sub(POSITION_FIELDS).ok_or(Unexpected::new("position of at least 3 elements"))?;
    let topic = read_text(rest, "topic")?;
    let oldest_sequence = read_number(rest, "oldest sequence number")?;
    let next_sequence = read_number(rest, "next sequence number")?;
    skip(rest, appended)?;
    let topic = Topic::parse(topic.as_bytes());
    Ok(topic.map(|topic| TopicPosition { topic, oldest_sequence, next_sequence }))
}
