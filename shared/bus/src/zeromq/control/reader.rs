//! The control connection of a client that is in no group.

use std::time::Duration;

use sekiwake_group::{TemplateReader, TemplatesRead};
use sekiwake_record::Kind;

use super::dealer::{CONTROL_BURST, Incoming, receive, routing_id, send};
use crate::{
    BusError, KnownTemplates, Requests,
    clock::{boot_now, wait_until},
    settings::Controlling,
    zeromq::{
        connections::{Connections, Side},
        inlet::{Inlet, wait},
        socket::Context,
    },
};

/// The longest sleep, so that a stop is noticed.
const IDLE_POLL: Duration = Duration::from_millis(50);

/// Requests to the coordinator from a client that is in no group. Belongs to one thread.
pub struct ControlReader {
    socket: Inlet,
    connections: Connections,
    in_process: bool,
    // The socket is closed before the context is released.
    _context: Context,
}

impl ControlReader {
    /// Connects. The proxy may be started later.
    ///
    /// # Errors
    /// Invalid endpoints, too many sockets, or no random numbers.
    pub fn connect(context: &Context, to: &Controlling) -> Result<ControlReader, BusError> {
        let socket = context.control_client(&routing_id()?, to.zeromq.keys.as_ref())?;
        let mut connections = context.watch(&socket, Side::Control)?;
        connections.connect(&socket, &to.zeromq.endpoints)?;
        Ok(ControlReader {
            socket: Inlet::new(socket),
            connections,
            in_process: to.zeromq.is_in_process(),
            _context: context.clone(),
        })
    }
}

impl Requests for ControlReader {
    fn templates(&mut self, kind: Kind, is_stopped: &dyn Fn() -> bool) -> Result<KnownTemplates, BusError> {
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
                .map_err(|source| BusError::Io { role: "control", source: source.into() })?;
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
