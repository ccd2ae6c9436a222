//! The messages of the control plane. Each is one frame, a msgpack array that begins with the version and the message's number.
//!
//! ```text
//! member ─▶ coordinator
//!   1 Renew      [1, 1, group, kind, incarnation, label, renewal, lowest_protocol, highest_protocol, leaving, coordinator,
//!                 [[shard, generation, phase]], [[[stream_name, stream_epoch], [[topic, sequence]]]], one_works]
//!   2 Register   [1, 2, group, incarnation, registration, [[address, port, protocol]]]
//!   3 Repair     [1, 3, requester, request, [stream_name, stream_epoch], max_bytes, [[topic, from, to]], [topic], max_age_ns]
//! publisher ─▶ coordinator
//!   4 Advertise  [1, 4, [stream_name, stream_epoch], number, ended, wants_commits, coordinator, list_version,
//!                 [[topic, oldest_sequence, next_sequence]]]
//! publisher ─▶ coordinator ─▶ member, as it is
//!   5 Repaired   [1, 5, requester, request, [stream_name, stream_epoch], topic, header, body]
//!   6 Done       [1, 6, requester, request, [stream_name, stream_epoch], outcome, [[topic, oldest]], [[topic, start]]]
//! coordinator ─▶ member
//!   7 Grant      [1, 7, group, incarnation, coordinator, number, renewal, protocol, registration,
//!                 [[shard, generation, role]], [[[stream_name, stream_epoch], [[topic, sequence, next_sequence]]]],
//!                 heard_registration]
//!   8 Refused    [1, 8, group, incarnation, reason]
//! coordinator ─▶ publisher
//!   3 Repair     as it came, with the requester filled in
//!   9 Notice     [1, 9, [stream_name, stream_epoch], coordinator, number, settled, list_version, has_list,
//!                 [[address, port, protocol]], live_kinds, [[topic, committed_sequence]]]
//! member ─▶ coordinator
//!  10 Notes      [1, 10, group, incarnation, number, [[shard, key, value, at_ns]]]
//!  11 WantNotes  [1, 11, group, incarnation, coordinator, request, [[shard, after_version]]]
//! coordinator ─▶ member
//!  12 NotesKept  [1, 12, group, incarnation, coordinator, number]
//!  13 HeldNotes  [1, 13, group, incarnation, coordinator, request, [[shard, up_to_version, is_whole]],
//!                 [[shard, key, value, at_ns]]]
//! ```
//!
//! `shard` is 0 to 63 and `topic` is 64 × kind + shard; kinds are 0 syslog, 1 xflow, 2 snmptrap. `header` and `body` are the frames
//! of the data plane, as bin; `address` is bin of 16, an IPv4 address mapped; `key` is bin of 1 to 64 bytes, `value` of 0 to 8 KiB.
//! Later versions append to the arrays, at every level: a reader takes what it knows and passes over the rest.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use rmp::encode as msgpack;
use sekiwake_record::{
    Kind, Name, SHARDS, Shard, Topic,
    msgpack::{Unexpected, read_array, read_bytes, read_number, read_text, read_truth, skip},
};

pub use self::notes::{
    HeldNotes, MAX_NOTE_KEY, MAX_NOTE_VALUE, MAX_NOTES, MAX_NOTES_BYTES, Note, NoteKey, NoteValue, Notes, NotesKept,
    ShardCursor, ShardReached, WantNotes,
};
use crate::{MAX_NUMBER, Peer, Stream};

/// The version of the envelope. Appending does not change it.
pub const VERSION: u64 = 1;
/// The lowest protocol that this crate's machines speak, in the negotiation of a group.
pub const LOWEST_PROTOCOL: u64 = 1;
/// The highest.
pub const HIGHEST_PROTOCOL: u64 = 1;
/// The largest message that is looked at: the positions of all shards in all streams fit.
pub const MAX_MESSAGE_BYTES: usize = 1 << 20;
/// The most streams that one message, or one party, deals with.
pub const MAX_STREAMS: usize = 256;
/// The most destinations of one member, and sixteen times as many in the list for publishers.
pub const MAX_DESTINATIONS: usize = 256;
/// The most ranges in one request.
pub const MAX_RANGES: usize = 256;

