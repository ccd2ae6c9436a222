//! OpenTelemetry logs over HTTP (OTLP 1.x, `POST …/v1/logs`).
//!
//! | answer | what happens |
//! |---|---|
//! | 2xx, empty or with a response of OTLP | sent; what a partial success rejects is dropped |
//! | 400, 413, 422 | rejected: halved until the record is found, which is dropped |
//! | any other, and none | sent again after `Retry-After`, or a growing pause |
//!
//! The specification wants more answers to be final. But 401, 403 or 404 are mistakes of settings,
//! and a mistake must not cost records that fit the spool.

mod json;
mod protobuf;
mod record;

use std::{
    io::{self, Read, Write},
    net::{Ipv6Addr, SocketAddr},
    path::Path,
    sync::Arc,
    time::Duration,
};

use flate2::{Compression, write::GzEncoder};
use rustix::io::Errno;
use rustls::crypto::ring;
use sekiwake_record::Kind;
use ureq::{
    Agent, Error, Timeout,
    config::Config,
    http::{HeaderName, HeaderValue, Uri},
    tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig, TlsProvider},
    unversioned::{
        resolver::{ResolvedSocketAddrs, Resolver},
        transport::{DefaultConnector, NextTimeout},
    },
};

use super::{
    Value, secrets,
    sending::{Answer, Request, Sink},
};
use crate::{metrics::ErrorKind, stream::HttpTls};

/// The longest request, and the longest attempt to connect.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// The most bytes read of a response.
const MAX_RESPONSE: u64 = 64 << 10;

/// The most characters of a response in an error.
const MAX_EXCERPT: usize = 200;

/// How requests are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// Protobuf.
    Protobuf,
    /// JSON.
    Json,
}

impl Encoding {
    /// Its name in the option `encoding`.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Encoding::Protobuf => "protobuf",
            Encoding::Json => "json",
        }
    }

    /// The encoding of a response with this content type.
    fn of(content_type: &str) -> Option<Encoding> {
        let kind = content_type.split(';').next().unwrap_or_default().trim();
        match () {
            () if kind.eq_ignore_ascii_case("application/x-protobuf") => Some(Encoding::Protobuf),
            () if kind.eq_ignore_ascii_case("application/protobuf") => Some(Encoding::Protobuf),
            () if kind.eq_ignore_ascii_case("application/json") => Some(Encoding::Json),
            () => None,
        }
    }

    const fn content_type(self) -> &'static str {
        match self {
            Encoding::Protobuf => "application/x-protobuf",
            Encoding::Json => "application/json",
        }
    }
}

/// HTTP headers of a file. Their values are secrets, and never shown.
#[derive(Clone, Default)]
pub(crate) struct Headers(Vec<(HeaderName, HeaderValue)>);

impl Headers {
    /// Reads lines such as `Authorization: Bearer TOKEN`. `#` begins a comment.
    ///
    /// # Errors
    /// The file cannot be read, everybody may read it, or a line is not a header.
    pub(crate) fn read(path: &Path) -> Result<Headers, String> {
        let text = secrets::read(path)?;
        let mut headers = Vec::new();
        for (index, line) in text.lines().enumerate() {
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            // Without the line itself, which has a secret.
            let expected = || format!("{} line {}: expected Name: value", path.display(), index + 1);
            let (name, value) = line.split_once(':').ok_or_else(expected)?;
            let name: HeaderName = name.trim().parse().map_err(|_| expected())?;
            let mut value = HeaderValue::from_str(value.trim()).map_err(|_| expected())?;
            value.set_sensitive(true);
            if ["host", "content-length", "content-type", "content-encoding", "transfer-encoding"]
                .contains(&name.as_str())
            {
                return Err(format!("{} line {}: {name} is set by Sekiwake", path.display(), index + 1));
            }
            headers.push((name, value));
        }
        Ok(Headers(headers))
    }
}

