//! One connection to a destination: a TCP socket that never blocks, and TLS over it where that is wanted.
//!
//! ```text
//! push(frames) ──▶ [TLS] ──▶ out ──flush──▶ socket's buffer ──▶ the peer's TCP
//!         pushed()               written            acknowledged() = written − SIOCOUTQ
//! ```
//! All three count the bytes of the TCP stream (with TLS, of its ciphertext) from the connection's beginning.
//!
//! The peer's data is read and thrown away: syslog has no answers (RFC 6587 §3.1, RFC 5425 §4.3), but TLS has alerts, and the
//! end of the stream says that the peer reads no more.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    os::fd::AsFd,
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustls::{CertificateError, ClientConnection};
use sekiwake_sys::{TcpState, tcp_state, unacknowledged_bytes};
use socket2::{Domain, SockRef, Socket, TcpKeepalive, Type};

use super::Tls;

/// From the first SYN to the end of the TLS handshake.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a peer may leave unanswered what the kernel repeats, before it is taken to be gone. The kernel's own
/// `TCP_USER_TIMEOUT` also ends connections whose peer answers each time that it has no room, which a slow peer does.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(20);

/// A peer that is gone while nothing is sent is noticed after 10 s + 3 × 5 s.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_PROBES: u32 = 3;

/// What may wait in the kernel beyond what is on its way (`TCP_NOTSENT_LOWAT`). The size of the send buffer is left to the kernel,
/// which fits it to the path (up to `net.ipv4.tcp_wmem`).
const MAX_UNSENT_BYTES: u32 = 128 * 1024;

/// What is read in one go, and how often in a row, of a peer that keeps talking.
const READ_BYTES: usize = 16 * 1024;
const READS_AT_ONCE: usize = 16;

/// Why a connection is no more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("TLS: {}", explained(.0))]
    Tls(rustls::Error),
    #[error("no connection within {} s", CONNECT_TIMEOUT.as_secs())]
    ConnectTimedOut,
    #[error("connected, but no TLS within {} s", CONNECT_TIMEOUT.as_secs())]
    HandshakeTimedOut,
    #[error("the destination has not answered for {} s", SILENCE_TIMEOUT.as_secs())]
    Silent,
    #[error("closed by the destination")]
    Closed,
    #[error("closed by the destination in the middle of the TLS handshake")]
    ClosedInHandshake,
    #[error("the keys of the TLS session are used up")]
    KeysUsedUp,
}

/// What is wrong, and what can be done about it where rustls names only the rule that was broken.
fn explained(error: &rustls::Error) -> String {
    let remedy = match error {
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "; nobody who is trusted has signed it: ca=FILE trusts others"
        }
        // A variant of another crate's error, which cannot be matched without depending on it.
        rustls::Error::InvalidCertificate(CertificateError::Other(other))
            if format!("{other:?}").contains("CaUsedAsEndEntity") =>
        {
            "; it is an authority's own certificate (CA:TRUE): the server needs one of its own, signed by the authority"
        }
        _ => "",
    };
    format!("{error}{remedy}")
}

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Connecting,
    Handshaking,
    Open,
}

/// A connection, or one that is being made.
pub(crate) struct Connection {
    socket: TcpStream,
    address: SocketAddr,
    tls: Option<ClientConnection>,
    phase: Phase,
    begun_at: Instant,
    out: Vec<u8>,
    /// How much of `out` the socket has taken.
    out_taken: usize,
    written: u64,
    silence: Silence,
}