/// Why a control message is refused. It is counted and changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Larger than any honest message.
    #[error("a control message of {0} bytes is too large")]
    TooLarge(usize),
    /// Not msgpack of the prescribed shape, or out of bounds.
    #[error("malformed control message: {0}")]
    Malformed(String),
    /// A version or message that this reader does not know.
    #[error("unknown control message, version {version}, number {number}")]
    Unknown {
        /// The envelope's version.
        version: u64,
        /// The message's number.
        number: u64,
    },
    /// Bytes are left after the array.
    #[error("trailing garbage after the control message")]
    Trailing,
}

impl From<Unexpected> for WireError {
    fn from(unexpected: Unexpected) -> WireError {
        WireError::Malformed(unexpected.to_string())
    }
}

/// What can stand in an array.
trait Element: Sized {
    /// The most of these that a list may hold.
    const MAX: usize = 0;
    fn write(&self, out: &mut Vec<u8>);
    fn read(rest: &mut &[u8]) -> Result<Self, Unexpected>;
}

/// Writes cannot fail: a `Vec` takes whatever is written to it.
const VEC: &str = "a Vec takes whatever is written to it";

macro_rules! number {
    ($($type:ty),*) => {$(
        impl Element for $type {
            fn write(&self, out: &mut Vec<u8>) {
                msgpack::write_uint(out, u64::from(*self)).expect(VEC);
            }
            fn read(rest: &mut &[u8]) -> Result<$type, Unexpected> {
                read_number(rest, stringify!($type))
            }
        }
    )*};
}
number!(u8, u16, u64);

impl Element for bool {
    fn write(&self, out: &mut Vec<u8>) {
        msgpack::write_bool(out, *self).expect(VEC);
    }
    fn read(rest: &mut &[u8]) -> Result<bool, Unexpected> {
        read_truth(rest, "truth value")
    }
}

impl Element for Name {
    fn write(&self, out: &mut Vec<u8>) {
        msgpack::write_str(out, self.as_str()).expect(VEC);
    }
    fn read(rest: &mut &[u8]) -> Result<Name, Unexpected> {
        Name::new(read_text(rest, "name")?).map_err(|_| Unexpected::new("allowed name"))
    }
}

impl Element for Kind {
    fn write(&self, out: &mut Vec<u8>) {
        (self.index() as u8).write(out);
    }
    fn read(rest: &mut &[u8]) -> Result<Kind, Unexpected> {
        let index: usize = usize::from(u8::read(rest)?);
        Kind::ALL.get(index).copied().ok_or(Unexpected::new("kind"))
    }
}

impl Element for Shard {
    fn write(&self, out: &mut Vec<u8>) {
        (self.index() as u8).write(out);
    }
    fn read(rest: &mut &[u8]) -> Result<Shard, Unexpected> {
        Shard::new(u8::read(rest)?).ok_or(Unexpected::new("shard"))
    }
}

impl Element for Topic {
    const MAX: usize = SHARDS;
    fn write(&self, out: &mut Vec<u8>) {
        (self.index() as u8).write(out);
    }
    fn read(rest: &mut &[u8]) -> Result<Topic, Unexpected> {
        Topic::from_index(usize::from(u8::read(rest)?)).ok_or(Unexpected::new("topic"))
    }
}

/// A sequence number or a generation, below [`MAX_NUMBER`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Number(pub u64);

impl Element for Number {
    fn write(&self, out: &mut Vec<u8>) {
        self.0.write(out);
    }
    fn read(rest: &mut &[u8]) -> Result<Number, Unexpected> {
        match u64::read(rest)? {
            number @ 0..MAX_NUMBER => Ok(Number(number)),
            _ => Err(Unexpected::new("number within belief")),
        }
    }
}

impl Element for Stream {
    fn write(&self, out: &mut Vec<u8>) {
        msgpack::write_array_len(out, 2).expect(VEC);
        msgpack::write_str(out, &self.name).expect(VEC);
        self.epoch.write(out);
    }
    fn read(rest: &mut &[u8]) -> Result<Stream, Unexpected> {
        let more = read_array(rest, "stream")?.checked_sub(2).ok_or(Unexpected::new("stream"))?;
        let name = Name::read(rest)?;
        let stream = Stream { name: Arc::from(name.as_str()), epoch: u64::read(rest)? };
        skip(rest, more).map(|()| stream)
    }
}

impl Element for Peer {
    fn write(&self, out: &mut Vec<u8>) {
        msgpack::write_bin(out, self.as_bytes()).expect(VEC);
    }
    fn read(rest: &mut &[u8]) -> Result<Peer, Unexpected> {
        Peer::new(read_bytes(rest, "requester")?).ok_or(Unexpected::new("routing id"))
    }
}