/// What a sink for OTLP needs.
pub(crate) struct OtlpSettings {
    pub(crate) kind: Kind,
    pub(crate) value: Value,
    pub(crate) encoding: Encoding,
    pub(crate) is_compressed: bool,
    pub(crate) headers: Headers,
    /// Set for `otlp+https`.
    pub(crate) tls: Option<HttpTls>,
    /// Host and port as written.
    pub(crate) authority: String,
    /// The path before `/v1/logs`.
    pub(crate) path: String,
}

/// An OpenTelemetry collector.
pub(crate) struct OtlpSink {
    settings: OtlpSettings,
    url: String,
    agent: Option<AgentTo>,
    body: Vec<u8>,
    compressed: Vec<u8>,
    scratch: Vec<u8>,
    /// What the request has: a datagram may have many rows, or none.
    datagrams: u64,
    records: u64,
}

/// A client with connections to one address.
struct AgentTo {
    address: SocketAddr,
    agent: Agent,
}

/// Always the same address: names are resolved elsewhere, and captures have to know the result.
#[derive(Debug)]
struct Pinned(SocketAddr);

impl Resolver for Pinned {
    fn resolve(&self, _: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        let mut addresses = self.empty();
        addresses.push(self.0);
        Ok(addresses)
    }
}

impl OtlpSink {
    pub(crate) fn new(settings: OtlpSettings) -> OtlpSink {
        let (scheme, authority) = match &settings.tls {
            None => ("http", settings.authority.clone()),
            // The certificate is checked against the name in the URL.
            Some(tls) => {
                let port = settings.authority.rsplit(':').next().unwrap_or_default();
                let named = |name: &String| match name.parse::<Ipv6Addr>() {
                    Ok(address) => format!("[{address}]:{port}"),
                    Err(_) => format!("{name}:{port}"),
                };
                ("https", tls.server_name.as_ref().map_or_else(|| settings.authority.clone(), named))
            }
        };
        let url = format!("{scheme}://{authority}{}/v1/logs", settings.path);
        OtlpSink {
            settings,
            url,
            agent: None,
            body: Vec::new(),
            compressed: Vec::new(),
            scratch: Vec::new(),
            datagrams: 0,
            records: 0,
        }
    }

    fn encode(&mut self, request: &Request) {
        let OtlpSettings { kind, value, encoding, .. } = self.settings;
        let entries = request.parts.iter().flat_map(|part| part.entries.range(part.range.clone()));
        let scratch = &mut self.scratch;
        self.datagrams = request.parts.iter().map(|part| part.range.len() as u64).sum();
        let mut records = 0;
        match encoding {
            Encoding::Protobuf => {
                let mut builder = protobuf::RequestBuilder::new(&mut self.body);
                entries.for_each(|entry| {
                    record::each(kind, value, &entry, scratch, |record| {
                        records += 1;
                        builder.push(&record);
                    })
                });
                builder.finish();
            }
            Encoding::Json => {
                let mut builder = json::RequestBuilder::new(&mut self.body);
                entries.for_each(|entry| {
                    record::each(kind, value, &entry, scratch, |record| {
                        records += 1;
                        builder.push(&record);
                    })
                });
                builder.finish();
            }
        }
        self.records = records;
        if self.settings.is_compressed {
            self.compressed.clear();
            // Writing to memory does not fail.
            let mut encoder = GzEncoder::new(&mut self.compressed, Compression::fast());
            let _ = encoder.write_all(&self.body).and_then(|()| encoder.finish().map(drop));
        }
    }

    /// How many datagrams this many rejected records stand for, at most those of the request.
    fn datagrams_of(&self, rejected: u64) -> u64 {
        let (datagrams, records) = (u128::from(self.datagrams), u128::from(self.records.max(1)));
        let share = (u128::from(rejected) * datagrams).div_ceil(records);
        share.min(datagrams) as u64
    }

    fn agent(&mut self, address: SocketAddr) -> Agent {
        match &self.agent {
            Some(known) if known.address == address => known.agent.clone(),
            _ => {
                let agent = agent(address, self.settings.tls.as_ref());
                self.agent = Some(AgentTo { address, agent: agent.clone() });
                agent
            }
        }
    }
}

