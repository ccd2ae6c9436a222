//! Messages for a subject of the site, which has nothing to do with the bus.

/// A message for a subject that a stream takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// Messages of one lane are stored in order.
    pub lane: usize,
    /// By which servers recognise it when it is sent again.
    pub id: String,
    /// Header fields, without the id.
    pub headers: Vec<(&'static str, String)>,
    /// The message.
    pub payload: Vec<u8>,
    /// `None` until it is known.
    pub outcome: Option<Published>,
}

/// What became of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Published {
    /// A stream has acknowledged it.
    Stored,
    /// It will never be stored, for this reason.
    Rejected(String),
}

/// Why messages have no outcome.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct NotPublished {
    /// What kind of reason it is.
    pub cause: NotPublishedCause,
    /// The reason in words.
    pub why: String,
}

/// Kinds of reasons for which messages are not published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotPublishedCause {
    /// No server is connected.
    Unreachable,
    /// There was no answer in time.
    Late,
    /// A server, or its configuration, does not accept them.
    Refused,
}
