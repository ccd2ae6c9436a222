//! The values of the keys, as msgpack arrays. Later versions append elements, which are skipped.
//!
//! ```text
//! member      [1, number, state, label, [[stream_name, stream_epoch]], [[shard, generation, phase, position …]],
//!              digest]
//! assignment  [1, planner, [[stream_name, stream_epoch]], [older], [incarnation], [[owner, next, generation, position …]],
//!              [[stream, is_known, [shard, next, …]]]]
//! position …  created, sequence, [stream, next, stream, next, …]
//!
//! state   0 live, 1 leaving, 2 gone          phase   0 held, 1 released
//! stream  an index into the list of streams  older   the same: streams that are older than the group
//! digest  of destinations and settings that all members should have; 0, or absent in values of
//!         earlier versions, if it is not to be compared
//! owner, next   an index into the list of incarnations, plus 1; 0 for none
//! ```
//!
//! An assignment has all 64 shards, in order; earlier versions do not write its last element. Every
//! length is checked before memory is allocated.

use std::{collections::BTreeMap, sync::Arc};

use rmp::encode as msgpack;
use sekiwake_group::{MAX_NUMBER, Stream};
use sekiwake_record::{
    DecodeError, Name, SHARDS, Shard,
    msgpack::{Unexpected, read_array, read_number, read_text, skip},
};

use crate::{
    beginning::Beginning,
    position::{MAX_SHARD_STREAMS, Position, Progress},
};

/// The version of the values.
const VERSION: u64 = 1;
/// The longest value that is read, bytes.
pub const MAX_VALUE_BYTES: usize = 512 << 10;
/// The most members of a group.
pub const MAX_MEMBERS: usize = 1024;
/// The most streams in one value.
const MAX_STREAMS: usize = 1024;
/// The most streams of which an assignment says where the group began.
pub const MAX_BEGINNINGS: usize = 64;
/// Why writing cannot fail.
const VEC: &str = "writing to a Vec succeeds";

/// Whether a member takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It takes part.
    Live,
    /// It releases its shards.
    Leaving,
    /// It never acts again: it has left, or was declared gone.
    Gone,
}

/// Whether a member has a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It may act on it, while its lease lasts.
    Held,
    /// It never acts on it again in this generation.
    Released,
}

/// A shard in a member's key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The shard.
    pub shard: Shard,
    /// The generation in which the member has it.
    pub generation: u64,
    /// Whether it still has it.
    pub phase: Phase,
    /// What is handled.
    pub position: Position,
}

/// The value of a member's key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberValue {
    /// Counts the member's writes, so that it recognises its own.
    pub number: u64,
    /// Whether it takes part.
    pub state: State,
    /// Its name in logs and status.
    pub label: Option<Name>,
    /// Its shards, each at most once.
    pub claims: Vec<Claim>,
    /// Of its destinations and of settings that all members should have; 0 if it is not compared.
    pub digest: u64,
}

/// A shard in the assignment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assigned {
    /// The member that has it, or may claim it.
    pub owner: Option<u64>,
    /// The member that gets it once the owner has released it.
    pub next: Option<u64>,
    /// Counts the owners.
    pub generation: u64,
    /// Where `owner` begins; where the next owner begins if there is none.
    pub position: Position,
}

/// The value of the key with the assignment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// The member that wrote it.
    pub planner: u64,
    /// Streams that are older than the group. All others begin with record 0.
    pub older: Vec<Stream>,
    /// Where those begin in shards where their position is unknown. One that is not listed begins
    /// with the first record that is read.
    pub beginnings: Vec<Beginning>,
    /// All shards, in order.
    pub shards: Vec<Assigned>,
}