impl Connection {
    /// Begins to connect. The time limit counts from `now`.
    pub(crate) fn begin(address: SocketAddr, tls: Option<&Tls>, now: Instant) -> Result<Connection, Broken> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking().cloexec(), None)?;
        socket.set_tcp_nodelay(true)?;
        socket.set_tcp_notsent_lowat(MAX_UNSENT_BYTES)?;
        let keepalive = TcpKeepalive::new()
            .with_time(KEEPALIVE_IDLE)
            .with_interval(KEEPALIVE_INTERVAL)
            .with_retries(KEEPALIVE_PROBES);
        socket.set_tcp_keepalive(&keepalive)?;
        match socket.connect(&address.into()) {
            Err(error) if error.raw_os_error() != Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {
                return Err(error.into());
            }
            _ => {}
        }
        let tls = match tls {
            None => None,
            Some(tls) => {
                let mut session =
                    ClientConnection::new(tls.config.clone(), tls.server_name.clone()).map_err(Broken::Tls)?;
                // What it holds is taken out at once, so that there is no need for a second bound.
                session.set_buffer_limit(None);
                Some(session)
            }
        };
        Ok(Connection {
            socket: socket.into(),
            address,
            tls,
            phase: Phase::Connecting,
            begun_at: now,
            out: Vec::new(),
            out_taken: 0,
            written: 0,
            silence: Silence::default(),
        })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether frames may be pushed.
    pub(crate) fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// The version of TLS.
    pub(crate) fn security(&self) -> String {
        let version = self.tls.as_ref().and_then(|tls| tls.protocol_version()).map(|version| format!("{version:?}"));
        version.unwrap_or_else(|| "none".to_owned())
    }

    /// Goes on with connecting and with the handshake, reads what the peer says, and writes what is left to be written.
    pub(crate) fn advance(&mut self, now: Instant) -> Result<(), Broken> {
        if self.phase == Phase::Connecting {
            if !self.ready(PollFlags::OUT, Duration::ZERO).intersects(PollFlags::OUT | PollFlags::ERR | PollFlags::HUP)
            {
                return self.check_time(now, Broken::ConnectTimedOut);
            }
            if let Some(error) = SockRef::from(&self.socket).take_error()? {
                return Err(error.into());
            }
            self.phase = if self.tls.is_some() { Phase::Handshaking } else { Phase::Open };
        }
        self.receive()?;
        self.collect();
        self.flush()?;
        if self.phase == Phase::Handshaking {
            if self.tls.as_ref().is_some_and(|tls| tls.is_handshaking()) {
                return self.check_time(now, Broken::HandshakeTimedOut);
            }
            self.phase = Phase::Open;
        }
        Ok(())
    }

    /// Whether the peer still answers what the kernel repeats. To be asked about once a second.
    pub(crate) fn check_alive(&mut self, now: Instant) -> Result<(), Broken> {
        let state = tcp_state(self.socket.as_fd())?;
        if self.silence.lasts(state, now) { Err(Broken::Silent) } else { Ok(()) }
    }

    /// Gives frames to the connection, which is open, and says where in the stream they end. They are not written yet.
    pub(crate) fn push(&mut self, frames: &[u8]) -> Result<u64, Broken> {
        match &mut self.tls {
            None => self.out.extend_from_slice(frames),
            Some(tls) => {
                tls.writer().write_all(frames)?;
                let before = self.out.len();
                self.collect();
                // A session at the end of its keys says goodbye and swallows what it is given.
                if self.out.len() < before + frames.len() {
                    return Err(Broken::KeysUsedUp);
                }
            }
        }
        Ok(self.pushed())
    }

    /// Writes as much as the socket takes. `true`: everything.
    pub(crate) fn flush(&mut self) -> Result<bool, Broken> {
        while self.out_taken < self.out.len() {
            match self.socket.write(&self.out[self.out_taken..]) {
                Ok(0) => return Ok(false),
                Ok(taken) => {
                    self.out_taken += taken;
                    self.written += taken as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The kernel is short of memory, or a queue on the way out is full: later.
                Err(error) if is_passing(&error) => return Ok(false),
                // An alert that came before the reset says more than the reset.
                Err(error) => return Err(self.receive().err().unwrap_or(error.into())),
            }
        }
        self.out.clear();
        self.out_taken = 0;
        Ok(true)
    }

    /// Whether all that was pushed is written.
    pub(crate) fn is_flushed(&self) -> bool {
        self.out_taken == self.out.len()
    }

    /// The position in the stream after all that was pushed.
    pub(crate) fn pushed(&self) -> u64 {
        self.written + (self.out.len() - self.out_taken) as u64
    }

    /// The position in the stream after all that the socket has taken.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    /// The position in the stream up to which the peer's TCP has everything.
    pub(crate) fn acknowledged(&self) -> u64 {
        unacknowledged_bytes(self.socket.as_fd()).map_or(0, |waiting| self.written.saturating_sub(waiting))
    }

    /// Says that nothing more comes: `close_notify` and FIN. What was written still arrives.
    pub(crate) fn finish(&mut self) {
        if self.is_open()
            && let Some(tls) = &mut self.tls
        {
            tls.send_close_notify();
        }
        self.collect();
        // The peer may be gone, and whoever finishes has no use for knowing.
        let _ = self.flush();
        let _ = self.socket.shutdown(Shutdown::Write);
    }

    /// Waits until the peer has said something or there is room again, where that is wanted.
    pub(crate) fn wait(&self, for_room: bool, timeout: Duration) {
        let for_room = for_room || self.phase == Phase::Connecting || !self.is_flushed();
        self.ready(if for_room { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN }, timeout);
    }

    fn ready(&self, events: PollFlags, timeout: Duration) -> PollFlags {
        let timeout = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: i64::from(timeout.subsec_nanos()) };
        let mut items = [PollFd::new(&self.socket, events)];
        // Whatever poll says, the next call says it better.
        let _ = poll(&mut items, Some(&timeout));
        items[0].revents()
    }

    fn check_time(&self, now: Instant, otherwise: Broken) -> Result<(), Broken> {
        if now.duration_since(self.begun_at) >= CONNECT_TIMEOUT { Err(otherwise) } else { Ok(()) }
    }

    /// Takes what TLS wants to send.
    fn collect(&mut self) {
        let Some(tls) = &mut self.tls else { return };
        if self.phase == Phase::Connecting {
            return;
        }
        while tls.wants_write() {
            // A vector takes everything.
            if tls.write_tls(&mut self.out).is_err() {
                return;
            }
        }
    }

    fn receive(&mut self) -> Result<(), Broken> {
        let mut thrown_away = [0; READ_BYTES];
        for _ in 0..READS_AT_ONCE {
            let outcome = match &mut self.tls {
                None => self.socket.read(&mut thrown_away),
                Some(tls) => tls.read_tls(&mut self.socket),
            };
            match outcome {
                Ok(0) if self.phase == Phase::Handshaking => return Err(Broken::ClosedInHandshake),
                Ok(0) => return Err(Broken::Closed),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            }
            let Some(tls) = &mut self.tls else { continue };
            match tls.process_new_packets() {
                Ok(state) if state.peer_has_closed() => return Err(Broken::Closed),
                Ok(_) => {}
                Err(error) => {
                    // Our alert tells the other side what was wrong.
                    self.collect();
                    let _ = self.flush();
                    return Err(Broken::Tls(error));
                }
            }
            while matches!(tls.reader().read(&mut thrown_away), Ok(1..)) {}
        }
        Ok(())
    }
}

