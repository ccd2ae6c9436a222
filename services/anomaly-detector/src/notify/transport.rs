//! HTTP requests and UDP datagrams.

use std::{
    io::{self, BufRead, BufReader, Read},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket},
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::Context;
use crossbeam_channel::bounded;
use rustls::crypto::ring;
use rustls_pki_types::CertificateDer;
use ureq::{
    Agent,
    tls::{Certificate, RootCerts, TlsConfig, TlsProvider},
};

use super::Timing;

/// The most bytes read of a response body: errors are explained at its start.
const MAX_ANSWER: u64 = 4 << 10;

/// The longest `Retry-After` that is honoured.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);

/// The longest look-up of a name, and the longest connection attempt.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long to wait for an ICMP error to a datagram: the time of a far round trip.
const ICMP_ERROR_WITHIN: Duration = Duration::from_millis(200);

/// The outcome of an attempt.
#[derive(Debug)]
pub(super) enum Outcome {
    /// Accepted.
    Accepted,
    /// To be retried, but not before `after` if the receiver requested a delay.
    /// `is_answer`: the receiver has answered, so that it may accept another event.
    Retry { why: String, after: Option<Duration>, is_answer: bool },
    /// Rejected: not retried.
    Rejected { why: String },
}

impl Outcome {
    /// There was no answer.
    pub(super) fn failed(why: String) -> Outcome {
        Outcome::Retry { why, after: None, is_answer: false }
    }
}

/// An HTTP client.
#[derive(Clone, Debug)]
pub(super) struct Http {
    agent: Agent,
}

impl Http {
    /// # Errors
    /// TLS is needed and the system has no certificates.
    pub(super) fn new(timing: &Timing, needs_tls: bool) -> anyhow::Result<Http> {
        if !needs_tls {
            return Ok(Http::trusting(timing, &[]));
        }
        let found = rustls_native_certs::load_native_certs();
        if found.certs.is_empty() {
            let why = found.errors.first().map_or_else(|| "none installed".to_owned(), ToString::to_string);
            anyhow::bail!("no trusted certificates: {why}");
        }
        Ok(Http::trusting(timing, &found.certs))
    }

