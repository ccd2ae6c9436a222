//! The control connection of a client that is in no group and registers destinations.

use std::{net::SocketAddr, time::Duration};

use sekiwake_group::{
    Registrant, RegistrantState,
    wire::{Destination, Transport},
};
use sekiwake_record::Name;

use super::dealer::{CONTROL_BURST, Incoming, receive, routing_id, send};
use crate::{
    BusError, Registered, Registrar,
    clock::{boot_now, wait_until},
    settings::Controlling,
    zeromq::{
        connections::{Connections, Side},
        inlet::{Inlet, wait},
        socket::{Context, milliseconds},
    },
};

/// The longest sleep, so that a stop is noticed.
const IDLE_POLL: Duration = Duration::from_millis(50);
/// How long captures may take to acknowledge destinations: a proxy that starts waits for 3.5 s.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(10);
/// How long the last message may linger.
const LINGER: Duration = Duration::from_millis(200);

/// Has captures leave destinations alone, from a client that is in no group. Belongs to one thread.
///
/// The registration lasts while [`DestinationRegistrar::keep`] runs. When the client is dropped or
/// dies, captures leave the destinations alone for some seconds more.
pub struct DestinationRegistrar {
    socket: Inlet,
    connections: Connections,
    in_process: bool,
    machine: Registrant,
    was_connected: bool,
    // The socket is closed before the context is released.
    _context: Context,
}

impl DestinationRegistrar {
    /// Connects. The proxy may be started later. `client` names this client in the proxy's log, in
    /// its status and in metrics; `destinations` are those of UDP, 1 to 64.
    ///
    /// # Errors
    /// Invalid endpoints, too many sockets, or no random numbers.
    pub fn connect(
        context: &Context,
        to: &Controlling,
        client: Name,
        destinations: &[SocketAddr],
    ) -> Result<DestinationRegistrar, BusError> {
        let socket = context.control_client(&routing_id()?, to.zeromq.keys.as_ref())?;
        let mut connections = context.watch(&socket, Side::Control)?;
        connections.connect(&socket, &to.zeromq.endpoints)?;
        let incarnation = getrandom::u64().map_err(BusError::Random)?;
        let destinations =
            destinations.iter().map(|address| Destination::new(address.ip(), address.port(), Transport::Udp)).collect();
        Ok(DestinationRegistrar {
            socket: Inlet::new(socket),
            connections,
            in_process: to.zeromq.is_in_process(),
            machine: Registrant::new(client, incarnation, destinations, boot_now()),
            was_connected: false,
            _context: context.clone(),
        })
    }

    /// Takes messages, does what is due, and waits for the next.
    fn turn(&mut self) -> Result<(), BusError> {
        self.was_connected |= self.in_process || self.connections.follow(&mut self.socket);
        for _ in 0..CONTROL_BURST {
            match receive(&mut self.socket, "control")? {
                Incoming::Frame(frame) => {
                    self.connections.heard();
                    self.machine.on_message(boot_now(), &frame);
                }
                Incoming::Malformed => {}
                Incoming::Nothing => break,
            }
        }
        let now = boot_now();
        self.machine.on_tick(now);
        if let Some(frame) = self.machine.poll_output() {
            // What the socket has no room for is sent again.
            send(&mut self.socket, &frame, "control")?;
        }
        let limit = wait_until(now, self.machine.next_deadline(), IDLE_POLL);
        wait([&mut self.socket], [self.connections.events()], limit).map_err(failed)
    }
}

impl Registrar for DestinationRegistrar {
    fn register(&mut self, is_stopped: &dyn Fn() -> bool) -> Result<Registered, BusError> {
        let late_at = boot_now() + ACKNOWLEDGED_WITHIN;
        loop {
            if is_stopped() {
                return Ok(Registered::Stopped);
            }
            self.turn()?;
            let now = boot_now();
            match self.machine.state(now) {
                RegistrantState::Registered => return Ok(Registered::Acknowledged),
                RegistrantState::Full => return Ok(Registered::Full),
                RegistrantState::Unanswered if self.was_connected => return Ok(Registered::NoAnswer),
                RegistrantState::Unanswered => return Ok(Registered::NoConnection),
                RegistrantState::Waiting if now >= late_at => return Ok(Registered::Late),
                RegistrantState::Waiting => {}
            }
        }
    }

    fn keep(
        mut self: Box<Self>,
        is_stopped: &dyn Fn() -> bool,
        on_change: &mut dyn FnMut(bool),
    ) -> Result<(), BusError> {
        let mut is_registered = self.machine.state(boot_now()) == RegistrantState::Registered;
        while !is_stopped() {
            self.turn()?;
            let is_now = self.machine.state(boot_now()) == RegistrantState::Registered;
            if is_now != is_registered {
                is_registered = is_now;
                on_change(is_now);
            }
        }
        self.machine.leave(boot_now());
        if let Some(frame) = self.machine.poll_output() {
            send(&mut self.socket, &frame, "control")?;
        }
        self.socket.socket().set_linger(milliseconds(LINGER)).map_err(failed)
    }
}

fn failed(source: zmq::Error) -> BusError {
    BusError::Io { role: "control", source: source.into() }
}
