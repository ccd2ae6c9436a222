//! The publisher's socket with the state of its connection.

use std::time::{Duration, Instant};

use sekiwake_runtime::Latch;
use tracing::info;

use crate::{
    BusError,
    zeromq::{
        Endpoints,
        connections::{Connections, Side},
        inlet::{Inlet, wait},
        socket::{Context, uninterrupted},
    },
};

/// How long a paused publisher waits for a new connection before it continues over the old one.
const PAUSE_LIMIT: Duration = Duration::from_secs(30);

/// A publisher's socket, which knows whether the proxy is connected and whether it asked for a
/// pause.
pub(crate) struct PublisherSocket {
    pub(crate) socket: Inlet,
    pub(crate) connections: Connections,
    connected: Latch,
    was_connected: bool,
    in_process: bool,
    pause: Option<Pause>,
    pub(crate) context: Context,
}

/// The relay has asked the publisher to pause, because it is shutting down.
#[derive(Clone, Copy)]
struct Pause {
    /// Connections made before the pause: the next one ends it.
    established: u64,
    until: Instant,
}

impl PublisherSocket {
    pub(crate) fn connect(context: &Context, to: &Endpoints, connected: Latch) -> Result<PublisherSocket, BusError> {
        let socket = context.publisher(to.keys.as_ref())?;
        let mut connections = context.watch(&socket, Side::Publish)?;
        connections.connect(&socket, &to.endpoints)?;
        let in_process = to.is_in_process();
        Ok(PublisherSocket {
            context: context.clone(),
            socket: Inlet::new(socket),
            connections,
            connected,
            was_connected: false,
            in_process,
            pause: None,
        })
    }

    /// Sends a message without blocking. If there is no room, it returns `false` and nothing has
    /// been sent.
    pub(crate) fn send(&mut self, topic: &str, rest: &[&[u8]]) -> Result<bool, BusError> {
        let socket = self.socket.socket();
        match uninterrupted(|| socket.send(topic, zmq::DONTWAIT | zmq::SNDMORE)) {
            Ok(()) => {}
            Err(zmq::Error::EAGAIN) => return Ok(false),
            Err(source) => return Err(failed(source)),
        }
        // libzmq checks for room only when the first part is sent.
        for (index, part) in rest.iter().enumerate() {
            let more = if index + 1 < rest.len() { zmq::SNDMORE } else { 0 };
            uninterrupted(|| socket.send(*part, zmq::DONTWAIT | more)).map_err(failed)?;
        }
        Ok(true)
    }

    /// Waits for subscriptions.
    pub(crate) fn wait(&mut self, limit: Duration) -> Result<(), BusError> {
        wait([&mut self.socket], [self.connections.events()], limit).map_err(failed)
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.pause.is_some()
    }

    /// Pauses until there is a new connection.
    pub(crate) fn pause(&mut self, now: Instant, stream: &str) {
        self.connections.poll_connected(&mut self.socket);
        self.pause = Some(Pause { established: self.connections.established(), until: now + PAUSE_LIMIT });
        info!(%stream, "proxy is shutting down, pausing publication");
    }

    /// Checks the connection, ends a pause, and returns whether there is a connection.
    pub(crate) fn poll(&mut self, now: Instant, stream: &str) -> bool {
        let is_connected = self.is_connected();
        let established = self.connections.established();
        if let Some(pause) = self.pause
            && (established != pause.established || now >= pause.until)
        {
            self.pause = None;
            let reconnected = established != pause.established;
            info!(%stream, reconnected, "publication resumed");
        }
        self.was_connected = is_connected;
        self.connected.set(is_connected);
        is_connected
    }

    /// Whether there was a connection at the last check.
    pub(crate) fn was_connected(&self) -> bool {
        self.was_connected
    }

    pub(crate) fn is_connected(&mut self) -> bool {
        self.connections.follow(&mut self.socket) || self.in_process
    }
}

/// An error of the publisher's socket.
pub(crate) fn failed(source: zmq::Error) -> BusError {
    BusError::Io { role: "publisher", source: source.into() }
}