    /// A client that trusts these authorities.
    pub(super) fn trusting(timing: &Timing, authorities: &[CertificateDer<'_>]) -> Http {
        let certificates: Vec<Certificate<'static>> =
            authorities.iter().map(|certificate| Certificate::from_der(certificate).to_owned()).collect();
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .unversioned_rustls_crypto_provider(Arc::new(ring::default_provider()))
            .root_certs(RootCerts::new_with_certs(&certificates));
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .max_response_header_size(16 << 10)
            // Requests are rare, so an idle connection would often be stale.
            .max_idle_connections(0)
            .timeout_global(Some(timing.request))
            .timeout_resolve(Some(CONNECT_TIMEOUT.min(timing.request / 2)))
            .timeout_connect(Some(CONNECT_TIMEOUT.min(timing.request / 2)))
            // Not the proxies of the environment, which may be meant for other programs.
            .proxy(None)
            .user_agent(concat!("sekiwake-anomaly-detector/", env!("CARGO_PKG_VERSION")))
            .tls_config(tls.build())
            .build();
        Http { agent: agent.into() }
    }

    /// Posts JSON. `key` identifies the request, so that receivers can discard duplicates.
    pub(super) fn post(&self, url: &str, authorization: Option<&str>, key: Option<&str>, json: &[u8]) -> Outcome {
        let mut request = self.agent.post(url).header("Content-Type", "application/json");
        if let Some(authorization) = authorization {
            request = request.header("Authorization", authorization);
        }
        if let Some(key) = key {
            request = request.header("Idempotency-Key", key);
        }
        let mut answer = match request.send(json) {
            Ok(answer) => answer,
            Err(error) => return Outcome::failed(error.to_string()),
        };
        let status = answer.status().as_u16();
        if (200..300).contains(&status) {
            return Outcome::Accepted;
        }
        let after = answer.headers().get("Retry-After").and_then(|after| after.to_str().ok()?.trim().parse().ok());
        let after = after.map(Duration::from_secs).map(|after| after.min(MAX_RETRY_AFTER));
        let first = first_line(answer.body_mut().as_reader());
        let why = format!("status {status} {}", first.escape_debug());
        match status {
            408 | 425 | 429 | 500..=599 => Outcome::Retry { why, after, is_answer: true },
            _ => Outcome::Rejected { why },
        }
    }
}

/// The first line of a response body. Reading it shares the request's timeout.
fn first_line(body: impl Read) -> String {
    let mut beginning = Vec::new();
    // After a read error use the bytes already read, which say more than the error.
    let _ = BufReader::new(body.take(MAX_ANSWER)).read_until(b'\n', &mut beginning);
    String::from_utf8_lossy(&beginning).trim().chars().take(200).collect()
}

/// Sends one datagram, to the first address of the name that takes it. Resolves the name each time,
/// because its addresses may change.
pub(super) fn send(host: &str, port: u16, datagram: &[u8]) -> Outcome {
    send_by(|host, port| (host, port).to_socket_addrs().map(Iterator::collect), host, port, datagram)
}

/// A resolver of names.
type LookUp = fn(&str, u16) -> io::Result<Vec<SocketAddr>>;

fn send_by(resolve: LookUp, host: &str, port: u16, datagram: &[u8]) -> Outcome {
    let sent = match look_up(resolve, host, port) {
        Ok(addresses) => send_to_any(addresses.into_iter(), datagram),
        Err(error) => Err(error),
    };
    match sent {
        Ok(()) => Outcome::Accepted,
        Err(error) => Outcome::failed(error.to_string()),
    }
}

fn send_to_any(addresses: impl Iterator<Item = SocketAddr>, datagram: &[u8]) -> anyhow::Result<()> {
    let mut outcome = Err(anyhow::anyhow!("name has no address"));
    for address in addresses {
        outcome = send_to(address, datagram).with_context(|| address.to_string()).map_err(|error| {
            // The address and the reason in one line.
            anyhow::anyhow!("{error:#}")
        });
        if outcome.is_ok() {
            break;
        }
    }
    outcome
}

/// Sends one datagram, and waits a moment for an ICMP error.
fn send_to(address: SocketAddr, datagram: &[u8]) -> io::Result<()> {
    let any: SocketAddr = match address {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any)?;
    socket.set_broadcast(true)?;
    socket.connect(address)?;
    if socket.send(datagram)? < datagram.len() {
        return Err(io::ErrorKind::WriteZero.into());
    }
    socket.set_read_timeout(Some(ICMP_ERROR_WITHIN))?;
    match socket.recv(&mut [0]) {
        Err(error) if !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => Err(error),
        // No error, or an answer, which syslog has none of.
        _ => Ok(()),
    }
}

/// Waits for a thread of its own, because a resolver may take a minute to give up, and cannot be
/// interrupted by a stop.
fn look_up(resolve: LookUp, host: &str, port: u16) -> anyhow::Result<Vec<SocketAddr>> {
    let (answer, answered) = bounded(1);
    let name = host.to_owned();
    thread::Builder::new().name("look-up".to_owned()).spawn(move || answer.send(resolve(&name, port)))?;
    let found =
        answered.recv_timeout(CONNECT_TIMEOUT).with_context(|| format!("no answer of the resolver to {host}"))?;
    Ok(found?)
}

#[cfg(test)]
mod tests {
    use std::{io::Write, net::TcpListener, thread::JoinHandle};

