//! A connection to one broker: TCP or TLS, authenticated, one answer per request in order.

use std::{
    io::{self, Read, Write},
    net::{TcpStream, ToSocketAddrs},
    sync::Arc,
    time::{Duration, Instant},
};

use base64::{Engine as _, prelude::BASE64_STANDARD_NO_PAD};
use rustls::{ClientConnection, StreamOwned};
use rustls_pki_types::ServerName;

use super::{
    Failure,
    error::{self, SASL_AUTHENTICATION_FAILED},
    sasl::{self, Credentials, Mechanism, Scram},
    wire::{Api, Writer, read_authenticated, read_handshake},
};
use crate::{config::resolve::usable, delivery::otlp::kind_of, metrics::ErrorKind, stream::Tls};

/// The longest attempt to connect to one address.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// The longest answer. That about a topic with 16384 partitions has less.
const MAX_ANSWER: usize = 4 << 20;

/// How brokers are reached.
pub(super) struct Access {
    /// Set for TLS.
    pub(super) tls: Option<Tls>,
    /// The name in all certificates, if it is not each broker's host.
    pub(super) server_name: Option<ServerName<'static>>,
    pub(super) credentials: Option<Credentials>,
}

/// An open connection.
pub(super) struct Connection {
    stream: Stream,
    /// For messages.
    name: String,
    buffer: Vec<u8>,
    /// The number of the newest request, and of the newest one that was answered.
    sent: i32,
    answered: i32,
}

enum Stream {
    Plain(Timed),
    Tls(Box<StreamOwned<ClientConnection, Timed>>),
}

/// A TCP connection all of whose operations end at a deadline, however slowly bytes arrive.
struct Timed {
    stream: TcpStream,
    deadline: Instant,
}

impl Timed {
    fn left(&self) -> io::Result<Option<Duration>> {
        match self.deadline.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
            left => Ok(Some(left)),
        }
    }
}

/// A timeout of the socket as such.
fn timed_out(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
        _ => error,
    }
}

impl Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        self.stream.read(buffer).map_err(timed_out)
    }
}

impl Write for Timed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write(bytes).map_err(timed_out)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Stream {
    fn set_deadline(&mut self, deadline: Instant) {
        match self {
            Stream::Plain(stream) => stream.deadline = deadline,
            Stream::Tls(stream) => stream.sock.deadline = deadline,
        }
    }
}

impl Connection {
    /// Connects to the first address that takes it, and authenticates.
    pub(super) fn open(host: &str, port: u16, access: &Access, deadline: Instant) -> Result<Connection, Failure> {
        let name = format!("{host}:{port}");
        let failed = |error: &io::Error| failure(&name, "cannot connect", error);
        let answers: Vec<_> = (host, port).to_socket_addrs().map_err(|error| failed(&error))?.collect();
        let mut last = io::Error::other("the name has no usable address");
        let mut connected = None;
        for address in usable(&answers) {
            let left = deadline.saturating_duration_since(Instant::now()).min(CONNECT_TIMEOUT);
            if left.is_zero() {
                last = io::ErrorKind::TimedOut.into();
                break;
            }
            match TcpStream::connect_timeout(&address, left) {
                Ok(stream) => {
                    connected = Some(stream);
                    break;
                }
                Err(error) => last = timed_out(error),
            }
        }
        let stream = connected.ok_or_else(|| failed(&last))?;
        stream.set_nodelay(true).map_err(|error| failed(&error))?;
        let stream = Timed { stream, deadline };
        let stream = match &access.tls {
            None => Stream::Plain(stream),
            Some(tls) => {
                let of_host = || ServerName::try_from(host.trim_end_matches('.').to_owned());
                let server = match &access.server_name {
                    Some(server) => server.clone(),
                    None => of_host().map_err(|error| failed(&io::Error::other(error)))?,
                };
                let client = ClientConnection::new(Arc::clone(&tls.config), server)
                    .map_err(|error| failed(&io::Error::other(error)))?;
                Stream::Tls(Box::new(StreamOwned::new(client, stream)))
            }
        };
        let mut connection = Connection { stream, name, buffer: Vec::new(), sent: 0, answered: 0 };
        if let Some(credentials) = &access.credentials {
            connection.authenticate(credentials, deadline)?;
        }
        Ok(connection)
    }

    /// Whether it was opened to this host and port.
    pub(super) fn leads_to(&self, host: &str, port: u16) -> bool {
        self.name == format!("{host}:{port}")
    }

