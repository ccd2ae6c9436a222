//! Requests over HTTP, and datagrams.

use std::{
    io::{self, BufRead, BufReader, Read},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use rustls::crypto::ring;
use rustls_pki_types::CertificateDer;
use ureq::{
    Agent,
    tls::{Certificate, RootCerts, TlsConfig, TlsProvider},
};

use super::Patience;

/// The most of an answer's body that is read, bytes: what is wrong with a request stands at its beginning.
const MAX_ANSWER: u64 = 4 << 10;

/// The longest that an answer may have us wait.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);

/// What came of a try.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It was accepted.
    Told,
    /// It may be accepted later, not before this, if that was said.
    Later { why: String, after: Option<Duration> },
    /// It will never be.
    Refused { why: String },
}

/// Something to post with.
#[derive(Clone, Debug)]
pub(super) struct Http {
    agent: Agent,
}

impl Http {
    /// # Errors
    /// Where TLS is needed, and the system has no certificates.
    pub(super) fn new(patience: &Patience, needs_tls: bool) -> anyhow::Result<Http> {
        if !needs_tls {
            return Ok(Http::trusting(patience, &[]));
        }
        let found = rustls_native_certs::load_native_certs();
        if found.certs.is_empty() {
            let why = found.errors.first().map_or_else(|| "there are none".to_owned(), ToString::to_string);
            anyhow::bail!("no certificates to trust: {why}");
        }
        Ok(Http::trusting(patience, &found.certs))
    }

    /// With these authorities.
    pub(super) fn trusting(patience: &Patience, authorities: &[CertificateDer<'_>]) -> Http {
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
            // One request now and then: a connection that is kept would be one that may be dead.
            .max_idle_connections(0)
            .timeout_global(Some(patience.request))
            .timeout_connect(Some(patience.request / 2))
            // Whom to notify is said in full; a variable that was meant for others is not to have a say.
            .proxy(None)
            .user_agent(concat!("sekiwake-anomaly-detector/", env!("CARGO_PKG_VERSION")))
            .tls_config(tls.build())
            .build();
        Http { agent: agent.into() }
    }

    /// Posts JSON. `key` names what is posted, for those who must not take it twice.
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
            Err(error) => return Outcome::Later { why: error.to_string(), after: None },
        };
        let status = answer.status().as_u16();
        if (200..300).contains(&status) {
            return Outcome::Told;
        }
        let after = answer.headers().get("Retry-After").and_then(|after| after.to_str().ok()?.trim().parse().ok());
        let after = after.map(Duration::from_secs).map(|after| after.min(MAX_RETRY_AFTER));
        let first = first_line(answer.body_mut().as_reader());
        let why = format!("status {status} {}", first.escape_debug());
        match status {
            408 | 425 | 429 | 500..=599 => Outcome::Later { why, after },
            _ => Outcome::Refused { why },
        }
    }
}

/// What an answer begins with, as far as it comes. The body has as long as the request.
fn first_line(body: impl Read) -> String {
    let mut beginning = Vec::new();
    // What came before an error says more than the error.
    let _ = BufReader::new(body.take(MAX_ANSWER)).read_until(b'\n', &mut beginning);
    String::from_utf8_lossy(&beginning).trim().chars().take(200).collect()
}

/// Sends one datagram. The name is looked up each time: what it stands for may change.
pub(super) fn send(host: &str, port: u16, datagram: &[u8]) -> Outcome {
    let sent = || -> anyhow::Result<()> {
        let address = (host, port).to_socket_addrs()?.next().context("the name has no address")?;
        let any: SocketAddr = match address {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = UdpSocket::bind(any)?;
        let length = socket.send_to(datagram, address)?;
        if length < datagram.len() {
            return Err(io::Error::from(io::ErrorKind::WriteZero).into());
        }
        Ok(())
    };
    match sent() {
        Ok(()) => Outcome::Told,
        Err(error) => Outcome::Later { why: error.to_string(), after: None },
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        net::TcpListener,
        thread::{self, JoinHandle},
    };

    use rcgen::{BasicConstraints, Certificate, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
    use rustls::{ServerConfig, ServerConnection, Stream};
    use rustls_pki_types::PrivateKeyDer;

    use super::*;

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

        /// Answers one request with 200, with a certificate for this name; gives its port.
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
                let (mut request, mut read) = (Vec::new(), [0; 4096]);
                while !request.ends_with(b"{}") {
                    match stream.read(&mut read) {
                        Ok(length @ 1..) => request.extend_from_slice(&read[..length]),
                        // A client that does not trust it.
                        _ => return,
                    }
                }
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
            });
            (port, thread)
        }

        fn http(&self) -> Http {
            Http::trusting(&Patience::default(), &[self.certificate.der().clone()])
        }
    }

    fn post(http: &Http, port: u16) -> Outcome {
        http.post(&format!("https://localhost:{port}/hook?token=secret"), Some("Basic secret"), None, b"{}")
    }

    #[test]
    fn a_certificate_is_trusted_for_its_name_its_time_and_its_authority_and_what_is_wrong_with_it_is_said() {
        let (ours, other) = (Authority::new(), Authority::new());
        let (port, server) = ours.serve("localhost", false);
        let outcome = post(&ours.http(), port);
        assert!(matches!(outcome, Outcome::Told), "{outcome:?}");
        server.join().unwrap();
        for (http, name, is_expired) in [
            (other.http(), "localhost", false),
            (ours.http(), "other.example.net", false),
            (ours.http(), "localhost", true),
            (Http::trusting(&Patience::default(), &[]), "localhost", false),
        ] {
            let (port, server) = ours.serve(name, is_expired);
            let outcome = post(&http, port);
            let Outcome::Later { why, after: None } = &outcome else { panic!("{name} {is_expired}: {outcome:?}") };
            assert!(why.contains("certificate") && !why.contains("secret"), "{name} {is_expired}: {why}");
            server.join().unwrap();
        }
    }

    #[test]
    fn of_what_is_refused_the_first_line_is_kept_and_nothing_else() {
        assert_eq!(first_line(&b"no such alert \xff\r\nmore"[..]), "no such alert \u{fffd}");
        assert_eq!(first_line(io::repeat(b'a')), "a".repeat(200));
        assert_eq!(first_line(io::empty()), "");
    }
}