impl Sink for OtlpSink {
    fn send(&mut self, request: &Request) -> Answer {
        let Some(address) = request.address else {
            let why = "no address".to_owned();
            return Answer::Failed { kind: ErrorKind::Other, why, after: None, is_too_slow: false };
        };
        self.encode(request);
        let agent = self.agent(address);
        let encoding = self.settings.encoding;
        let mut post = agent.post(&self.url).header("Content-Type", encoding.content_type());
        for (name, value) in &self.settings.headers.0 {
            post = post.header(name, value);
        }
        let sent = match self.settings.is_compressed {
            true => post.header("Content-Encoding", "gzip").send(&self.compressed[..]),
            false => post.send(&self.body[..]),
        };
        let mut response = match sent {
            Ok(response) => response,
            Err(error) => return failed(&error),
        };
        let status = response.status().as_u16();
        let after = response.headers().get("Retry-After").and_then(|after| after.to_str().ok()?.trim().parse().ok());
        // A date is ignored: the growing pause is enough.
        let after = after.map(Duration::from_secs);
        let mut body = Vec::new();
        let read = response.body_mut().as_reader().take(MAX_RESPONSE + 1).read_to_end(&mut body);
        if (200..300).contains(&status) {
            if let Err(error) = read {
                let why = format!("status {status}, but the response cannot be read: {error}");
                return Answer::Failed { kind: kind_of(&error), why, after: None, is_too_slow: false };
            }
            let content_type = response.headers().get("Content-Type").and_then(|kind| kind.to_str().ok());
            return match partial_success(&body, content_type, encoding) {
                Some((rejected, why)) => {
                    Answer::Accepted { rejected: self.datagrams_of(rejected), why: why.map(|why| excerpt(&why)) }
                }
                // A login page, or a server of something else.
                None => {
                    let text = String::from_utf8_lossy(&body);
                    let why = format!("status {status} without a response of OTLP: {}", excerpt(&text));
                    Answer::Failed { kind: ErrorKind::Answer, why, after, is_too_slow: false }
                }
            };
        }
        if let Err(error) = read {
            // The status says enough.
            body.clear();
            tracing::debug!(%error, status, "rest of an answer not read");
        }
        let text = match encoding {
            Encoding::Protobuf => protobuf::status_message(&body).map(str::to_owned),
            Encoding::Json => json::status_message(&body),
        };
        let text = text.unwrap_or_else(|| String::from_utf8_lossy(&body).into_owned());
        let why = format!("status {status} {}", excerpt(&text)).trim_end().to_owned();
        match status {
            400 | 413 | 422 => Answer::Rejected { why },
            _ => Answer::Failed { kind: ErrorKind::Answer, why, after, is_too_slow: false },
        }
    }
}

fn agent(address: SocketAddr, tls: Option<&HttpTls>) -> Agent {
    let mut config = TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .unversioned_rustls_crypto_provider(Arc::new(ring::default_provider()));
    if let Some(tls) = tls {
        let roots: Vec<Certificate<'static>> =
            tls.roots.iter().map(|root| Certificate::from_der(root).to_owned()).collect();
        config = config.root_certs(RootCerts::new_with_certs(&roots));
        if let Some((chain, key)) = &tls.client {
            let chain: Vec<Certificate<'static>> =
                chain.iter().map(|certificate| Certificate::from_der(certificate).to_owned()).collect();
            // Read and checked at the start.
            let key = PrivateKey::from_pem(key).ok();
            config = config.client_cert(key.map(|key| ClientCert::new_with_certs(&chain, key)));
        }
    }
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .max_response_header_size(16 << 10)
        .max_idle_connections(1)
        .max_idle_age(Duration::from_secs(30))
        .timeout_global(Some(REQUEST_TIMEOUT))
        .timeout_connect(Some(CONNECT_TIMEOUT))
        // Not the proxies of the environment, which may be meant for other programs.
        .proxy(None)
        .user_agent(concat!("sekiwake/", env!("CARGO_PKG_VERSION")))
        .tls_config(config.build())
        .build();
    Agent::with_parts(config, DefaultConnector::default(), Pinned(address))
}