    /// Sends the request that `write` writes.
    pub(super) fn send(&mut self, api: Api, deadline: Instant, write: impl FnOnce(Writer<'_>)) -> Result<(), Failure> {
        self.sent = self.sent.wrapping_add(1);
        write(Writer::begin(&mut self.buffer, api, self.sent));
        self.stream.set_deadline(deadline);
        let sent = match &mut self.stream {
            Stream::Plain(stream) => stream.write_all(&self.buffer),
            Stream::Tls(stream) => stream.write_all(&self.buffer).and_then(|()| stream.flush()),
        };
        sent.map_err(|error| failure(&self.name, "cannot send", &error))
    }

    /// The answer to the oldest request without one.
    pub(super) fn receive(&mut self, deadline: Instant) -> Result<&[u8], Failure> {
        self.stream.set_deadline(deadline);
        let read = match &mut self.stream {
            Stream::Plain(stream) => read_frame(stream, &mut self.buffer),
            Stream::Tls(stream) => read_frame(stream, &mut self.buffer),
        };
        read.map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof if self.answered == 0 => {
                let why = "closed a new connection: does it expect tls=true, or sasl=?";
                Failure { kind: ErrorKind::Closed, why: format!("{} {why}", self.name), is_passing: true }
            }
            _ => failure(&self.name, "no answer", &error),
        })?;
        self.answered = self.answered.wrapping_add(1);
        match self.buffer.split_first_chunk::<4>() {
            Some((number, answer)) if i32::from_be_bytes(*number) == self.answered => Ok(answer),
            _ => Err(self.malformed()),
        }
    }

    /// One request and its answer.
    pub(super) fn ask(
        &mut self,
        api: Api,
        deadline: Instant,
        write: impl FnOnce(Writer<'_>),
    ) -> Result<&[u8], Failure> {
        self.send(api, deadline, write)?;
        self.receive(deadline)
    }

    /// An answer of something that is not a broker.
    pub(super) fn malformed(&self) -> Failure {
        let why = format!("{}: answer is not one of Kafka", self.name);
        Failure { kind: ErrorKind::Answer, why, is_passing: false }
    }

    fn authenticate(&mut self, credentials: &Credentials, deadline: Instant) -> Result<(), Failure> {
        let name = self.name.clone();
        let failed = |why: &str| {
            let why = format!("{name}: SASL failed for user {}: {why}", credentials.user);
            Failure { kind: ErrorKind::Answer, why, is_passing: false }
        };
        let mechanism = credentials.mechanism.registered();
        let answer = self.ask(Api::SaslHandshake, deadline, |writer| writer.sasl_handshake(mechanism))?;
        match read_handshake(answer) {
            Some(Ok(())) => {}
            Some(Err(known)) if known.is_empty() => return Err(failed("the broker expects no sasl= here")),
            Some(Err(known)) => return Err(failed(&format!("the broker knows {known}, not {mechanism}"))),
            None => return Err(self.malformed()),
        }
        if credentials.mechanism == Mechanism::Plain {
            return self.exchange(&sasl::plain(credentials), deadline, &failed).map(drop);
        }
        let mut random = [0; 18];
        getrandom::fill(&mut random).map_err(|error| failed(&error.to_string()))?;
        let scram = Scram::new(credentials, BASE64_STANDARD_NO_PAD.encode(random));
        let answer = self.exchange(scram.first().as_bytes(), deadline, &failed)?;
        let proof = scram.proof(&answer).map_err(|why| failed(&why))?;
        let answer = self.exchange(proof.message.as_bytes(), deadline, &failed)?;
        match proof.is_answered_by(&answer) {
            true => Ok(()),
            false => Err(failed("the broker does not know the password")),
        }
    }

    fn exchange(
        &mut self,
        message: &[u8],
        deadline: Instant,
        failed: &impl Fn(&str) -> Failure,
    ) -> Result<Vec<u8>, Failure> {
        let answer = self.ask(Api::SaslAuthenticate, deadline, |writer| writer.sasl_authenticate(message))?;
        match read_authenticated(answer) {
            Some(Ok(answer)) => Ok(answer.to_vec()),
            Some(Err((SASL_AUTHENTICATION_FAILED, why))) if !why.is_empty() => Err(failed(&super::excerpt(why))),
            Some(Err((error, _))) => Err(failed(&error::describe(error))),
            None => Err(self.malformed()),
        }
    }
}

fn failure(name: &str, what: &str, error: &io::Error) -> Failure {
    let is_tls = error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>());
    let kind = if is_tls { ErrorKind::Tls } else { kind_of(error) };
    let text = match error.kind() {
        io::ErrorKind::TimedOut => "timed out".to_owned(),
        io::ErrorKind::UnexpectedEof => "connection closed".to_owned(),
        _ => error.to_string(),
    };
    Failure { kind, why: format!("{name}: {what}: {text}"), is_passing: true }
}

fn read_frame(stream: &mut impl Read, buffer: &mut Vec<u8>) -> io::Result<()> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length) as usize;
    if length > MAX_ANSWER {
        return Err(io::Error::other("answer is not one of Kafka"));
    }
    // Grows with what arrives, not with what is announced.
    buffer.clear();
    match stream.take(length as u64).read_to_end(buffer)? {
        read if read == length => Ok(()),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}
