//! The memory of received records.

use crate::zeromq::Message;

/// A part of a received message. Records borrow from it.
#[derive(Debug)]
pub struct Frame(Bytes);

/// One variant per kind of memory, so that no batch is copied.
#[derive(Debug)]
enum Bytes {
    /// A message of ZeroMQ.
    ZeroMq(Message),
    /// Part of a larger message: a retransmitted batch.
    Copied(Vec<u8>),
    /// Part of a message of JetStream.
    #[cfg(feature = "jetstream")]
    Shared(bytes::Bytes),
}

impl From<Message> for Frame {
    fn from(message: Message) -> Frame {
        Frame(Bytes::ZeroMq(message))
    }
}

impl From<Vec<u8>> for Frame {
    fn from(bytes: Vec<u8>) -> Frame {
        Frame(Bytes::Copied(bytes))
    }
}

#[cfg(feature = "jetstream")]
impl From<bytes::Bytes> for Frame {
    fn from(bytes: bytes::Bytes) -> Frame {
        Frame(Bytes::Shared(bytes))
    }
}

impl AsRef<[u8]> for Frame {
    #[inline]
    fn as_ref(&self) -> &[u8] {
        match &self.0 {
            Bytes::ZeroMq(message) => message,
            Bytes::Copied(bytes) => bytes,
            #[cfg(feature = "jetstream")]
            Bytes::Shared(bytes) => bytes,
        }
    }
}
