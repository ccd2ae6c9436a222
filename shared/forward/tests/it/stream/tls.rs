//! TLS against servers with good and bad certificates, old and new versions, and with client
//! certificates.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, TcpListener, TcpStream},
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType,
    date_time_ymd,
};
use rustls::{
    RootCertStore, ServerConfig, ServerConnection, StreamOwned,
    crypto::ring,
    server::WebPkiClientVerifier,
    version::{TLS12, TLS13},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use sekiwake_forward::stream::TlsSettings;
use sekiwake_testkit::wait::wait_for;

use super::{
    Stream, numbered,
    peer::{Peer, listener, read_frames},
    with_tls,
};
use crate::rig::{PATIENCE, Rig};

/// A certificate authority and its files.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: Certificate,
    pub(super) folder: tempfile::TempDir,
}

/// A certificate with its key.
pub(super) struct Identity {
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
}

impl Authority {
    pub(super) fn new() -> Authority {
        Authority::named("a test's authority")
    }

    fn named(name: &str) -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("ca.pem"), certificate.pem()).unwrap();
        Authority { issuer: Issuer::new(params, key), certificate, folder }
    }

    pub(super) fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// Issues a certificate for these names and addresses, for server and client.
    pub(super) fn identity(&self, file: &str, names: &[&str], expired: bool) -> Identity {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        for name in names {
            params.subject_alt_names.push(match name.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName((*name).try_into().unwrap()),
            });
        }
        params.distinguished_name.push(rcgen::DnType::CommonName, file);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        if expired {
            (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
        }
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        self.write(file, &certificate, &key)
    }

    fn write(&self, file: &str, certificate: &Certificate, key: &KeyPair) -> Identity {
        let path = |what: &str| self.folder.path().join(format!("{file}-{what}.pem"));
        fs::write(path("certificate"), certificate.pem()).unwrap();
        fs::write(path("key"), key.serialize_pem()).unwrap();
        Identity { certificate: path("certificate"), key: path("key") }
    }

    pub(super) fn trusting(&self) -> TlsSettings {
        TlsSettings { ca: Some(self.ca()), ..TlsSettings::default() }
    }

    pub(super) fn server(
        &self,
        identity: &Identity,
        version: &'static rustls::SupportedProtocolVersion,
        asks: bool,
    ) -> Arc<ServerConfig> {
        let provider = Arc::new(ring::default_provider());
        let builder =
            ServerConfig::builder_with_provider(Arc::clone(&provider)).with_protocol_versions(&[version]).unwrap();
        let builder = if asks {
            let mut roots = RootCertStore::empty();
            roots.add(self.certificate.der().clone()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
            builder.with_client_cert_verifier(verifier)
        } else {
            builder.with_no_client_auth()
        };
        let chain = vec![CertificateDer::from_pem_file(&identity.certificate).unwrap()];
        let key = PrivateKeyDer::from_pem_file(&identity.key).unwrap();
        Arc::new(builder.with_single_cert(chain, key).unwrap())
    }
}

/// A TLS server, and the errors of its connections.
pub(super) fn tls_peer(listener: TcpListener, config: Arc<ServerConfig>) -> (Peer, Arc<Mutex<Vec<String>>>) {
    let errors = Arc::new(Mutex::new(Vec::new()));
    let of_peer = Arc::clone(&errors);
    let peer = Peer::serve(listener, move |stream: TcpStream, book, page| {
        let mut stream = StreamOwned::new(ServerConnection::new(Arc::clone(&config)).unwrap(), stream);
        if let Err(error) = read_frames(&mut stream, book, page, |_| false) {
            of_peer.lock().unwrap().push(error.to_string());
        }
    });
    (peer, errors)
}

#[test]
fn tls_1_2_and_1_3_carry_every_byte_and_end_in_order() {
    let authority = Authority::new();
    let identity = authority.identity("server", &["127.0.0.1", "localhost"], false);
    for version in [&TLS12, &TLS13] {
        let (peer, errors) = tls_peer(listener(), authority.server(&identity, version, false));
        let tls = authority.trusting().load("127.0.0.1").unwrap();
        let mut stream = Stream::start(with_tls(peer.address, tls));
        stream.forward_as_sent(0..20_000, 20_000);
        let large: Vec<Vec<u8>> =
            (20_000..20_020).map(|number| [numbered(number), vec![b'\n'; 65_000]].concat()).collect();
        stream.forward(large.clone());
        stream.wait_until_sent(20_020);
        stream.assert_ledger();
        assert_eq!(peer.book.assert_in_order(20_020), 0);
        assert!(peer.book.messages()[20_000..] == large);
        stream.stop();
        // Without close_notify the server would report an unexpected end.
        assert!(errors.lock().unwrap().is_empty(), "{version:?}: {errors:?}");
    }
}

