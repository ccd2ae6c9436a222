//! One connection to an endpoint: a non-blocking TCP socket, and TLS over it if configured.
//!
//! ```text
//! push(frames) ──▶ [TLS] ──▶ out ──flush──▶ socket's buffer ──▶ the peer's TCP
//!         pushed()               written            acknowledged() = written − SIOCOUTQ
//! ```
//! All three are positions in the TCP stream (with TLS, in its ciphertext), in bytes from the start
//! of the connection.
//!
//! The peer's data is read and discarded: syslog has no answers (RFC 6587 §3.1, RFC 5425 §4.3), but
//! TLS has alerts, and the end of the stream shows that the peer has stopped reading.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    os::fd::AsFd,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};
use rustls::{AlertDescription, CertificateError, ClientConnection};
use sekiwake_sys::{TcpState, tcp_state, unacknowledged_bytes};
use socket2::{Domain, SockRef, Socket, TcpKeepalive, Type};

use super::{Tls, tls::UsedFiles};
use crate::metrics::ErrorKind;

/// From the first SYN to the end of the TLS handshake.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// The longest TLS handshake, with the connection attempt before it.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a peer may leave retransmissions unanswered before it is considered dead. The kernel's
/// own `TCP_USER_TIMEOUT` would not do, because it also ends connections of slow peers, which
/// answer that their window is closed.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(20);

/// A peer that dies while nothing is sent is detected after 10 s + 3 × 5 s.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_PROBES: u32 = 3;

/// Maximum number of unsent bytes in the kernel (`TCP_NOTSENT_LOWAT`). The size of the send buffer
/// is left to the kernel, which adapts it to the path (up to `net.ipv4.tcp_wmem`).
const MAX_UNSENT_BYTES: u32 = 128 * 1024;

/// Bytes per read, and the most reads in a row from a peer that keeps sending.
const READ_BYTES: usize = 16 * 1024;
const READS_AT_ONCE: usize = 16;

/// Why a connection failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("TLS: {}", explained(.error, .files))]
    Tls { error: rustls::Error, files: UsedFiles },
    #[error("no connection within {} s", CONNECT_TIMEOUT.as_secs())]
    ConnectTimedOut,
    #[error("connected, but no TLS handshake within {} s", HANDSHAKE_TIMEOUT.as_secs())]
    HandshakeTimedOut,
    #[error("peer has not answered for {} s", SILENCE_TIMEOUT.as_secs())]
    Silent,
    #[error("closed by the peer")]
    Closed,
    #[error("closed by the peer during the TLS handshake")]
    ClosedInHandshake,
    #[error("TLS session keys exhausted")]
    KeysExhausted,
}

impl Broken {
    /// The value of the label `error`.
    pub(crate) fn kind(&self) -> ErrorKind {
        let error = match self {
            Broken::Io(error) => error,
            Broken::Tls { .. } | Broken::KeysExhausted => return ErrorKind::Tls,
            Broken::ConnectTimedOut | Broken::HandshakeTimedOut | Broken::Silent => return ErrorKind::TimedOut,
            Broken::Closed | Broken::ClosedInHandshake => return ErrorKind::Closed,
        };
        match Errno::from_io_error(error) {
            Some(Errno::CONNREFUSED) => ErrorKind::ConnectionRefused,
            Some(Errno::HOSTUNREACH | Errno::HOSTDOWN) => ErrorKind::HostUnreachable,
            Some(Errno::NETUNREACH | Errno::NETDOWN | Errno::ADDRNOTAVAIL) => ErrorKind::NetworkUnreachable,
            Some(Errno::TIMEDOUT) => ErrorKind::TimedOut,
            Some(Errno::CONNRESET | Errno::PIPE | Errno::CONNABORTED) => ErrorKind::Closed,
            Some(Errno::PERM | Errno::ACCESS) => ErrorKind::PermissionDenied,
            Some(Errno::NOBUFS | Errno::NOMEM) => ErrorKind::NoBufferSpace,
            _ => ErrorKind::Other,
        }
    }
}

/// The keys and signatures of certificates that can be verified.
const SUPPORTED: &str = "supported: RSA of 2048 to 8192 bits with SHA-256, SHA-384 or SHA-512, \
                         ECDSA P-256 or P-384 with SHA-256 or SHA-384, Ed25519";

