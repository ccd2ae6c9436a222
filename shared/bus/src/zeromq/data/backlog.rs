//! Messages of publishers that the relay has read and not relayed. No socket.
//!
//! The relay reads faster than libzmq receives, so this is empty except after a pause of the
//! relay's thread. When it is full, messages are dropped and counted; subscribers see them as gaps.

use std::collections::VecDeque;

use crate::zeromq::socket::Rest;

/// The most bytes that wait: over a second of 100 MB/s.
const MAX_BYTES: usize = 128 << 20;
/// Counted for each message in addition to its parts: the queue's own memory.
const MESSAGE_BYTES: usize = size_of::<Incoming>();

/// A message of a publisher.
pub(crate) struct Incoming {
    pub(crate) topic: zmq::Message,
    pub(crate) rest: Rest<2>,
}

impl Incoming {
    fn bytes(&self) -> usize {
        let parts = self.rest.parts.iter().flatten().map(|part| part.len());
        MESSAGE_BYTES + self.topic.len() + parts.sum::<usize>()
    }
}

/// See the module.
#[derive(Default)]
pub(crate) struct Backlog {
    queue: VecDeque<Incoming>,
    bytes: usize,
}

impl Backlog {
    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Adds a message. Returns `false` if there is no room for it.
    pub(crate) fn push(&mut self, message: Incoming) -> bool {
        let bytes = message.bytes();
        if self.bytes + bytes > MAX_BYTES {
            return false;
        }
        self.bytes += bytes;
        self.queue.push_back(message);
        true
    }

    /// The earliest message.
    pub(crate) fn pop(&mut self) -> Option<Incoming> {
        let message = self.queue.pop_front()?;
        self.bytes -= message.bytes();
        Some(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backlog_is_bounded_by_bytes() {
        let mut backlog = Backlog::default();
        let message = || Incoming {
            topic: zmq::Message::from("syslog/00"),
            rest: Rest { count: 2, parts: [Some(vec![0; 100].into()), Some(vec![0; 1 << 20].into())] },
        };
        let taken = (0..1_000).take_while(|_| backlog.push(message())).count();
        assert!((taken + 1) << 20 <= MAX_BYTES && (taken + 2) << 20 > MAX_BYTES, "{taken}");
        assert!(backlog.pop().is_some() && backlog.push(message()) && !backlog.push(message()));
        for _ in 0..taken {
            assert_eq!(backlog.pop().map(|message| message.rest.count), Some(2));
        }
        assert!(backlog.is_empty() && backlog.bytes == 0 && backlog.pop().is_none());
    }
}