    use rcgen::{BasicConstraints, Certificate, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
    use rustls::{ServerConfig, ServerConnection, Stream};
    use rustls_pki_types::PrivateKeyDer;

    use super::*;

    #[test]
    fn look_up_without_an_answer_is_given_up() {
        let hangs: LookUp = |_, _| {
            loop {
                thread::park();
            }
        };
        let Outcome::Retry { why, .. } = send_by(hangs, "collector.example.net", 514, b"x") else { panic!() };
        assert_eq!(why, "no answer of the resolver to collector.example.net");
    }

    struct Authority {
        issuer: Issuer<'static, KeyPair>,
        certificate: Certificate,
    }

    impl Authority {
        fn new() -> Authority {
            let mut params = CertificateParams::new(Vec::new()).unwrap();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let key = KeyPair::generate().unwrap();
            let certificate = params.self_signed(&key).unwrap();
            Authority { issuer: Issuer::new(params, key), certificate }
        }

        /// Answers one request with 200, with a certificate for this name; returns its port.
        fn serve(&self, name: &str, is_expired: bool) -> (u16, JoinHandle<()>) {
            let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
            if is_expired {
                (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
            }
            let key = KeyPair::generate().unwrap();
            let certificate = params.signed_by(&key, &self.issuer).unwrap();
            let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
            let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![certificate.der().clone()], key)
                .unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            let thread = thread::spawn(move || {
                let mut socket = listener.accept().unwrap().0;
                let mut connection = ServerConnection::new(Arc::new(config)).unwrap();
                let mut stream = Stream::new(&mut connection, &mut socket);
                let mut request = Vec::new();
                let mut read = [0; 4096];
                while !request.ends_with(b"{}") {
                    match stream.read(&mut read) {
                        Ok(length @ 1..) => request.extend_from_slice(&read[..length]),
                        // The client does not trust the certificate.
                        _ => return,
                    }
                }
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
            });
            (port, thread)
        }

        fn http(&self) -> Http {
            Http::trusting(&Timing::default(), &[self.certificate.der().clone()])
        }
    }

    fn post(http: &Http, port: u16) -> Outcome {
        http.post(&format!("https://localhost:{port}/hook?token=secret"), Some("Basic secret"), None, b"{}")
    }

    #[test]
    fn certificate_needs_name_validity_and_authority() {
        let ours = Authority::new();
        let other = Authority::new();
        let (port, server) = ours.serve("localhost", false);
        let outcome = post(&ours.http(), port);
        assert!(matches!(outcome, Outcome::Accepted), "{outcome:?}");
        server.join().unwrap();
        for (http, name, is_expired) in [
            (other.http(), "localhost", false),
            (ours.http(), "other.example.net", false),
            (ours.http(), "localhost", true),
            (Http::trusting(&Timing::default(), &[]), "localhost", false),
        ] {
            let (port, server) = ours.serve(name, is_expired);
            let outcome = post(&http, port);
            let Outcome::Retry { why, after: None, .. } = &outcome else { panic!("{name} {is_expired}: {outcome:?}") };
            assert!(why.contains("certificate") && !why.contains("secret"), "{name} {is_expired}: {why}");
            server.join().unwrap();
        }
    }

    #[test]
    fn datagram_goes_to_the_next_address_when_one_is_refused() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        receiver.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let address = receiver.local_addr().unwrap();
        // The same port is closed there.
        let refused = SocketAddr::from(([127, 0, 0, 2], address.port()));
        send_to_any([refused, address].into_iter(), b"hello").unwrap();
        let mut buffer = [0; 16];
        let length = receiver.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"hello");
        let error = send_to_any([refused].into_iter(), b"hello").unwrap_err().to_string();
        assert!(error.contains(&refused.to_string()) && error.contains("refused"), "{error}");
        assert!(send_to_any(std::iter::empty(), b"hello").is_err());
    }

    #[test]
    fn only_the_first_line_of_an_error_is_kept() {
        assert_eq!(first_line(&b"no such alert \xff\r\nmore"[..]), "no such alert \u{fffd}");
        assert_eq!(first_line(io::repeat(b'a')), "a".repeat(200));
        assert_eq!(first_line(io::empty()), "");
    }
}