impl MemberValue {
    /// The value as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut streams = Streams::default();
        let mut claims = Vec::with_capacity(64 * self.claims.len());
        array(&mut claims, self.claims.len());
        for Claim { shard, generation, phase, position } in &self.claims {
            array(&mut claims, 3 + POSITION);
            uint(&mut claims, shard.index() as u64);
            uint(&mut claims, *generation);
            uint(&mut claims, u64::from(*phase == Phase::Released));
            streams.write_position(&mut claims, position);
        }
        let mut out = Vec::with_capacity(claims.len() + 256);
        array(&mut out, MEMBER + 1);
        uint(&mut out, VERSION);
        uint(&mut out, self.number);
        uint(&mut out, self.state as u64);
        msgpack::write_str(&mut out, self.label.as_ref().map_or("", Name::as_str)).expect(VEC);
        streams.write(&mut out);
        out.extend_from_slice(&claims);
        uint(&mut out, self.digest);
        out
    }

    /// Reads a value.
    ///
    /// # Errors
    /// Another version or structure, or a limit is exceeded.
    pub fn decode(value: &[u8]) -> Result<MemberValue, DecodeError> {
        decode("member", value, |rest, fields| {
            let number = number(rest)?;
            let state = match read_number::<u8>(rest, "state")? {
                0 => State::Live,
                1 => State::Leaving,
                2 => State::Gone,
                _ => return Err(Unexpected::new("state")),
            };
            let label = Name::new(read_text(rest, "label")?).ok();
            let streams = Streams::read(rest)?;
            let length = limited(rest, SHARDS, "claims")?;
            let mut claims: Vec<Claim> = Vec::with_capacity(length);
            for _ in 0..length {
                let fields = read_array(rest, "claim")?;
                let shard = Shard::new(read_number(rest, "shard")?).ok_or(Unexpected::new("shard"))?;
                let generation = self::number(rest)?;
                let phase = match read_number::<u8>(rest, "phase")? {
                    0 => Phase::Held,
                    1 => Phase::Released,
                    _ => return Err(Unexpected::new("phase")),
                };
                let position = streams.read_position(rest)?;
                skip_rest(rest, fields, 3 + POSITION)?;
                if claims.iter().any(|claim| claim.shard == shard) {
                    return Err(Unexpected::new("each shard at most once"));
                }
                claims.push(Claim { shard, generation, phase, position });
            }
            let has_digest = fields > MEMBER as u32;
            let digest = if has_digest { read_number(rest, "digest")? } else { 0 };
            skip_rest(rest, fields, MEMBER + usize::from(has_digest))?;
            Ok(MemberValue { number, state, label, claims, digest })
        })
    }

    /// What it says of a shard.
    pub fn claim(&self, shard: Shard) -> Option<&Claim> {
        self.claims.iter().find(|claim| claim.shard == shard)
    }
}

impl Assignment {
    /// The value as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut streams = Streams::default();
        let mut members: Vec<u64> = Vec::new();
        let mut shards = Vec::with_capacity(64 * SHARDS);
        array(&mut shards, self.shards.len());
        for Assigned { owner, next, generation, position } in &self.shards {
            array(&mut shards, 3 + POSITION);
            for member in [owner, next] {
                let index = member.map_or(0, |member| {
                    let known = members.iter().position(|&known| known == member);
                    1 + known.unwrap_or_else(|| {
                        members.push(member);
                        members.len() - 1
                    })
                });
                uint(&mut shards, index as u64);
            }
            uint(&mut shards, *generation);
            streams.write_position(&mut shards, position);
        }
        let older: Vec<usize> = self.older.iter().filter_map(|stream| streams.index(stream)).collect();
        let beginnings = self.encode_beginnings(&mut streams);
        let mut out = Vec::with_capacity(shards.len() + beginnings.len() + 256);
        array(&mut out, ASSIGNMENT + 1);
        uint(&mut out, VERSION);
        uint(&mut out, self.planner);
        streams.write(&mut out);
        array(&mut out, older.len());
        older.iter().for_each(|&index| uint(&mut out, index as u64));
        array(&mut out, members.len());
        members.iter().for_each(|&member| uint(&mut out, member));
        out.extend_from_slice(&shards);
        out.extend_from_slice(&beginnings);
        out
    }

    fn encode_beginnings(&self, streams: &mut Streams) -> Vec<u8> {
        let indexed = self.beginnings.iter().filter_map(|one| Some((streams.index(&one.stream)?, one)));
        let indexed: Vec<(usize, &Beginning)> = indexed.take(MAX_BEGINNINGS).collect();
        let mut out = Vec::new();
        array(&mut out, indexed.len());
        for (index, beginning) in indexed {
            array(&mut out, BEGINNING);
            uint(&mut out, index as u64);
            uint(&mut out, u64::from(beginning.is_known));
            array(&mut out, 2 * beginning.next.len());
            for (shard, next) in &beginning.next {
                uint(&mut out, shard.index() as u64);
                uint(&mut out, *next);
            }
        }
        out
    }

    /// Reads a value.
    ///
    /// # Errors
    /// Another version or structure, or a limit is exceeded.
    pub fn decode(value: &[u8]) -> Result<Assignment, DecodeError> {
        decode("assignment", value, |rest, fields| {
            let planner = read_number(rest, "planner")?;
            let streams = Streams::read(rest)?;
            let length = limited(rest, MAX_STREAMS, "older streams")?;
            let mut older = Vec::with_capacity(length);
            for _ in 0..length {
                older.push(streams.at(rest)?);
            }
            let length = limited(rest, MAX_MEMBERS, "members")?;
            let mut members: Vec<u64> = Vec::with_capacity(length);
            for _ in 0..length {
                members.push(read_number(rest, "incarnation")?);
            }
            let member = |rest: &mut &[u8]| match read_number::<usize>(rest, "member")? {
                0 => Ok(None),
                index => members.get(index - 1).copied().map(Some).ok_or(Unexpected::new("listed member")),
            };
            if read_array(rest, "shards")? as usize != SHARDS {
                return Err(Unexpected::new("all shards"));
            }
            let mut shards = Vec::with_capacity(SHARDS);
            for _ in 0..SHARDS {
                let fields = read_array(rest, "shard")?;
                let (owner, next, generation) = (member(rest)?, member(rest)?, number(rest)?);
                let position = streams.read_position(rest)?;
                skip_rest(rest, fields, 3 + POSITION)?;
                shards.push(Assigned { owner, next, generation, position });
            }
            let beginnings = if fields > ASSIGNMENT as u32 { read_beginnings(rest, &streams)? } else { Vec::new() };
            skip_rest(rest, fields, ASSIGNMENT + usize::from(fields > ASSIGNMENT as u32))?;
            Ok(Assignment { planner, older, beginnings, shards })
        })
    }
}

