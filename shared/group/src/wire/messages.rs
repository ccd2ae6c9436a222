//! The messages of leases, positions and repairs, drawn in [`wire`](super), and their parts.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

use rmp::encode as msgpack;
use sekiwake_record::{
    Kind, Name, SHARDS, Shard, Topic,
    msgpack::{Unexpected, read_array, skip},
};

use super::{
    ClientRegistered, Frame, GetHandoff, GetRecent, GetStreams, GetTemplates, HandoffEntries, HandoffStored, LeftAlone,
    MAX_DESTINATIONS, MAX_DOUBTS, MAX_GROUPS, MAX_MESSAGE_BYTES, MAX_RANGES, MAX_STREAMS, Number, OfferStatus,
    PutHandoff, Recent, RecentEnd, RegisterClient, Status, StatusWanted, Streams, Templates, VERSION, WireError,
    codec::{Element, VEC, array, code},
};
use crate::{
    Peer, Stream,
    coverage::{Coverage, Span},
};

code! {
    /// What a member does with a shard, as it reports it.
    Phase {
        /// It has subscribed and buffers.
        Prepared = 0,
        /// It acts on the shard, perhaps until a release is complete.
        Owned = 1,
        /// It has stopped at the commits in the same message, and never starts again in this
        /// generation.
        Released = 2,
    }
}

code! {
    /// What a member must do with a shard.
    Role {
        /// Subscribe and buffer.
        Prepare = 0,
        /// Act.
        Own = 1,
        /// Stop, and report the commits.
        Release = 2,
    }
}

code! {
    /// How the answer to a request for repair ends.
    Outcome {
        /// Everything that is retained was sent.
        Complete = 0,
        /// The request's budget is used up, and there is more.
        More = 1,
        /// Request again: the coordinator is new and does not know all publishers yet, or the
        /// publisher has too many requests.
        Wait = 2,
        /// No publisher answers for the stream.
        Gone = 3,
    }
}

code! {
    /// Why a member is not admitted.
    RejectionReason {
        /// The group works on another kind.
        Kind = 0,
        /// It does not speak the group's protocol, or would exclude another member.
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
        /// TCP, with or without TLS.
        Tcp = 1,
    }
}

array! {
    /// A member's report on one shard.
    Holding (list SHARDS) {
        /// The shard.
        shard: Shard,
        /// The generation of the grant; 0 while preparing.
        generation: Number,
        /// What the member does with it.
        phase: Phase,
    }
}

array! {
    /// A grant of one shard.
    Assignment (list SHARDS) {
        /// The shard.
        shard: Shard,
        /// The generation of the grant; 0 to prepare.
        generation: Number,
        /// The task that is granted.
        role: Role,
    }
}

array! {
    /// A sequence number in a topic: a commit, a start, the oldest record.
    Position (list Topic::COUNT) {
        /// The topic.
        topic: Topic,
        /// The sequence number.
        sequence: Number,
    }
}

array! {
    /// Sequence numbers in one stream.
    StreamPositions (list MAX_STREAMS) {
        /// The stream.
        stream: Stream,
        /// By topic.
        positions: Vec<Position>,
    }
}

array! {
    /// Where to start in a topic.
    Start (list Topic::COUNT) {
        /// The topic.
        topic: Topic,
        /// The first record to act on.
        sequence: Number,
        /// The stream's next sequence number, as far as it is announced. Records below it that
        /// never arrive are lost.
        next: Number,
    }
}

array! {
    /// Where to start in one stream.
    StreamStarts (list MAX_STREAMS) {
        /// The stream.
        stream: Stream,
        /// By topic.
        starts: Vec<Start>,
    }
}

array! {
    /// The records of a topic that a group has handled, or counted as lost.
    Covered (list Topic::COUNT) {
        /// The topic.
        topic: Topic,
        /// The first record of each range and the one after its last, ascending. What lies between
        /// two ranges is owed. An empty range says where the group began.
        ranges: Vec<Number>,
        /// The member that has reported most of it without owning the shard, in a grant.
        presenter: Option<Name>,
    }
}

