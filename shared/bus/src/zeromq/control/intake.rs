//! Received control messages that wait for the coordinator. No socket.
//!
//! The socket's own pipes have no limit, because libzmq would stop reading a connection whose pipe
//! is full (see `socket`). They are drained into this queue before each burst of work, and the
//! peers take turns. A party that sends more than is handled loses its own messages; as each
//! message carries a complete state, a later one makes up for them.

use std::collections::{HashMap, VecDeque};

use sekiwake_group::Peer;

/// The most bytes that wait from one peer: a quarter of a second of retransmitted records.
const PEER_BYTES: usize = 16 << 20;
/// The most bytes that wait from all peers.
const ALL_BYTES: usize = 128 << 20;
/// Counted for each message in addition to its bytes: the queue's own memory.
const MESSAGE_BYTES: usize = 128;

/// See the module.
pub(crate) struct Intake<Frame> {
    waiting: HashMap<Peer, Waiting<Frame>>,
    /// The peers with messages. The first one is next.
    turns: VecDeque<Peer>,
    bytes: usize,
}

/// The messages of one peer.
struct Waiting<Frame> {
    frames: VecDeque<Frame>,
    bytes: usize,
}

impl<Frame> Default for Intake<Frame> {
    fn default() -> Intake<Frame> {
        Intake { waiting: HashMap::new(), turns: VecDeque::new(), bytes: 0 }
    }
}

impl<Frame: AsRef<[u8]>> Intake<Frame> {
    pub(crate) fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }

    /// Adds a message. Returns `false` if there is no room for it.
    pub(crate) fn push(&mut self, peer: Peer, frame: Frame) -> bool {
        let bytes = frame.as_ref().len() + MESSAGE_BYTES;
        if self.bytes + bytes > ALL_BYTES {
            return false;
        }
        let waiting = self.waiting.entry(peer.clone()).or_insert_with(|| {
            self.turns.push_back(peer);
            Waiting { frames: VecDeque::new(), bytes: 0 }
        });
        if waiting.bytes + bytes > PEER_BYTES {
            return false;
        }
        waiting.bytes += bytes;
        waiting.frames.push_back(frame);
        self.bytes += bytes;
        true
    }

    /// The earliest message of the peer whose turn it is.
    pub(crate) fn pop(&mut self) -> Option<(Peer, Frame)> {
        let peer = self.turns.pop_front()?;
        let waiting = self.waiting.get_mut(&peer)?;
        let frame = waiting.frames.pop_front()?;
        let bytes = frame.as_ref().len() + MESSAGE_BYTES;
        waiting.bytes -= bytes;
        self.bytes -= bytes;
        if waiting.frames.is_empty() {
            self.waiting.remove(&peer);
        } else {
            self.turns.push_back(peer.clone());
        }
        Some((peer, frame))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flood_of_one_peer_costs_only_its_own_messages() {
        let mut intake = Intake::default();
        let [flooding, other] = [[1], [2]].map(|id| Peer::new(&id).unwrap());
        let taken = (0..PEER_BYTES).take_while(|_| intake.push(flooding.clone(), b"x".to_vec())).count();
        assert_eq!(taken, PEER_BYTES / (1 + MESSAGE_BYTES));
        assert!(intake.push(other.clone(), b"y".to_vec()));
        // They take turns.
        assert_eq!(intake.pop(), Some((flooding.clone(), b"x".to_vec())));
        assert_eq!(intake.pop(), Some((other, b"y".to_vec())));
        for _ in 1..taken {
            assert_eq!(intake.pop(), Some((flooding.clone(), b"x".to_vec())));
        }
        assert_eq!(intake.pop(), None);
        assert!((intake.is_empty(), intake.bytes, intake.waiting.len()) == (true, 0, 0));
    }

    #[test]
    fn bytes_of_all_peers_are_bounded() {
        let mut intake = Intake::default();
        let mut taken = 0;
        for id in 0..=u8::MAX {
            while intake.push(Peer::new(&[id]).unwrap(), vec![0; 1 << 20]) {
                taken += 1;
            }
        }
        assert!(taken << 20 <= ALL_BYTES && taken << 20 > ALL_BYTES - (2 << 20), "{taken}");
        assert!(!intake.push(Peer::new(b"late").unwrap(), vec![0; 1 << 20]));
    }
}