/// Reads a response in both encodings, for the fuzz target.
pub(super) fn read_answers(body: &[u8]) {
    for encoding in [Encoding::Protobuf, Encoding::Json] {
        if let Some((_, Some(why))) = partial_success(body, None, encoding) {
            assert!(excerpt(&why).len() <= 10 * MAX_EXCERPT);
        }
    }
    let _ = (protobuf::status_message(body), json::status_message(body));
}

/// The partial success in the response of an accepted request. `None`: it is not such a response.
fn partial_success(body: &[u8], content_type: Option<&str>, sent: Encoding) -> Option<(u64, Option<String>)> {
    if body.is_empty() {
        return Some((0, None));
    }
    if body.len() as u64 > MAX_RESPONSE {
        return None;
    }
    match content_type.map_or(Some(sent), Encoding::of)? {
        Encoding::Protobuf => protobuf::partial_success(body),
        Encoding::Json => json::partial_success(body),
    }
}

fn failed(error: &Error) -> Answer {
    // Smaller requests are not easier to connect for.
    let is_too_slow =
        matches!(error, Error::Timeout(timeout) if !matches!(timeout, Timeout::Connect | Timeout::Resolve));
    let kind = match error {
        Error::Timeout(_) => ErrorKind::TimedOut,
        Error::Tls(_) | Error::Rustls(_) => ErrorKind::Tls,
        Error::Io(error) => kind_of(error),
        Error::Protocol(_) => ErrorKind::Answer,
        _ => ErrorKind::Other,
    };
    Answer::Failed { kind, why: error.to_string(), after: None, is_too_slow }
}

/// The kind of an error of the network.
pub(super) fn kind_of(error: &io::Error) -> ErrorKind {
    match (Errno::from_io_error(error), error.kind()) {
        (Some(Errno::CONNREFUSED), _) | (None, io::ErrorKind::ConnectionRefused) => ErrorKind::ConnectionRefused,
        (Some(Errno::HOSTUNREACH | Errno::HOSTDOWN), _) => ErrorKind::HostUnreachable,
        (Some(Errno::NETUNREACH | Errno::NETDOWN | Errno::ADDRNOTAVAIL), _) => ErrorKind::NetworkUnreachable,
        (Some(Errno::TIMEDOUT), _) | (None, io::ErrorKind::TimedOut) => ErrorKind::TimedOut,
        (Some(Errno::CONNRESET | Errno::PIPE | Errno::CONNABORTED), _)
        | (None, io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted) => {
            ErrorKind::Closed
        }
        (Some(Errno::PERM | Errno::ACCESS), _) => ErrorKind::PermissionDenied,
        (None, io::ErrorKind::InvalidData) => ErrorKind::Tls,
        _ => ErrorKind::Other,
    }
}

/// The beginning of a text of the other side, on one line.
fn excerpt(text: &str) -> String {
    let line = text.trim().lines().next().unwrap_or_default();
    line.chars().take(MAX_EXCERPT).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_name_is_the_host_of_the_url() {
        for (name, url) in [
            (None, "https://collector.example.net:4318/v1/logs"),
            (Some("a.example.net"), "https://a.example.net:4318/v1/logs"),
            (Some("2001:db8::7"), "https://[2001:db8::7]:4318/v1/logs"),
        ] {
            let tls = HttpTls { roots: Vec::new(), client: None, server_name: name.map(str::to_owned) };
            let sink = OtlpSink::new(OtlpSettings {
                kind: Kind::Syslog,
                value: Value::Raw,
                encoding: Encoding::Protobuf,
                is_compressed: false,
                headers: Headers::default(),
                tls: Some(tls),
                authority: "collector.example.net:4318".to_owned(),
                path: String::new(),
            });
            assert_eq!(sink.url, url);
            assert!(url.parse::<Uri>().is_ok());
        }
    }
}