impl Covered {
    pub(crate) fn new(topic: Topic, coverage: &Coverage) -> Covered {
        let ranges = coverage.spans().iter().flat_map(|span| [Number(span.from), Number(span.to)]);
        Covered { topic, ranges: ranges.collect(), presenter: None }
    }

    pub(crate) fn coverage(&self) -> Coverage {
        let pairs = self.ranges.chunks_exact(2);
        Coverage::of(pairs.map(|pair| Span { from: pair[0].0, to: pair[1].0 }))
    }
}

array! {
    /// What a group has handled of one stream, where it is more than one range from the beginning.
    StreamCoverage (list MAX_STREAMS) {
        /// The stream.
        stream: Stream,
        /// By topic.
        covered: Vec<Covered>,
    }
}

array! {
    /// What one group has handled of the stream of a publisher.
    GroupCoverage (list MAX_GROUPS) {
        /// The group.
        group: Name,
        /// For how long the group has existed.
        age_ns: u64,
        /// By topic.
        covered: Vec<Covered>,
    }
}

array! {
    /// Records that a former owner of shards may have handled without any living party's knowledge.
    Doubt (list MAX_DOUBTS) {
        /// The random number of the former owner's run; 0 if nobody knows who it was.
        member: u64,
        /// Its label; `None` if nobody knows who it was.
        label: Option<Name>,
        /// For how long the doubt has lasted.
        age_ns: u64,
        /// It has lasted for too long: what is missing counts as lost, under the reason `unknown`.
        is_unknowable: bool,
        /// The topics.
        topics: Vec<Topic>,
        /// In the listed streams only what lies before these ends, and nothing in topics without
        /// one. In other streams everything.
        ends: Vec<StreamPositions>,
    }
}

array! {
    /// What a stream has of one topic.
    Extent (list Topic::COUNT) {
        /// The topic.
        topic: Topic,
        /// The oldest record that the publisher retains.
        oldest: Number,
        /// The next sequence number.
        next: Number,
    }
}

array! {
    /// Records that are requested.
    Range (list MAX_RANGES) {
        /// The topic.
        topic: Topic,
        /// The first record.
        from: Number,
        /// The record after the last.
        to: Number,
    }
}

array! {
    /// An address that a forwarder sends to. Datagrams to it are not captured.
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

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::new(self.address.to_canonical(), self.port).fmt(f)
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
    /// The whole state of a member. Requests a lease; an unknown member joins.
    Renew (list 0) {
        /// The group.
        group: Name,
        /// The kind that the group works on.
        kind: Kind,
        /// The random number of the member's run.
        incarnation: u64,
        /// The member's name in logs and `/status`.
        label: Name,
        /// Counts renewals.
        renewal: u64,
        /// The lowest protocol that it speaks.
        lowest_protocol: u64,
        /// The highest protocol that it speaks.
        highest_protocol: u64,
        /// It is releasing its shards in order to leave.
        leaving: bool,
        /// The epoch of the coordinator whose grants it follows; 0 for none.
        coordinator: u64,
        /// Its shards.
        holdings: Vec<Holding>,
        /// Unacknowledged commits, and all commits of released shards.
        commits: Vec<StreamPositions>,
    }
    appended {
        /// One member of the group is to have all shards, and the others stand by.
        single_active: bool,
        /// The commits that are not one range from the beginning. They replace those of the same
        /// topics in `commits`.
        coverage: Vec<StreamCoverage>,
        /// For how long the group has existed.
        age_ns: u64,
        /// A hash of the destinations as they are configured, without secrets; 0 for none. Members
        /// of a group must have the same.
        destinations_digest: u64,
        /// The doubts about its shards, as the newest grant lists them: another coordinator does
        /// not know of them.
        doubts: Vec<Doubt>,
        /// The age of its lease from the coordinator under which it last had shards.
        former_lease_age_ns: u64,
    }
}

