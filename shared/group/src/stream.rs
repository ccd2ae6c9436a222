//! The names of streams and peers.

use std::{fmt, sync::Arc};

use arrayvec::ArrayVec;
use sekiwake_record::Name;

/// One run of one publisher.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Stream {
    /// The publisher's name.
    pub name: Arc<str>,
    /// The random number of the run. Compared for equality only.
    pub epoch: u64,
}

impl Stream {
    /// The stream of this publisher and run.
    pub fn new(name: &Name, epoch: u64) -> Stream {
        Stream { name: Arc::from(name.as_str()), epoch }
    }
}

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{:x}", self.name, self.epoch)
    }
}

/// The routing id of the party at the other end of a ROUTER: 16 random bytes that the party chooses
/// and keeps over reconnections, so that no other party can act in its name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Peer(ArrayVec<u8, 16>);

impl Peer {
    /// The peer with this routing id; `None` when it is longer than 16 bytes.
    pub fn new(routing_id: &[u8]) -> Option<Peer> {
        ArrayVec::try_from(routing_id).ok().map(Peer)
    }

    /// The routing id.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}