/// The number of elements of a member's value that all versions write.
const MEMBER: usize = 6;
/// The number of elements of an assignment that all versions write.
const ASSIGNMENT: usize = 6;
/// The number of elements of a position.
const POSITION: usize = 3;
/// The number of elements of a beginning.
const BEGINNING: usize = 3;

fn read_beginnings(rest: &mut &[u8], streams: &Streams) -> Result<Vec<Beginning>, Unexpected> {
    let length = limited(rest, MAX_BEGINNINGS, "beginnings")?;
    let mut beginnings = Vec::with_capacity(length);
    for _ in 0..length {
        let fields = read_array(rest, "beginning")?;
        let stream = streams.at(rest)?;
        let is_known = read_number::<u8>(rest, "knowledge")? > 0;
        let numbers = limited(rest, 2 * SHARDS, "shards of a beginning")?;
        let mut next = BTreeMap::new();
        for _ in 0..numbers / 2 {
            let shard = Shard::new(read_number(rest, "shard")?).ok_or(Unexpected::new("shard"))?;
            next.insert(shard, number(rest)?);
        }
        skip(rest, numbers as u32 % 2)?;
        skip_rest(rest, fields, BEGINNING)?;
        beginnings.push(Beginning { stream, is_known, next });
    }
    Ok(beginnings)
}

/// The streams of a value.
#[derive(Default)]
struct Streams(Vec<Stream>);

impl Streams {
    /// The index of a stream, unless there are too many.
    fn index(&mut self, stream: &Stream) -> Option<usize> {
        let known = self.0.iter().position(|known| known == stream);
        if known.is_none() && self.0.len() < MAX_STREAMS {
            self.0.push(stream.clone());
            return Some(self.0.len() - 1);
        }
        known
    }

