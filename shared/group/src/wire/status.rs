//! The messages of status, drawn with the others in [`wire`](super).

use std::fmt;

use rmp::encode as msgpack;
use sekiwake_record::{
    Name,
    msgpack::{Unexpected, read_array, read_bytes, skip},
};

use super::codec::{Element, VEC, array};

/// The largest part of a status, bytes.
pub const MAX_STATUS_PART: usize = 16 << 10;
/// The most parts in one message.
pub const MAX_STATUS_PARTS: usize = 64;
/// The largest message of status. It is small because renewals queue behind it.
pub const MAX_STATUS_BYTES: usize = 64 << 10;

/// A JSON object, which the proxy passes on unread.
#[derive(Clone, PartialEq, Eq)]
pub struct StatusText(pub Vec<u8>);

impl fmt::Debug for StatusText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StatusText({} bytes)", self.0.len())
    }
}

impl Element for StatusText {
    fn write(&self, out: &mut Vec<u8>) {
        msgpack::write_bin(out, &self.0).expect(VEC);
    }
    fn read(rest: &mut &[u8]) -> Result<StatusText, Unexpected> {
        let bytes = read_bytes(rest, "status")?;
        if bytes.len() > MAX_STATUS_PART {
            return Err(Unexpected::new("status of an allowed length"));
        }
        Ok(StatusText(bytes.to_vec()))
    }
}

array! {
    /// A part of a status.
    StatusPart (list MAX_STATUS_PARTS) {
        /// The name of the part.
        part: Name,
        /// A JSON object.
        text: StatusText,
    }
}

array! {
    /// Says who would send status over this connection.
    OfferStatus (list 0) {
        /// The service.
        service: Name,
        /// The group, without the service's name; none for a service that is in no group.
        group: Option<Name>,
        /// The member's or publisher's name.
        member: Name,
        /// The random number of its run.
        incarnation: u64,
    }
}

array! {
    /// Whether somebody subscribes to status.
    StatusWanted (list 0) {
        /// The coordinator's random number.
        coordinator: u64,
        /// Whether status is to be sent in the next seconds.
        is_wanted: bool,
    }
}

array! {
    /// Parts of the status of the peer's service.
    Status (list 0) {
        /// The random number of its run.
        incarnation: u64,
        /// The parts.
        parts: Vec<StatusPart>,
    }
}