array! {
    /// The destinations of a member.
    Register (list 0) {
        /// The group.
        group: Name,
        /// The member.
        incarnation: u64,
        /// Counts this member's registrations. Each replaces the previous one.
        registration: u64,
        /// All of its destinations.
        destinations: Vec<Destination>,
    }
}

array! {
    /// Requests records and starts from a publisher.
    Repair (list 0) {
        /// The peer that requests: empty from a member, filled in by the coordinator.
        requester: Peer,
        /// Counts this member's requests.
        request: u64,
        /// The stream.
        stream: Stream,
        /// Maximum bytes of answers.
        max_bytes: u64,
        /// The records.
        ranges: Vec<Range>,
        /// Topics whose start is requested: the oldest record not older than `max_age_ns`.
        locate: Vec<Topic>,
        /// Age since publication, by the publisher's clock.
        max_age_ns: u64,
    }
    appended {
        /// The group that requests: the publisher answers a request for a start with what it
        /// remembers of the group.
        group: Option<Name>,
    }
}

array! {
    /// The whole state of a stream.
    Advertise (list 0) {
        /// The stream.
        stream: Stream,
        /// Counts advertisements.
        number: u64,
        /// The stream has ended.
        ended: bool,
        /// The publisher requests commits, because it drains or reads a file.
        wants_commits: bool,
        /// The epoch of the coordinator whose list of destinations it uses; 0 for none.
        coordinator: u64,
        /// The version of that list.
        list_version: u64,
        /// The topics that have records.
        extents: Vec<Extent>,
    }
    appended {
        /// What the publisher remembers of groups, and the coordinator has not said to know.
        groups: Vec<GroupCoverage>,
        /// How long ago it heard the coordinator before this one; 0 if it never did.
        former_age_ns: u64,
        /// Datagrams to destinations of clients that its capture threads left alone.
        left_alone: Vec<LeftAlone>,
    }
}

array! {
    /// A retransmitted batch.
    Repaired (list 0) {
        /// The peer that requested it.
        requester: Peer,
        /// The request.
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
    /// The end of the answer to a request.
    Done (list 0) {
        /// The peer that requested it.
        requester: Peer,
        /// The request.
        request: u64,
        /// The stream.
        stream: Stream,
        /// How it ends.
        outcome: Outcome,
        /// For topics whose requested records are no longer retained: the oldest retained record.
        retained: Vec<Position>,
        /// The requested starts.
        located: Vec<Position>,
    }
    appended {
        /// What the publisher remembers of the group in the topics whose starts are requested.
        covered: Vec<Covered>,
    }
}

array! {
    /// A lease, and the shards that it covers.
    Grant (list 0) {
        /// The group.
        group: Name,
        /// The member.
        incarnation: u64,
        /// The random number of the coordinator's run.
        coordinator: u64,
        /// Counts this coordinator's grants.
        number: u64,
        /// The newest renewal received from this member. The lease runs from when it was sent.
        renewal: u64,
        /// The group's protocol.
        protocol: u64,
        /// The member's newest registration that all publishers have acknowledged.
        registration: u64,
        /// All shards of the member.
        assignments: Vec<Assignment>,
        /// Where to start on shards that the member has not reported yet.
        starts: Vec<StreamStarts>,
        /// The newest registration received from the member. A newer one has to be sent again.
        known_registration: u64,
    }
    appended {
        /// What the group has handled, where it is more than one range from the beginning. It
        /// replaces the start of the same topic.
        coverage: Vec<StreamCoverage>,
        /// For how long the group has existed.
        age_ns: u64,
        /// The labels of members, eight at most, whose destinations have differed from this
        /// member's for a minute.
        differing: Vec<Name>,
        /// What former owners of its shards may have handled. Such records are not counted as lost.
        doubts: Vec<Doubt>,
    }
}

array! {
    /// The member is not admitted.
    Rejected (list 0) {
        /// The group.
        group: Name,
        /// The member.
        incarnation: u64,
        /// Why.
        reason: RejectionReason,
    }
}

array! {
    /// The list of destinations and the commits, for a publisher.
    Notice (list 0) {
        /// The stream.
        stream: Stream,
        /// The random number of the coordinator's run.
        coordinator: u64,
        /// The advertisement that it answers. Any number but the newest requests another one.
        number: u64,
        /// Whether the list and the commits are complete: the grace period after the coordinator's
        /// start is over.
        complete: bool,
        /// The version of the list of destinations.
        list_version: u64,
        /// Whether the list follows: only if the publisher has another version.
        has_list: bool,
        /// The list.
        destinations: Vec<Destination>,
        /// The kinds that groups with members work on, one bit each, 1 for kind 0.
        live_kinds: u8,
        /// By topic that has records: the commit of the slowest group with members.
        commits: Vec<Position>,
    }
    appended {
        /// What each group has handled of the stream.
        groups: Vec<GroupCoverage>,
        /// The destinations of the list that clients have registered, with the list: the publisher
        /// reports how many datagrams to them it leaves alone.
        counted: Vec<Destination>,
    }
}

/// The part of an answer that the coordinator reads before it passes the answer on unchanged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) requester: Peer,
    pub(crate) request: u64,
    pub(crate) stream: Stream,
    /// Whether it is the last answer to its request.
    pub(crate) is_done: bool,
}

