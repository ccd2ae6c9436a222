//! The control connection of a client that is in no group.

use std::time::Duration;

use sekiwake_group::{TemplateReader, TemplatesRead, wire::HandoffEntry};
use sekiwake_record::Kind;

use super::dealer::{CONTROL_BURST, Incoming, receive, routing_id, send};
use crate::{
    BusError,
    clock::{boot_now, wait_until},
    connections::{Connections, Side},
    inlet::{Inlet, wait},
    settings::Controlling,
    socket::Bus,
};

/// The longest sleep, so that a stop is noticed.
const IDLE_POLL: Duration = Duration::from_millis(50);

/// The answer to a request for templates.
#[derive(Debug)]
pub enum KnownTemplates {
    /// The hand-off entries of a group of the kind, by shard and key.
    Entries(Vec<HandoffEntry>),
    /// No group works on the kind, so that nobody keeps templates.
    NoGroup,
    /// There is no control connection.
    NoConnection,
    /// The proxy did not answer: it is of a version that does not know the request.
    NoAnswer,
    /// The proxy did not send everything in time, because other readers request as well.
    Late,
    /// The proxy sends more than a group may have.
    TooMany,
    /// The caller has stopped.
    Stopped,
}

/// Requests to the coordinator from a client that is in no group. Belongs to one thread.
pub struct ControlReader {
    socket: Inlet,
    connections: Connections,
    in_process: bool,
    // The socket is closed before the context is released.
    _bus: Bus,
}

impl ControlReader {
    /// Connects. The proxy may be started later.
    ///
    /// # Errors
    /// Invalid endpoints, too many sockets, or no random numbers.
    pub fn connect(bus: &Bus, to: &Controlling) -> Result<ControlReader, BusError> {
        let socket = bus.control_client(&routing_id()?, to.keys.as_ref())?;
        let mut connections = bus.watch(&socket, Side::Control)?;
        connections.connect(&socket, &to.endpoints)?;
        Ok(ControlReader { socket: Inlet::new(socket), connections, in_process: to.is_in_process(), _bus: bus.clone() })
    }

    /// Requests the templates of a kind, and waits for the answers: 4 s for the first, 30 s in all.
    ///
    /// # Errors
    /// The socket failed because its context was terminated.
    pub fn templates(&mut self, kind: Kind, is_stopped: impl Fn() -> bool) -> Result<KnownTemplates, BusError> {
        let mut reader = TemplateReader::new(kind, boot_now());
        let mut was_connected = false;
        while reader.result().is_none() {
            if is_stopped() {
                return Ok(KnownTemplates::Stopped);
            }
            was_connected |= self.in_process || self.connections.follow(&mut self.socket);
            for _ in 0..CONTROL_BURST {
                match receive(&mut self.socket, "control")? {
                    Incoming::Frame(frame) => {
                        self.connections.heard();
                        reader.on_message(boot_now(), &frame);
                    }
                    Incoming::Malformed => {}
                    Incoming::Nothing => break,
                }
            }
            let now = boot_now();
            reader.on_tick(now);
            if let Some(frame) = reader.poll_output() {
                // What the socket has no room for is requested again.
                send(&mut self.socket, &frame, "control")?;
            }
            let limit = wait_until(now, reader.next_deadline(), IDLE_POLL);
            wait([&mut self.socket], [self.connections.events()], limit)
                .map_err(|source| BusError::Io { role: "control", source })?;
        }
        Ok(match reader.result() {
            Some(TemplatesRead::Complete) => KnownTemplates::Entries(reader.into_entries().collect()),
            Some(TemplatesRead::NoGroup) => KnownTemplates::NoGroup,
            Some(TemplatesRead::Late) => KnownTemplates::Late,
            Some(TemplatesRead::TooMany) => KnownTemplates::TooMany,
            Some(TemplatesRead::Unanswered) | None if was_connected => KnownTemplates::NoAnswer,
            Some(TemplatesRead::Unanswered) | None => KnownTemplates::NoConnection,
        })
    }
}