fn is_passing(error: &io::Error) -> bool {
    use rustix::io::Errno;
    matches!(Errno::from_io_error(error), Some(Errno::NOBUFS | Errno::NOMEM))
}

/// Tells a peer that is gone from one that is slow: the slow one acknowledges each probe, even if it has no room.
#[derive(Debug, Default)]
struct Silence {
    /// When the peer's newest acknowledgement came.
    acknowledged_at: Option<Instant>,
    /// What was counted as unanswered when it came: repetitions that it answers without advancing stay in the count.
    answered: u32,
    since: Option<Instant>,
}

impl Silence {
    /// The clock of the kernel's figure and ours are read one after the other.
    const SLACK: Duration = Duration::from_millis(100);

    fn lasts(&mut self, state: TcpState, now: Instant) -> bool {
        let acknowledged_at = now.checked_sub(state.last_acknowledged).unwrap_or(now);
        if self.acknowledged_at.is_none_or(|before| acknowledged_at > before + Self::SLACK) {
            self.acknowledged_at = Some(acknowledged_at);
            self.answered = state.unanswered;
        }
        if state.unanswered <= self.answered {
            self.answered = state.unanswered;
            self.since = None;
            return false;
        }
        now.duration_since(*self.since.get_or_insert(now)) >= SILENCE_TIMEOUT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(unanswered: u32, last_acknowledged_s: u64) -> TcpState {
        TcpState { unanswered, last_acknowledged: Duration::from_secs(last_acknowledged_s) }
    }

    #[test]
    fn errors_of_certificates_say_what_can_be_done() {
        let unknown = rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        assert!(Broken::Tls(unknown).to_string().contains("ca=FILE"));
    }

    #[test]
    fn a_peer_is_gone_when_nothing_that_is_repeated_is_answered_for_twenty_seconds() {
        let (mut silence, start) = (Silence::default(), Instant::now());
        let at = |second| start + Duration::from_secs(second);
        assert!(!silence.lasts(state(0, 0), at(0)));
        for second in 1..21 {
            assert!(!silence.lasts(state(1 + second as u32 / 5, second), at(second)), "{second}");
        }
        assert!(silence.lasts(state(6, 21), at(21)));
    }

    #[test]
    fn a_peer_without_room_that_answers_each_probe_is_not_gone_however_rare_they_become() {
        let (mut silence, start) = (Silence::default(), Instant::now());
        for second in 0..600 {
            // A probe every two minutes; repetitions of what was refused stay counted.
            let (unanswered, age) = (second as u32 / 120, second % 120);
            let now = start + Duration::from_secs(second);
            assert!(!silence.lasts(state(unanswered, age), now), "{second}");
        }
    }
}