/// Appended to the error when a server that asked for a client certificate, and got none, ends the
/// connection.
pub(super) const CERTIFICATE_QUESTION: &str = "does it require a client certificate (cert=, key=)?";

/// The error with a remedy, where rustls names only the violated rule.
fn explained(error: &rustls::Error, files: &UsedFiles) -> String {
    let trusted = || match &files.ca {
        Some(ca) => format!("in {} (ca=)", ca.display()),
        None => "that this system trusts".to_owned(),
    };
    let remedy = match error {
        // With TLS 1.2 the alert does not say what is missing.
        rustls::Error::AlertReceived(alert) if files.is_certificate_missing() => {
            return format!("alert of the server ({alert:?}): {CERTIFICATE_QUESTION}");
        }
        rustls::Error::AlertReceived(alert) if is_about_certificate(*alert) => match &files.certificate {
            Some(path) => {
                let path = path.display();
                return format!("the server rejects the client certificate {path} (cert=) ({alert:?})");
            }
            None => "",
        },
        // They list numbers of algorithms.
        rustls::Error::InvalidCertificate(
            CertificateError::UnsupportedSignatureAlgorithmContext { .. }
            | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. },
        ) => return format!("a certificate of the server has a key or signature that is not supported; {SUPPORTED}"),
        rustls::Error::InvalidCertificate(CertificateError::BadSignature) => {
            let trusted = trusted();
            return format!(
                "a signature cannot be verified: it is wrong, its authority has the name of one {trusted} and another \
                 key, or its key is not supported; {SUPPORTED}"
            );
        }
        rustls::Error::AlertReceived(AlertDescription::HandshakeFailure) => {
            return format!("{error}: the server has no cipher or certificate that is supported; {SUPPORTED}");
        }
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            let remedy = if files.ca.is_some() { "" } else { "; set ca=FILE to trust another one" };
            return format!("{error}: not signed by an authority {}{remedy}", trusted());
        }
        // The error of another crate, which cannot be matched without depending on it.
        rustls::Error::InvalidCertificate(CertificateError::Other(other))
            if format!("{other:?}").contains("CaUsedAsEndEntity") =>
        {
            ": an authority's own certificate (CA:TRUE); the server needs one of its own, signed by the authority"
        }
        _ => "",
    };
    format!("{error}{remedy}")
}

/// Whether a server sends this alert about the certificate of its client.
fn is_about_certificate(alert: AlertDescription) -> bool {
    use AlertDescription as Alert;
    matches!(
        alert,
        Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::CertificateRequired
            | Alert::UnknownCA
            | Alert::AccessDenied
            // Its authority has the name of one that the server trusts, and another key.
            | Alert::DecryptError
    )
}

/// The phases of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Connecting,
    Handshaking,
    Open,
}

/// A connection, perhaps not open yet.
pub(crate) struct Connection {
    socket: TcpStream,
    address: SocketAddr,
    tls: Option<ClientConnection>,
    files: UsedFiles,
    phase: Phase,
    begun_at: Instant,
    out: Vec<u8>,
    /// How much of `out` is written to the socket.
    out_taken: usize,
    written: u64,
    silence: Silence,
}