impl Answer {
    /// Reads the beginning of an answer; `None` for any other message. Anything after the stream is
    /// skipped, as long as the frame is one array: the member checks it.
    pub(crate) fn peek(frame: &[u8]) -> Result<Option<Answer>, WireError> {
        if frame.len() > MAX_MESSAGE_BYTES {
            return Err(WireError::TooLarge(frame.len()));
        }
        let mut rest = frame;
        let length = read_array(&mut rest, "message")?;
        let fields = length.checked_sub(2).ok_or(Unexpected::new("message"))?;
        let version = u64::read(&mut rest)?;
        let number = u64::read(&mut rest)?;
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
            /// If it is not exactly one message of this version, within all limits.
            pub fn decode(frame: &[u8]) -> Result<Message, WireError> {
                if frame.len() > MAX_MESSAGE_BYTES {
                    return Err(WireError::TooLarge(frame.len()));
                }
                let mut rest = frame;
                let length = read_array(&mut rest, "message")?;
                let length = length.checked_sub(2).ok_or(Unexpected::new("message"))?;
                let version = u64::read(&mut rest)?;
                let number = u64::read(&mut rest)?;
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
    Rejected = 8,
    Notice = 9,
    PutHandoff = 10,
    GetHandoff = 11,
    HandoffStored = 12,
    HandoffEntries = 13,
    GetTemplates = 14,
    Templates = 15,
    OfferStatus = 16,
    StatusWanted = 17,
    Status = 18,
    GetStreams = 19,
    Streams = 20,
    GetRecent = 21,
    Recent = 22,
    RecentEnd = 23,
    RegisterClient = 24,
    ClientRegistered = 25
);

/// Whether a frame is one of the six messages of hand-off state, which have machines of their own.
/// Only its beginning is looked at.
pub fn is_handoff(frame: &[u8]) -> bool {
    matches!(number(frame), Some(PutHandoff::NUMBER..=Templates::NUMBER))
}

/// Whether a frame is one of the three messages of status, which have machines of their own. Only
/// its beginning is looked at.
pub fn is_status(frame: &[u8]) -> bool {
    matches!(number(frame), Some(OfferStatus::NUMBER..=Status::NUMBER))
}

/// Whether a frame is one of the five messages about recent records, which have machines of their
/// own. Only its beginning is looked at.
pub fn is_recent(frame: &[u8]) -> bool {
    matches!(number(frame), Some(GetStreams::NUMBER..=RecentEnd::NUMBER))
}

/// The number of the message in a frame of this version.
fn number(frame: &[u8]) -> Option<u64> {
    let mut rest = frame;
    read_array(&mut rest, "message").ok()?;
    let version = u64::read(&mut rest).ok()?;
    let number = u64::read(&mut rest).ok()?;
    (version == VERSION).then_some(number)
}
