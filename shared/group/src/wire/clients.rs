//! The messages of clients that are in no group and register destinations, drawn with the others
//! in [`wire`](super).

use std::net::Ipv6Addr;

use rmp::encode as msgpack;
use sekiwake_record::{
    Name,
    msgpack::{Unexpected, read_array, skip},
};

use super::{
    Destination,
    codec::{Element, VEC, array, code},
};

/// The most destinations of one client.
pub const MAX_CLIENT_DESTINATIONS: usize = 64;
/// The most destinations of all clients.
pub const MAX_CLIENTS_DESTINATIONS: usize = 256;

code! {
    /// What became of a client's registration.
    ClientOutcome {
        /// It is in the list, and not every live publisher has acknowledged that yet.
        Waiting = 0,
        /// Every live publisher leaves the destinations alone.
        Acknowledged = 1,
        /// There is no room for it.
        Full = 2,
    }
}

array! {
    /// Registers the destinations of a client that is in no group, and says that it lives.
    RegisterClient (list 0) {
        /// The client's name in the log, in `/status` and in metrics.
        client: Name,
        /// The random number of its run.
        incarnation: u64,
        /// Counts these messages.
        number: u64,
        /// It needs the destinations no longer.
        leaving: bool,
        /// Its destinations, the same in every message.
        destinations: Vec<Destination>,
    }
}

array! {
    /// The state of a client's registration.
    ClientRegistered (list 0) {
        /// The client's run.
        incarnation: u64,
        /// The coordinator's random number.
        coordinator: u64,
        /// The newest message received from the client.
        number: u64,
        /// What became of it.
        outcome: ClientOutcome,
    }
}

array! {
    /// How many datagrams to a client's destination a publisher has left alone.
    LeftAlone (list MAX_CLIENTS_DESTINATIONS) {
        /// The address; an IPv4 address in its mapped form.
        address: Ipv6Addr,
        /// The port.
        port: u16,
        /// Datagrams, since the publisher counts them.
        datagrams: u64,
    }
}