#[test]
fn server_with_a_bad_certificate_is_down_and_gets_nothing() {
    let authority = Authority::new();
    let stranger = Authority::new();
    let good = authority.identity("good", &["127.0.0.1"], false);
    let cases = [
        ("another name", authority.identity("other", &["other.example", "198.51.100.1"], false), authority.trusting()),
        ("expired", authority.identity("expired", &["127.0.0.1"], true), authority.trusting()),
        ("unknown authority", good, stranger.trusting()),
        ("the system's roots", authority.identity("roots", &["127.0.0.1"], false), TlsSettings::default()),
        (
            "server_name= of another",
            authority.identity("named", &["127.0.0.1", "siem.example"], false),
            TlsSettings { server_name: Some("log.example".to_owned()), ..authority.trusting() },
        ),
    ];
    for (case, identity, settings) in cases {
        let (peer, _) = tls_peer(listener(), authority.server(&identity, &TLS13, false));
        let mut stream = Stream::start(with_tls(peer.address, settings.load("127.0.0.1").unwrap()));
        stream.forward((0..10).map(numbered));
        wait_for("the drops", PATIENCE, || stream.dropped("disconnected") == 10)
            .unwrap_or_else(|error| panic!("{case}: {error}"));
        assert_eq!(stream.up(), 0.0, "{case}");
        assert!(stream.rig.metric("sekiwake_forward_errors_total", &["error=\"tls\""]) >= 2.0, "{case}");
        assert_eq!(peer.book.count(), 0, "{case}");
        stream.assert_ledger();
        stream.stop();
    }
}

#[test]
fn server_name_replaces_the_host_in_the_check() {
    let authority = Authority::new();
    let identity = authority.identity("server", &["siem.example"], false);
    let (peer, _) = tls_peer(listener(), authority.server(&identity, &TLS13, false));
    let settings = TlsSettings { server_name: Some("siem.example".to_owned()), ..authority.trusting() };
    let mut stream = Stream::start(with_tls(peer.address, settings.load(&Ipv4Addr::LOCALHOST.to_string()).unwrap()));
    stream.forward((0..10).map(numbered));
    stream.wait_until_sent(10);
    assert_eq!(peer.book.assert_in_order(10), 0);
    stream.stop();
}

#[test]
fn client_certificate_is_sent_and_missing_one_is_noticed() {
    let authority = Authority::new();
    let server = authority.identity("server", &["127.0.0.1"], false);
    let ours = authority.identity("ours", &["forwarder.example"], false);
    for version in [&TLS12, &TLS13] {
        let (peer, _) = tls_peer(listener(), authority.server(&server, version, true));
        let settings = TlsSettings {
            certificate: Some(ours.certificate.clone()),
            key: Some(ours.key.clone()),
            ..authority.trusting()
        };
        let mut stream = Stream::start(with_tls(peer.address, settings.load("127.0.0.1").unwrap()));
        stream.forward((0..10).map(numbered));
        stream.wait_until_sent(10);
        assert_eq!(peer.book.assert_in_order(10), 0);
        stream.stop();

        // With TLS 1.3 the server rejects the client after it has begun to send.
        let (peer, _) = tls_peer(listener(), authority.server(&server, version, true));
        let mut stream = Stream::start(with_tls(peer.address, authority.trusting().load("127.0.0.1").unwrap()));
        stream.forward((0..10).map(numbered));
        wait_for("the drops", PATIENCE, || stream.dropped("disconnected") == 10).unwrap();
        assert_eq!((stream.sent(), peer.book.count()), (0, 0), "{version:?}");
        stream.assert_ledger();
        stream.stop();
    }
}

#[test]
fn rejected_certificates_are_named_with_option_and_file() {
    let authority = Authority::new();
    let namesake = Authority::new();
    let stranger = Authority::named("a stranger");
    let server = authority.identity("server", &["127.0.0.1"], false);
    let strange = stranger.identity("strange", &["forwarder.example"], false);
    let trusting = |authority: &Authority| format!("ca={}", authority.ca().display());
    let showing =
        |identity: &Identity| format!("cert={}&key={}", identity.certificate.display(), identity.key.display());
    let question = "does it require a client certificate (cert=, key=)?".to_owned();
    for version in [&TLS12, &TLS13] {
        for (asks, options, expected) in [
            (false, trusting(&stranger), format!("not signed by an authority in {} (ca=)", stranger.ca().display())),
            (
                false,
                trusting(&namesake),
                format!("has the name of one in {} (ca=) and another key", namesake.ca().display()),
            ),
            (true, trusting(&authority), question.clone()),
            (
                true,
                format!("{}&{}", trusting(&authority), showing(&strange)),
                format!("rejects the client certificate {} (cert=)", strange.certificate.display()),
            ),
        ] {
            let (peer, _) = tls_peer(listener(), authority.server(&server, version, asks));
            let rig = Rig::new();
            let engine = rig.engine(&format!("tls://{}?{options}", peer.address));
            let error = || engine.status()[0]["last_error"]["error"].as_str().unwrap_or_default().to_owned();
            wait_for(&expected, PATIENCE, || error().contains(&expected))
                .unwrap_or_else(|late| panic!("{late}: {version:?}: {}", engine.status()));
            drop(engine);
            rig.stop();
        }
    }
}

#[test]
fn unanswered_handshake_times_out() {
    let authority = Authority::new();
    let peer = Peer::serve(listener(), |stream, book, _| {
        while !book.is_stopping() {
            std::thread::sleep(Duration::from_millis(5));
        }
        drop(stream);
    });
    let stream = Stream::start(with_tls(peer.address, authority.trusting().load("127.0.0.1").unwrap()));
    let timed_out = || stream.rig.metric("sekiwake_forward_errors_total", &["timed_out"]) == 1.0;
    wait_for("the timeout", PATIENCE, timed_out).unwrap();
    assert_eq!(stream.up(), 0.0);
    stream.stop();
}