impl Connection {
    /// Starts connecting. The time limit counts from `now`.
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
            Err(error) if error.raw_os_error() != Some(Errno::INPROGRESS.raw_os_error()) => {
                return Err(error.into());
            }
            _ => {}
        }
        let files = tls.map(|tls| tls.files.clone()).unwrap_or_default();
        let tls = match tls {
            None => None,
            Some(tls) => {
                let mut session = ClientConnection::new(tls.config.clone(), tls.server_name.clone())
                    .map_err(|error| Broken::Tls { error, files: tls.files.clone() })?;
                // Its contents are taken out at once, so that a second bound is not needed.
                session.set_buffer_limit(None);
                Some(session)
            }
        };
        Ok(Connection {
            socket: socket.into(),
            address,
            tls,
            files,
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

    /// Our own address.
    pub(crate) fn local_address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// How long ago connecting began.
    pub(crate) fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.begun_at)
    }

    /// Whether frames may be pushed.
    pub(crate) fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// The TLS version, or "none".
    pub(crate) fn security(&self) -> String {
        let version = self.tls.as_ref().and_then(|tls| tls.protocol_version()).map(|version| format!("{version:?}"));
        version.unwrap_or_else(|| "none".to_owned())
    }

    /// The peer's own certificate, DER; `None` without TLS.
    pub(crate) fn certificate(&self) -> Option<&[u8]> {
        let certificates = self.tls.as_ref().and_then(|tls| tls.peer_certificates())?;
        certificates.first().map(|certificate| &**certificate)
    }

    /// Continues connecting and the handshake, reads the peer's data, and writes pending data.
    pub(crate) fn advance(&mut self, now: Instant) -> Result<(), Broken> {
        if self.phase == Phase::Connecting {
            if !self.ready(PollFlags::OUT, Duration::ZERO).intersects(PollFlags::OUT | PollFlags::ERR | PollFlags::HUP)
            {
                return self.check_time(now, CONNECT_TIMEOUT, Broken::ConnectTimedOut);
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
                return self.check_time(now, HANDSHAKE_TIMEOUT, Broken::HandshakeTimedOut);
            }
            self.phase = Phase::Open;
        }
        Ok(())
    }

    /// Whether the peer still answers retransmissions. To be called about once per second.
    pub(crate) fn check_alive(&mut self, now: Instant) -> Result<(), Broken> {
        let state = tcp_state(self.socket.as_fd())?;
        if self.silence.lasts(state, now) { Err(Broken::Silent) } else { Ok(()) }
    }

    /// Gives frames to the open connection, and returns the position of their end in the stream.
    /// They are not written yet.
    pub(crate) fn push(&mut self, frames: &[u8]) -> Result<u64, Broken> {
        match &mut self.tls {
            None => self.out.extend_from_slice(frames),
            Some(tls) => {
                tls.writer().write_all(frames)?;
                let before = self.out.len();
                self.collect();
                // A session with exhausted keys sends close_notify and discards further data.
                if self.out.len() < before + frames.len() {
                    return Err(Broken::KeysExhausted);
                }
            }
        }
        Ok(self.pushed())
    }

    /// Writes as much as the socket accepts. `true`: everything.
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
                // The kernel is short of memory, or a queue is full: later.
                Err(error) if is_temporary(&error) => return Ok(false),
                // An alert received before the reset says more than the reset.
                Err(error) => return Err(self.receive().err().unwrap_or(error.into())),
            }
        }
        self.out.clear();
        self.out_taken = 0;
        Ok(true)
    }

    /// Whether all pushed data is written.
    pub(crate) fn is_flushed(&self) -> bool {
        self.out_taken == self.out.len()
    }

    /// The position after all pushed data.
    pub(crate) fn pushed(&self) -> u64 {
        self.written + (self.out.len() - self.out_taken) as u64
    }

    /// The position after all data written to the socket.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    /// The position up to which the peer's TCP has acknowledged everything.
    pub(crate) fn acknowledged(&self) -> u64 {
        unacknowledged_bytes(self.socket.as_fd()).map_or(0, |waiting| self.written.saturating_sub(waiting))
    }

    /// Closes the sending side: `close_notify` and FIN. Written data still arrives.
    pub(crate) fn finish(&mut self) {
        if self.is_open()
            && let Some(tls) = &mut self.tls
        {
            tls.send_close_notify();
        }
        self.collect();
        // Errors do not matter: the connection ends in any case.
        let _ = self.flush();
        let _ = self.socket.shutdown(Shutdown::Write);
    }

    /// Waits until the peer has sent something, or, with `for_room`, until the socket is writable.
    pub(crate) fn wait(&self, for_room: bool, timeout: Duration) {
        let for_room = for_room || self.phase == Phase::Connecting || !self.is_flushed();
        self.ready(if for_room { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN }, timeout);
    }

    fn ready(&self, events: PollFlags, timeout: Duration) -> PollFlags {
        let timeout = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: i64::from(timeout.subsec_nanos()) };
        let mut items = [PollFd::new(&self.socket, events)];
        // An error of poll does not matter: the next call reports it.
        let _ = poll(&mut items, Some(&timeout));
        items[0].revents()
    }

    fn check_time(&self, now: Instant, limit: Duration, otherwise: Broken) -> Result<(), Broken> {
        if now.duration_since(self.begun_at) >= limit { Err(otherwise) } else { Ok(()) }
    }

    /// Collects the data that TLS has to send.
    fn collect(&mut self) {
        let Some(tls) = &mut self.tls else { return };
        if self.phase == Phase::Connecting {
            return;
        }
        while tls.wants_write() {
            // Writing to a vector never fails.
            if tls.write_tls(&mut self.out).is_err() {
                return;
            }
        }
    }

    fn receive(&mut self) -> Result<(), Broken> {
        let mut discarded = [0; READ_BYTES];
        for _ in 0..READS_AT_ONCE {
            let outcome = match &mut self.tls {
                None => self.socket.read(&mut discarded),
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
                    // Sends our alert, so that the peer can log the reason.
                    self.collect();
                    let _ = self.flush();
                    return Err(Broken::Tls { error, files: self.files.clone() });
                }
            }
            while matches!(tls.reader().read(&mut discarded), Ok(1..)) {}
        }
        Ok(())
    }
}