    fn write_position(&mut self, out: &mut Vec<u8>, position: &Position) {
        uint(out, position.created);
        uint(out, position.sequence);
        let known =
            position.progress.iter().filter_map(|progress| Some((self.index(&progress.stream)?, progress.next)));
        let known: Vec<(usize, u64)> = known.collect();
        array(out, 2 * known.len());
        for (index, next) in known {
            uint(out, index as u64);
            uint(out, next);
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        array(out, self.0.len());
        for stream in &self.0 {
            array(out, 2);
            msgpack::write_str(out, &stream.name).expect(VEC);
            uint(out, stream.epoch);
        }
    }

    fn read(rest: &mut &[u8]) -> Result<Streams, Unexpected> {
        let length = limited(rest, MAX_STREAMS, "streams")?;
        let mut streams = Vec::with_capacity(length);
        for _ in 0..length {
            let fields = read_array(rest, "stream")?;
            let name = Name::new(read_text(rest, "stream name")?).map_err(|_| Unexpected::new("stream name"))?;
            streams.push(Stream { name: Arc::from(name.as_str()), epoch: read_number(rest, "epoch")? });
            skip_rest(rest, fields, 2)?;
        }
        Ok(Streams(streams))
    }

    /// Reads an index, and returns the stream.
    fn at(&self, rest: &mut &[u8]) -> Result<Stream, Unexpected> {
        let index: usize = read_number(rest, "stream")?;
        self.0.get(index).cloned().ok_or(Unexpected::new("listed stream"))
    }

    fn read_position(&self, rest: &mut &[u8]) -> Result<Position, Unexpected> {
        let created = read_number(rest, "creation time")?;
        let sequence = number(rest)?;
        let length = limited(rest, 2 * MAX_SHARD_STREAMS, "progress")?;
        let mut progress: Vec<Progress> = Vec::with_capacity(length / 2);
        for _ in 0..length / 2 {
            let stream = self.at(rest)?;
            let next = number(rest)?;
            if progress.iter().any(|known| known.stream == stream) {
                return Err(Unexpected::new("each stream at most once"));
            }
            progress.push(Progress { stream, next });
        }
        skip(rest, length as u32 % 2)?;
        Ok(Position { created, sequence, progress })
    }
}

fn array(out: &mut Vec<u8>, length: usize) {
    msgpack::write_array_len(out, length as u32).expect(VEC);
}

fn uint(out: &mut Vec<u8>, number: u64) {
    msgpack::write_uint(out, number).expect(VEC);
}

/// Reads a sequence number or a generation.
fn number(rest: &mut &[u8]) -> Result<u64, Unexpected> {
    let number = read_number(rest, "number")?;
    if number < MAX_NUMBER { Ok(number) } else { Err(Unexpected::new("number in range")) }
}

/// Reads the length of a list.
fn limited(rest: &mut &[u8], most: usize, element: &'static str) -> Result<usize, Unexpected> {
    let length = read_array(rest, element)? as usize;
    // Every element takes at least one byte.
    if length <= most.min(rest.len()) { Ok(length) } else { Err(Unexpected::new(element)) }
}

/// Skips what a later version appended to an array of `known` elements.
fn skip_rest(rest: &mut &[u8], length: u32, known: usize) -> Result<(), Unexpected> {
    skip(rest, length.checked_sub(known as u32).ok_or(Unexpected::new("more elements"))?)
}

/// Reads a value. `read` also gets the number of its elements, of which the version is the first.
fn decode<T>(
    part: &'static str,
    value: &[u8],
    read: impl FnOnce(&mut &[u8], u32) -> Result<T, Unexpected>,
) -> Result<T, DecodeError> {
    let malformed = |error: Unexpected| DecodeError::Malformed { part, reason: error.to_string() };
    if value.len() > MAX_VALUE_BYTES {
        return Err(malformed(Unexpected::new("a shorter value")));
    }
    let mut rest = value;
    let length = read_array(&mut rest, "array").map_err(malformed)?;
    let version = read_number(&mut rest, "version").map_err(malformed)?;
    if version != VERSION {
        return Err(DecodeError::Version(version));
    }
    let decoded = read(&mut rest, length).map_err(malformed)?;
    if rest.is_empty() { Ok(decoded) } else { Err(DecodeError::Trailing(part)) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Where an assignment has its streams.
    fn streams_at(assignment: &[u8]) -> usize {
        let mut rest = assignment;
        read_array(&mut rest, "array").unwrap();
        skip(&mut rest, 2).unwrap();
        assignment.len() - rest.len()
    }

    fn position() -> impl Strategy<Value = Position> {
        let progress = proptest::collection::btree_map((0..9_u64, 0..3_usize), 0..MAX_NUMBER, 0..5);
        (any::<u64>(), 0..MAX_NUMBER, progress).prop_map(|(created, sequence, progress)| {
            let names = ["capture-a", "b", "third.one"];
            let progress = progress
                .into_iter()
                .map(|((epoch, name), next)| Progress { stream: Stream { name: Arc::from(names[name]), epoch }, next });
            Position { created, sequence, progress: progress.collect() }
        })
    }

    proptest! {
        #[test]
        fn members_are_read_as_they_are_written(
            number in 0..MAX_NUMBER,
            state in prop_oneof![Just(State::Live), Just(State::Leaving), Just(State::Gone)],
            shards in proptest::collection::btree_map(0..64_u8, (0..MAX_NUMBER, any::<bool>(), position()), 0..9),
            digest: u64,
        ) {
            let claims = shards.into_iter().map(|(shard, (generation, is_released, position))| Claim {
                shard: Shard::new(shard).unwrap(),
                generation,
                phase: if is_released { Phase::Released } else { Phase::Held },
                position,
            });
            let value = MemberValue { number, state, label: Name::new("node-1").ok(), claims: claims.collect(), digest };
            prop_assert_eq!(MemberValue::decode(&value.encode()).unwrap(), value);
        }

        #[test]
        fn assignments_are_read_as_they_are_written(
            planner: u64,
            shards in proptest::collection::vec(
                (proptest::option::of(0..9_u64), proptest::option::of(0..9_u64), 0..MAX_NUMBER, position()), 64),
            is_known: bool,
            begun in proptest::collection::btree_map(0..64_u8, 0..MAX_NUMBER, 0..65),
        ) {
            let shards = shards.into_iter().map(|(owner, next, generation, position)|
                Assigned { owner, next, generation, position });
            let older = vec![Stream { name: Arc::from("old"), epoch: 4 }, Stream { name: Arc::from("b"), epoch: 1 }];
            let next = begun.into_iter().map(|(shard, next)| (Shard::new(shard).unwrap(), next)).collect();
            let beginnings = vec![Beginning { stream: older[1].clone(), is_known, next }];
            let value = Assignment { planner, older, beginnings, shards: shards.collect() };
            let bytes = value.encode();
            prop_assert_eq!(&Assignment::decode(&bytes).unwrap(), &value);
            // As an earlier version writes it, which is in front of what was appended.
            let beginnings = value.encode_beginnings(&mut Streams::read(&mut &bytes[streams_at(&bytes)..]).unwrap());
            let mut earlier = bytes[..bytes.len() - beginnings.len()].to_vec();
            earlier[0] -= 1;
            prop_assert_eq!(Assignment::decode(&earlier).unwrap(), Assignment { beginnings: Vec::new(), ..value });
        }

        #[test]
        fn no_bytes_are_trusted(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (MemberValue::decode(&bytes), Assignment::decode(&bytes));
        }
    }

    #[test]
    fn other_versions_and_tails_are_rejected_and_appended_elements_skipped() {
        let value = MemberValue { number: 5, state: State::Live, label: None, claims: Vec::new(), digest: 0 };
        let mut bytes = value.encode();
        bytes[0] += 1;
        bytes.push(0x2a);
        assert_eq!(MemberValue::decode(&bytes).unwrap(), value);
        bytes.push(0);
        assert_eq!(MemberValue::decode(&bytes), Err(DecodeError::Trailing("member")));
        bytes[1] = 2;
        assert_eq!(MemberValue::decode(&bytes), Err(DecodeError::Version(2)));
        assert!(MemberValue::decode(&vec![0; MAX_VALUE_BYTES + 1]).is_err());
    }

    #[test]
    fn member_of_an_earlier_version_has_no_digest() {
        let value =
            MemberValue { number: 5, state: State::Live, label: Name::new("m1").ok(), claims: Vec::new(), digest: 9 };
        let earlier = [0x96, 1, 5, 0, 0xa2, b'm', b'1', 0x90, 0x90];
        assert_eq!(MemberValue::decode(&earlier).unwrap(), MemberValue { digest: 0, ..value.clone() });
        // That version skips the digest.
        assert_eq!(value.encode(), [&[0x97], &earlier[1..], &[9]].concat());
        assert!(MemberValue::decode(&[&[0x95], &earlier[1..8]].concat()).is_err());
    }
}
