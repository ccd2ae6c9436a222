//! The messages of readers that ask publishers for recent records, drawn with the others in
//! [`wire`](super).

use rmp::encode as msgpack;
use sekiwake_record::{
    Topic,
    msgpack::{Unexpected, read_array, skip},
};

use super::{
    Frame, MAX_MESSAGE_BYTES, Number, Position, Range, VERSION, WireError,
    codec::{Element, VEC, array, code},
};
use crate::{Peer, Stream};

/// The most batches in one message: their envelopes are small against their limit of bytes.
pub const MAX_RECENT_BATCHES: usize = 1_024;

code! {
    /// How the answer to a request for recent records ends.
    RecentOutcome {
        /// Everything requested that is retained was sent.
        Complete = 0,
        /// The request's budget is used up, and there is more.
        More = 1,
        /// Request again after a pause: too many readers request, or the coordinator is new and
        /// does not know all publishers yet.
        Wait = 2,
        /// The coordinator knows no live publisher of the stream.
        Gone = 3,
        /// The publisher does not answer: it is of a version that does not know the request, or
        /// hangs.
        Silent = 4,
    }
}

array! {
    /// Requests the streams of all live publishers.
    GetStreams (list 0) {
        /// Counts this reader's requests.
        request: u64,
    }
}

array! {
    /// The streams of all live publishers.
    Streams (list 0) {
        /// The request that is answered.
        request: u64,
        /// The coordinator's random number.
        coordinator: u64,
        /// Whether the coordinator knows all publishers. Request again otherwise.
        is_complete: bool,
        /// The streams.
        streams: Vec<Stream>,
    }
}

array! {
    /// Requests records that a publisher retains, and where records of a time begin.
    GetRecent (list 0) {
        /// The peer that requests: empty from a reader, filled in by the coordinator.
        requester: Peer,
        /// Counts this reader's requests.
        request: u64,
        /// The stream.
        stream: Stream,
        /// Maximum bytes of answers.
        max_bytes: u64,
        /// The records.
        ranges: Vec<Range>,
        /// Topics for which is requested where records captured at `since_ns` or later begin.
        locate: Vec<Topic>,
        /// Capture time, nanoseconds since 1970.
        since_ns: u64,
    }
}

array! {
    /// A retransmitted batch.
    RecentBatch (list MAX_RECENT_BATCHES) {
        /// The topic.
        topic: Topic,
        /// The first record that was requested and not sent yet. What lies between it and the
        /// batch is no longer retained.
        from: Number,
        /// The batch's header frame.
        header: Frame,
        /// The batch's body frame.
        body: Frame,
    }
}

array! {
    /// Retransmitted batches, for one reader.
    Recent (list 0) {
        /// The peer that requested them.
        requester: Peer,
        /// The request.
        request: u64,
        /// The stream.
        stream: Stream,
        /// The batches.
        batches: Vec<RecentBatch>,
    }
}

array! {
    /// The end of the answer to a request for recent records.
    RecentEnd (list 0) {
        /// The peer that requested them.
        requester: Peer,
        /// The request.
        request: u64,
        /// The stream.
        stream: Stream,
        /// How it ends.
        outcome: RecentOutcome,
        /// For topics whose requested records are no longer retained: the oldest retained record.
        retained: Vec<Position>,
        /// For the topics of `locate`: the oldest retained record of the time, and the topic's next
        /// sequence number.
        located: Vec<Range>,
    }
}

/// The part of a publisher's answer that the coordinator reads before it passes the answer on
/// unchanged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RecentAnswer {
    pub(crate) requester: Peer,
    pub(crate) request: u64,
    pub(crate) stream: Stream,
    /// Whether it is the last answer to its request.
    pub(crate) is_end: bool,
}

impl RecentAnswer {
    /// Reads the beginning of an answer; `None` for any other message. Anything after the stream is
    /// skipped, as long as the frame is one array: the reader checks it.
    pub(crate) fn peek(frame: &[u8]) -> Result<Option<RecentAnswer>, WireError> {
        if frame.len() > MAX_MESSAGE_BYTES {
            return Err(WireError::TooLarge(frame.len()));
        }
        let mut rest = frame;
        let length = read_array(&mut rest, "message")?;
        let fields = length.checked_sub(2).ok_or(Unexpected::new("message"))?;
        let version = u64::read(&mut rest)?;
        let number = u64::read(&mut rest)?;
        let (least, is_end) = match (version, number) {
            (VERSION, Recent::NUMBER) => (Recent::FIELDS, false),
            (VERSION, RecentEnd::NUMBER) => (RecentEnd::FIELDS, true),
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
            Ok(Some(RecentAnswer { requester, request, stream, is_end }))
        } else {
            Err(WireError::Trailing)
        }
    }
}
