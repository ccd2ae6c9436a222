//! The answers to requests of clients that are in no group.

use std::fmt;

use sekiwake_group::wire::HandoffEntry;

/// The answer to a request for templates.
#[derive(Debug)]
pub enum KnownTemplates {
    /// The hand-off entries of a group of the kind, by shard and key.
    Entries(Vec<HandoffEntry>),
    /// No group works on the kind, so that nobody keeps templates.
    NoGroup,
    /// There is no control connection.
    NoConnection,
    /// The bus did not answer: a proxy of a version that does not know the request, or servers that
    /// do not permit it.
    NoAnswer,
    /// The bus did not send everything in time, because other readers request as well.
    Late,
    /// The bus sends more than a group may have.
    TooMany,
    /// The caller has stopped.
    Stopped,
}

/// What became of a registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Registered {
    /// Captures leave the destinations alone.
    Acknowledged,
    /// The proxy has no room for so many destinations or clients.
    Full,
    /// There is no control connection.
    NoConnection,
    /// The proxy did not answer: it is of a version that does not know registrations.
    NoAnswer,
    /// A capture did not acknowledge the destinations within 10 s.
    Late,
    /// The caller has stopped.
    Stopped,
}

/// Why captures may not leave the destinations alone.
impl fmt::Display for Registered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Registered::Acknowledged => "captures leave the destinations alone",
            Registered::Full => "the proxy has no room for more destinations or clients",
            Registered::NoConnection => "no control connection to the bus (SEKIWAKE_BUS_CONTROL or SEKIWAKE_BUS)",
            Registered::NoAnswer => "the proxy does not answer registrations, perhaps an earlier version",
            Registered::Late => "a capture has not acknowledged the destinations within 10 s",
            Registered::Stopped => "stopped",
        })
    }
}