impl Element for Ipv6Addr {
    fn write(&self, out: &mut Vec<u8>) {
        msgpack::write_bin(out, &self.octets()).expect(VEC);
    }
    fn read(rest: &mut &[u8]) -> Result<Ipv6Addr, Unexpected> {
        let octets: [u8; 16] = read_bytes(rest, "address")?.try_into().map_err(|_| Unexpected::new("address"))?;
        Ok(Ipv6Addr::from(octets))
    }
}

/// A frame of the data plane within a message.
#[derive(Clone, PartialEq, Eq)]
pub struct Frame(pub Vec<u8>);

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Frame({} bytes)", self.0.len())
    }
}

impl Element for Frame {
    fn write(&self, out: &mut Vec<u8>) {
        msgpack::write_bin(out, &self.0).expect(VEC);
    }
    fn read(rest: &mut &[u8]) -> Result<Frame, Unexpected> {
        read_bytes(rest, "frame").map(|bytes| Frame(bytes.to_vec()))
    }
}

impl<T: Element> Element for Vec<T> {
    fn write(&self, out: &mut Vec<u8>) {
        msgpack::write_array_len(out, self.len() as u32).expect(VEC);
        self.iter().for_each(|element| element.write(out));
    }
    fn read(rest: &mut &[u8]) -> Result<Vec<T>, Unexpected> {
        let length = read_array(rest, "list")? as usize;
        if length > T::MAX {
            return Err(Unexpected::new("list of an allowed length"));
        }
        // Every element takes a byte at least, so a length that lies cannot make the allocation large.
        let mut list = Vec::with_capacity(length.min(rest.len()));
        for _ in 0..length {
            list.push(T::read(rest)?);
        }
        Ok(list)
    }
}