fn is_temporary(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOBUFS | Errno::NOMEM))
}

/// Distinguishes a dead peer from a slow one: the slow one acknowledges each probe, even if its
/// window is closed.
#[derive(Debug, Default)]
struct Silence {
    /// When the newest acknowledgement arrived.
    acknowledged_at: Option<Instant>,
    /// The unanswered count at that time: retransmissions that the peer answers without advancing
    /// stay in the count.
    answered: u32,
    since: Option<Instant>,
}

impl Silence {
    /// Our clock is read some time after the kernel's figure.
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
    fn certificate_errors_name_a_remedy() {
        let text = |error: rustls::Error, files: &UsedFiles| Broken::Tls { error, files: files.clone() }.to_string();
        let none = UsedFiles::default();
        let unknown = rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        assert!(text(unknown.clone(), &none).contains("this system trusts; set ca=FILE"));
        let [ca, certificate] = ["/etc/ca.pem", "/etc/own.pem"].map(|path| Some(std::path::Path::new(path).into()));
        let files = UsedFiles { ca, certificate, ..UsedFiles::default() };
        assert!(text(unknown, &files).contains("not signed by an authority in /etc/ca.pem (ca=)"));
        let rejected = rustls::Error::AlertReceived(AlertDescription::UnknownCA);
        assert!(text(rejected, &files).contains("rejects the client certificate /etc/own.pem (cert=) (UnknownCA)"));
        let denied = rustls::Error::AlertReceived(AlertDescription::AccessDenied);
        assert!(!text(denied, &none).contains("client certificate"), "no certificate is set");
        let unsupported = CertificateError::UnsupportedSignatureAlgorithmContext {
            signature_algorithm_id: vec![6, 8, 42],
            supported_algorithms: Vec::new(),
        };
        for error in [
            rustls::Error::InvalidCertificate(unsupported),
            rustls::Error::InvalidCertificate(CertificateError::BadSignature),
            rustls::Error::AlertReceived(AlertDescription::HandshakeFailure),
        ] {
            let text = text(error, &none);
            assert!(text.contains("P-256 or P-384") && !text.contains("42"), "{text}");
        }
    }

    #[test]
    fn peer_is_dead_after_twenty_seconds_without_an_answer() {
        let mut silence = Silence::default();
        let start = Instant::now();
        let at = |second| start + Duration::from_secs(second);
        assert!(!silence.lasts(state(0, 0), at(0)));
        for second in 1..21 {
            assert!(!silence.lasts(state(1 + second as u32 / 5, second), at(second)), "{second}");
        }
        assert!(silence.lasts(state(6, 21), at(21)));
    }

    #[test]
    fn peer_that_answers_zero_window_probes_is_alive() {
        let mut silence = Silence::default();
        let start = Instant::now();
        for second in 0..600 {
            // A probe every two minutes; answered retransmissions stay in the count.
            let unanswered = second as u32 / 120;
            let age = second % 120;
            let now = start + Duration::from_secs(second);
            assert!(!silence.lasts(state(unanswered, age), now), "{second}");
        }
    }
}