/// The elements of a list that are a small set of numbers on the wire.
macro_rules! code {
    ($(#[$about:meta])* $name:ident { $($(#[$item_about:meta])* $item:ident = $code:literal),* $(,)? }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$item_about])* $item),* }
        impl Element for $name {
            fn write(&self, out: &mut Vec<u8>) {
                let code: u8 = match self { $($name::$item => $code),* };
                code.write(out);
            }
            fn read(rest: &mut &[u8]) -> Result<$name, Unexpected> {
                match u8::read(rest)? {
                    $($code => Ok($name::$item),)*
                    _ => Err(Unexpected::new(stringify!($name))),
                }
            }
        }
    };
}

code! {
    /// What a member says of a shard.
    Phase {
        /// It is subscribed and buffers.
        Prepared = 0,
        /// It acts on it, or has been asked to stop and has not yet.
        Owned = 1,
        /// It has stopped, for good in this generation, at the positions in the same message.
        Released = 2,
    }
}

code! {
    /// What a member is to do with a shard.
    Role {
        /// Subscribe and buffer.
        Prepare = 0,
        /// Act.
        Own = 1,
        /// Stop, and say where.
        Release = 2,
    }
}

code! {
    /// How a request for repair ended.
    Outcome {
        /// Everything that is retained has been sent.
        Complete = 0,
        /// The request's budget is used up: there is more.
        More = 1,
        /// Ask again: the coordinator is new and does not know all publishers yet, or the publisher has too much to do.
        Wait = 2,
        /// Nobody answers for this stream.
        Gone = 3,
    }
}

code! {
    /// Why a member is not in its group.
    RefusalReason {
        /// The group works on another kind.
        Kind = 0,
        /// It does not speak the group's protocol.
        Protocol = 1,
        /// Too many groups or members.
        Full = 2,
    }
}

code! {
    /// The transport of a destination.
    Transport {
        /// UDP.
        Udp = 0,
        /// TCP, with TLS or without.
        Tcp = 1,
    }
}

/// A struct that is an array on the wire. `list` is the most that a list of them may hold; what is `appended` has not always been there,
/// and is its type's default where it is missing.
macro_rules! array {
    (
        $(#[$about:meta])* $name:ident (list $max:expr) { $($(#[$field_about:meta])* $field:ident: $type:ty),* $(,)? }
        $(appended { $($(#[$later_about:meta])* $later:ident: $later_type:ty),* $(,)? })?
    ) => {
        $(#[$about])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $name { $($(#[$field_about])* pub $field: $type,)* $($($(#[$later_about])* pub $later: $later_type),*)? }
        impl $name {
            /// What it has always had, and what is written today.
            pub(super) const FIELDS: u32 = [$(stringify!($field)),*].len() as u32;
            pub(super) const WRITTEN: u32 = [$(stringify!($field),)* $($(stringify!($later)),*)?].len() as u32;
            pub(super) fn write_fields(&self, out: &mut Vec<u8>) {
                $(self.$field.write(out);)*
                $($(self.$later.write(out);)*)?
            }
            pub(super) fn read_fields(rest: &mut &[u8], length: u32) -> Result<$name, Unexpected> {
                let left = length.checked_sub($name::FIELDS).ok_or(Unexpected::new(stringify!($name)))?;
                $(let $field = Element::read(rest)?;)*
                $($(let (left, $later) = match left.checked_sub(1) {
                    Some(left) => (left, Element::read(rest)?),
                    None => (left, <$later_type>::default()),
                };)*)?
                let value = $name { $($field,)* $($($later),*)? };
                skip(rest, left).map(|()| value)
            }
        }
        impl Element for $name {
            const MAX: usize = $max;
            fn write(&self, out: &mut Vec<u8>) {
                msgpack::write_array_len(out, $name::WRITTEN).expect(VEC);
                self.write_fields(out);
            }
            fn read(rest: &mut &[u8]) -> Result<$name, Unexpected> {
                let length = read_array(rest, stringify!($name))?;
                $name::read_fields(rest, length)
            }
        }
    };
}

// Behind the macros that it uses.
mod notes;

array! {
    /// What a member holds of one shard.
    Holding (list SHARDS) {
        /// The shard.
        shard: Shard,
        /// The generation of the grant; 0 while it prepares.
        generation: Number,
        /// What it does with it.
        phase: Phase,
    }
}

array! {
    /// What a member is granted of one shard.
    Assignment (list SHARDS) {
        /// The shard.
        shard: Shard,
        /// The generation of the grant; 0 for one to prepare.
        generation: Number,
        /// What to do with it.
        role: Role,
    }
}

array! {
    /// A place in a topic: a commit, a start, the oldest record.
    Position (list Topic::COUNT) {
        /// The topic.
        topic: Topic,
        /// The sequence number.
        sequence: Number,
    }
}

array! {
    /// Places in one stream.
    StreamPositions (list MAX_STREAMS) {
        /// The stream.
        stream: Stream,
        /// The places, by topic.
        positions: Vec<Position>,
    }
}

array! {
    /// Where to begin in a topic.
    Start (list Topic::COUNT) {
        /// The topic.
        topic: Topic,
        /// The first record to act on.
        sequence: Number,
        /// The number that the stream's next record will have, as far as it has said: what is below and never comes is lost.
        next: Number,
    }
}

array! {
    /// Where to begin in one stream.
    StreamStarts (list MAX_STREAMS) {
        /// The stream.
        stream: Stream,
        /// The places, by topic.
        starts: Vec<Start>,
    }
}

array! {
    /// What a stream has on one topic.
    Extent (list Topic::COUNT) {
        /// The topic.
        topic: Topic,
        /// The oldest record that the publisher can still repeat.
        oldest: Number,
        /// The number that the next record will have.
        next: Number,
    }
}

array! {
    /// Records that are asked for.
    Range (list MAX_RANGES) {
        /// The topic.
        topic: Topic,
        /// The first.
        from: Number,
        /// The one after the last.
        to: Number,
    }
}

array! {
    /// Where a forwarder sends to: what is addressed there is not captured.
    Destination (list 16 * MAX_DESTINATIONS) {
        /// The address; an IPv4 address in its mapped form.
        address: Ipv6Addr,
        /// The port.
        port: u16,
        /// UDP or TCP.
        transport: Transport,
    }
}

impl Destination {
    /// The destination at this address.
    pub fn new(address: IpAddr, port: u16, transport: Transport) -> Destination {
        let address = match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        Destination { address, port, transport }
    }

    fn key(&self) -> (Ipv6Addr, u16, bool) {
        (self.address, self.port, self.transport == Transport::Tcp)
    }
}

impl PartialOrd for Destination {
    fn partial_cmp(&self, other: &Destination) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Destination {
    fn cmp(&self, other: &Destination) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

array! {
    /// A member's whole state; asks for a lease, and joins when it is not known.
    Renew (list 0) {
        /// The group.
        group: Name,
        /// What the group works on.
        kind: Kind,
        /// The member's random number.
        incarnation: u64,
        /// What people call it.
        label: Name,
        /// Counts renewals, upwards.
        renewal: u64,
        /// The lowest protocol that it speaks.
        lowest_protocol: u64,
        /// The highest.
        highest_protocol: u64,
        /// It wants to be rid of its shards, and go.
        leaving: bool,
        /// The epoch of the coordinator whose grants it follows; 0 for none.
        coordinator: u64,
        /// What it holds.
        holdings: Vec<Holding>,
        /// Commits that have not been acknowledged, and all those of shards that it has released.
        commits: Vec<StreamPositions>,
    }
    appended {
        /// Of its group one member is to have all shards, and the others stand by.
        one_works: bool,
    }
}

array! {
    /// Where a member is going to send to.
    Register (list 0) {
        /// The group.
        group: Name,
        /// The member.
        incarnation: u64,
        /// Counts a member's registrations, upwards; each replaces the one before.
        registration: u64,
        /// All its destinations.
        destinations: Vec<Destination>,
    }
}

array! {
    /// Asks a publisher for records, and for where to begin.
    Repair (list 0) {
        /// Who asks; empty from a member, filled in by the coordinator.
        requester: Peer,
        /// Counts a member's requests.
        request: u64,
        /// Whose records.
        stream: Stream,
        /// The most bytes of answers.
        max_bytes: u64,
        /// The records.
        ranges: Vec<Range>,
        /// Topics whose oldest record not older than `max_age_ns` is asked for.
        locate: Vec<Topic>,
        /// By the publisher's own clock, since it published the record.
        max_age_ns: u64,
    }
}

array! {
    /// A publisher's whole state.
    Advertise (list 0) {
        /// The stream.
        stream: Stream,
        /// Counts advertisements.
        number: u64,
        /// This is its last word.
        ended: bool,
        /// It wants to know where groups stand: it drains, or reads a file.
        wants_commits: bool,
        /// The epoch of the coordinator whose list of destinations it has; 0 for none.
        coordinator: u64,
        /// Which list.
        list_version: u64,
        /// Topics that have had records.
        extents: Vec<Extent>,
    }
}

array! {
    /// A batch again.
    Repaired (list 0) {
        /// Who asked.
        requester: Peer,
        /// In which request.
        request: u64,
        /// The stream.
        stream: Stream,
        /// The topic.
        topic: Topic,
        /// The batch's header frame.
        header: Frame,
        /// The batch's body frame.
        body: Frame,
    }
}

array! {
    /// The end of an answer.
    Done (list 0) {
        /// Who asked.
        requester: Peer,
        /// In which request.
        request: u64,
        /// The stream.
        stream: Stream,
        /// How it ended.
        outcome: Outcome,
        /// For topics of which older records were asked for than there are: the oldest that there is.
        retained: Vec<Position>,
        /// Where to begin on the topics to be located.
        located: Vec<Position>,
    }
}

array! {
    /// A lease, and all that it is for.
    Grant (list 0) {
        /// The group.
        group: Name,
        /// The member.
        incarnation: u64,
        /// The coordinator's random number.
        coordinator: u64,
        /// Counts a coordinator's grants, upwards.
        number: u64,
        /// The newest renewal that this member was heard of with: the lease runs from when that was sent.
        renewal: u64,
        /// The group's protocol.
        protocol: u64,
        /// The member's newest registration that all publishers have acknowledged.
        registration: u64,
        /// The member's shards, all of them.
        assignments: Vec<Assignment>,
        /// Where to begin on shards that the member has not yet said to own.
        starts: Vec<StreamStarts>,
        /// The member's newest registration that has been heard of: a newer one has to be sent again.
        heard_registration: u64,
    }
}

array! {
    /// No lease.
    Refused (list 0) {
        /// The group.
        group: Name,
        /// The member.
        incarnation: u64,
        /// Why.
        reason: RefusalReason,
    }
}

array! {
    /// What a publisher has to know.
    Notice (list 0) {
        /// The stream.
        stream: Stream,
        /// The coordinator's random number.
        coordinator: u64,
        /// The newest advertisement that it answers.
        number: u64,
        /// Whether all members have had the time to be heard: the list and the commits are complete.
        settled: bool,
        /// The version of the list of destinations.
        list_version: u64,
        /// Whether the list follows; it does where the publisher has another version.
        has_list: bool,
        /// The list.
        destinations: Vec<Destination>,
        /// Kinds that live groups work on, one bit each, 1 for kind 0.
        live_kinds: u8,
        /// For each topic that has records and a live group: where the slowest stands.
        commits: Vec<Position>,
    }
}

/// What the coordinator reads of an answer to a request before it passes it on as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) requester: Peer,
    pub(crate) request: u64,
    pub(crate) stream: Stream,
    /// Whether it is the last of its request.
    pub(crate) is_done: bool,
}

impl Answer {
    /// The answer that a frame is; `None` for any other message. The whole frame is one array without trailing bytes, but what
    /// follows the stream is passed over: the member that gets it checks it.
    pub(crate) fn peek(frame: &[u8]) -> Result<Option<Answer>, WireError> {
        if frame.len() > MAX_MESSAGE_BYTES {
            return Err(WireError::TooLarge(frame.len()));
        }
        let mut rest = frame;
        let length = read_array(&mut rest, "message")?;
        let fields = length.checked_sub(2).ok_or(Unexpected::new("message"))?;
        let (version, number) = (u64::read(&mut rest)?, u64::read(&mut rest)?);
        let (least, is_done) = match (version, number) {
            (VERSION, Repaired::NUMBER) => (Repaired::FIELDS, false),
            (VERSION, Done::NUMBER) => (Done::FIELDS, true),
            _ => return Ok(None),
        };
        if fields < least {
            return Err(Unexpected::new("answer").into());
        }
        let requester = Peer::read(&mut rest)?;
        let request = u64::read(&mut rest)?;
        let stream = Stream::read(&mut rest)?;
        skip(&mut rest, fields - 3)?;
        if rest.is_empty() {
            Ok(Some(Answer { requester, request, stream, is_done }))
        } else {
            Err(WireError::Trailing)
        }
    }
}

macro_rules! messages {
    ($($name:ident = $number:literal),*) => {
        /// Any message of the control plane.
        #[derive(Clone, Debug, PartialEq, Eq)]
        #[expect(missing_docs, reason = "each is documented as the struct of the same name")]
        pub enum Message { $($name($name)),* }
        impl Message {
            /// The frame.
            pub fn encode(&self) -> Vec<u8> {
                let mut out = Vec::with_capacity(64);
                match self {
                    $(Message::$name(message) => {
                        msgpack::write_array_len(&mut out, 2 + $name::WRITTEN).expect(VEC);
                        VERSION.write(&mut out);
                        $name::NUMBER.write(&mut out);
                        message.write_fields(&mut out);
                    })*
                }
                out
            }

            /// Reads a frame.
            ///
            /// # Errors
            /// Whatever is not exactly a message of this version within all bounds.
            pub fn decode(frame: &[u8]) -> Result<Message, WireError> {
                if frame.len() > MAX_MESSAGE_BYTES {
                    return Err(WireError::TooLarge(frame.len()));
                }
                let mut rest = frame;
                let length = read_array(&mut rest, "message")?;
                let length = length.checked_sub(2).ok_or(Unexpected::new("message"))?;
                let (version, number) = (u64::read(&mut rest)?, u64::read(&mut rest)?);
                let message = match (version, number) {
                    $((VERSION, $name::NUMBER) => Message::$name($name::read_fields(&mut rest, length)?),)*
                    _ => return Err(WireError::Unknown { version, number }),
                };
                if rest.is_empty() { Ok(message) } else { Err(WireError::Trailing) }
            }
        }
        $(impl $name {
            /// The message's number.
            pub const NUMBER: u64 = $number;
        }
        impl From<$name> for Message {
            fn from(message: $name) -> Message {
                Message::$name(message)
            }
        })*
    };
}

messages!(
    Renew = 1,
    Register = 2,
    Repair = 3,
    Advertise = 4,
    Repaired = 5,
    Done = 6,
    Grant = 7,
    Refused = 8,
    Notice = 9,
    Notes = 10,
    WantNotes = 11,
    NotesKept = 12,
    HeldNotes = 13
);

/// Whether a frame is one of the four messages about notes, which are for machines of their own. Only its beginning is looked at.
pub fn is_about_notes(frame: &[u8]) -> bool {
    let mut rest = frame;
    let envelope = read_array(&mut rest, "message").and_then(|_| Ok((u64::read(&mut rest)?, u64::read(&mut rest)?)));
    matches!(envelope, Ok((VERSION, Notes::NUMBER..=HeldNotes::NUMBER)))
}
