//! The TLS settings of a destination: trusted authorities, client certificate, expected server
//! name.
//!
//! Files are read once, at the start, so that a missing or invalid one fails the start and not
//! every connection.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use rustls::{
    ClientConfig, RootCertStore, SignatureScheme, client::ResolvesClientCert, crypto::ring, sign::CertifiedKey,
};
use rustls_pki_types::{
    CertificateDer, PrivateKeyDer, ServerName,
    pem::{self, PemObject},
};
use sekiwake_runtime::FileContents;

use super::connection::CERTIFICATE_QUESTION;
use crate::config::destination::TlsFiles;

/// A larger file is rejected: all authorities of a system have less.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// The TLS settings of a destination. Versions are 1.2 and 1.3.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsSettings {
    /// PEM file with the trusted certificates; the system's if `None`.
    pub ca: Option<PathBuf>,
    /// PEM file with the client certificate and its chain, if the destination requests one (RFC
    /// 5425 §4.2.1).
    pub certificate: Option<PathBuf>,
    /// PEM file with its private key: PKCS #8, PKCS #1 or SEC 1.
    pub key: Option<PathBuf>,
    /// The name that the server's certificate must have, if it is not the host of the URI.
    pub server_name: Option<String>,
}

/// TLS settings, read and checked.
#[derive(Clone)]
pub struct Tls {
    pub(crate) config: Arc<ClientConfig>,
    pub(crate) server_name: ServerName<'static>,
    pub(crate) files: UsedFiles,
}

/// The same for HTTP, whose client library makes the configuration itself.
#[derive(Clone)]
pub(crate) struct HttpTls {
    pub(crate) roots: Vec<CertificateDer<'static>>,
    /// The client certificate with its chain, and its key in PEM.
    pub(crate) client: Option<(Vec<CertificateDer<'static>>, Vec<u8>)>,
    /// The name in the server's certificate, if it is not the host of the URI.
    pub(crate) server_name: Option<String>,
}

/// The files that TLS settings were read from, for messages about a connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct UsedFiles {
    /// The trusted authorities; the system's if `None`.
    pub(crate) ca: Option<Arc<Path>>,
    /// The client certificate.
    pub(crate) certificate: Option<Arc<Path>>,
    /// Whether a server has asked for a client certificate, and none is configured.
    pub(super) is_certificate_missing: Arc<AtomicBool>,
}

impl UsedFiles {
    pub(crate) fn is_certificate_missing(&self) -> bool {
        self.is_certificate_missing.load(Relaxed)
    }

    /// What to look at when the server ends a new connection without saying why.
    pub(crate) fn question(&self) -> Option<String> {
        match &self.certificate {
            Some(path) => Some(format!("does it accept the client certificate {} (cert=)?", path.display())),
            None => self.is_certificate_missing().then(|| CERTIFICATE_QUESTION.to_owned()),
        }
    }
}

/// Answers a server that asks for a client certificate with none, and takes note of it.
#[derive(Debug)]
struct NoCertificate {
    is_asked_for: Arc<AtomicBool>,
}

impl ResolvesClientCert for NoCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.is_asked_for.store(true, Relaxed);
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The configuration contains a private key.
        f.debug_struct("Tls").field("server_name", &self.server_name).finish_non_exhaustive()
    }
}

/// Why TLS settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is missing or is not PEM.
    #[error("cannot read {what} {}: {}", path.display(), reason(source))]
    File {
        /// The expected contents.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: pem::Error,
    },
    /// A file without the expected contents.
    #[error("{} has no {what}, expected one in PEM format", path.display())]
    Empty {
        /// The expected contents.
        what: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// rustls does not accept the contents of a file.
    #[error("cannot use {what} {}: {source}", path.display())]
    Unusable {
        /// The expected contents.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: rustls::Error,
    },
    /// A certificate without its key, or vice versa.
    #[error("{0} is set without {1}, expected both for a client certificate")]
    Half(&'static str, &'static str),
    /// Neither a name nor an address.
    #[error("server name \"{0}\", expected a host name or an IP address")]
    ServerName(String),
    /// The system has no trusted certificates.
    #[error("the system has no trusted certificates ({0}); install ca-certificates or set ca=FILE")]
    NoRoots(String),
    /// rustls rejects the configuration.
    #[error("cannot configure TLS")]
    Rejected(#[from] rustls::Error),
}

impl From<&TlsFiles> for TlsSettings {
    fn from(files: &TlsFiles) -> TlsSettings {
        let TlsFiles { ca, certificate, key, server_name } = files.clone();
        TlsSettings { ca, certificate, key, server_name }
    }
}

impl TlsSettings {
    /// Reads the files.
    ///
    /// # Errors
    /// A file is missing, invalid or does not match, or a certificate cannot name the host.
    pub fn load(&self, host: &str) -> Result<Tls, TlsError> {
        let written = self.server_name.as_deref().unwrap_or(host);
        // Certificates have absolute names without their last dot (RFC 6066 §3).
        let name = written.strip_suffix('.').unwrap_or(written);
        let server_name =
            ServerName::try_from(name.to_owned()).map_err(|_| TlsError::ServerName(written.to_owned()))?;
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(self.roots()?);
        let files = UsedFiles {
            ca: self.ca.as_deref().map(Arc::from),
            certificate: self.certificate.as_deref().map(Arc::from),
            is_certificate_missing: Arc::default(),
        };
        let config = match (&self.certificate, &self.key) {
            (None, None) => {
                let is_asked_for = Arc::clone(&files.is_certificate_missing);
                builder.with_client_cert_resolver(Arc::new(NoCertificate { is_asked_for }))
            }
            (Some(_), None) => return Err(TlsError::Half("certificate", "key")),
            (None, Some(_)) => return Err(TlsError::Half("key", "certificate")),
            (Some(certificate), Some(key)) => {
                let what = "private key";
                let text = read_pem(key);
                let private_key = match text.and_then(|text| PrivateKeyDer::from_pem_slice(&text)) {
                    Ok(private_key) => private_key,
                    Err(pem::Error::NoItemsFound) => return Err(TlsError::Empty { what, path: key.clone() }),
                    Err(source) => return Err(TlsError::File { what, path: key.clone(), source }),
                };
                builder.with_client_auth_cert(certificates(certificate)?, private_key).map_err(|source| {
                    TlsError::Unusable { what: "client certificate", path: certificate.clone(), source }
                })?
            }
        };
        Ok(Tls { config: Arc::new(config), server_name, files })
    }

    /// Reads the files for HTTP.
    ///
    /// # Errors
    /// As [`TlsSettings::load`].
    pub(crate) fn load_for_http(&self, host: &str) -> Result<HttpTls, TlsError> {
        // All files are checked there.
        self.load(host)?;
        let roots = match &self.ca {
            Some(path) => certificates(path)?,
            None => rustls_native_certs::load_native_certs().certs,
        };
        let client = match (&self.certificate, &self.key) {
            (Some(certificate), Some(key)) => {
                let text = read_pem(key);
                let text = text.map_err(|source| TlsError::File { what: "private key", path: key.clone(), source })?;
                Some((certificates(certificate)?, text))
            }
            _ => None,
        };
        Ok(HttpTls { roots, client, server_name: self.server_name.clone() })
    }

    fn roots(&self) -> Result<RootCertStore, TlsError> {
        let mut roots = RootCertStore::empty();
        if let Some(path) = &self.ca {
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|source| TlsError::Unusable {
                    what: "trusted certificate",
                    path: path.clone(),
                    source,
                })?;
            }
            return Ok(roots);
        }
        let found = rustls_native_certs::load_native_certs();
        // A certificate that rustls cannot read does not make the others untrusted.
        roots.add_parsable_certificates(found.certs);
        if roots.is_empty() {
            let errors: Vec<String> = found.errors.iter().map(ToString::to_string).collect();
            let why = if errors.is_empty() { "none were found".to_owned() } else { errors.join("; ") };
            return Err(TlsError::NoRoots(why));
        }
        Ok(roots)
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let what = "certificate";
    let failed = |source| TlsError::File { what, path: path.to_owned(), source };
    let text = read_pem(path).map_err(failed)?;
    let certificates = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>().map_err(failed)?;
    if certificates.is_empty() {
        return Err(TlsError::Empty { what, path: path.to_owned() });
    }
    Ok(certificates)
}

/// The contents of a file, without the byte order mark that some editors write before them.
fn read_pem(path: &Path) -> Result<Vec<u8>, pem::Error> {
    let FileContents { mut bytes, .. } = FileContents::read(path, MAX_FILE_BYTES).map_err(pem::Error::Io)?;
    if bytes.starts_with("\u{feff}".as_bytes()) {
        bytes.drain(.."\u{feff}".len());
    }
    Ok(bytes)
}

/// The text of a PEM error, without the library's prefix "I/O error:" and without text of the file,
/// which may be a private key on one line.
fn reason(error: &pem::Error) -> String {
    match error {
        pem::Error::Io(error) if error.kind() == io::ErrorKind::NotFound => "no such file".to_owned(),
        pem::Error::Io(error) => error.to_string(),
        pem::Error::IllegalSectionStart { .. } => {
            "expected PEM format: after \"-----BEGIN ...-----\" a line must end".to_owned()
        }
        pem::Error::MissingSectionEnd { .. } => {
            "expected PEM format: each section must end with a line \"-----END ...-----\"".to_owned()
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn written(folder: &tempfile::TempDir, name: &str, text: &str) -> Option<PathBuf> {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        Some(path)
    }

    fn error(settings: &TlsSettings) -> String {
        settings.load("siem.example").unwrap_err().to_string()
    }

    #[test]
    fn unusable_files_fail_the_start_with_their_name() {
        let folder = tempfile::tempdir().unwrap();
        let identity = rcgen::generate_simple_self_signed(["siem.example".to_owned()]).unwrap();
        let other = rcgen::KeyPair::generate().unwrap();
        let certificate = written(&folder, "certificate.pem", &identity.cert.pem());
        let key = written(&folder, "key.pem", &identity.signing_key.serialize_pem());
        let ca = certificate.clone();
        let good = TlsSettings { ca, certificate, key, server_name: None };
        assert!(good.load("siem.example.").is_ok());
        assert!(good.load("2001:db8::7").is_ok(), "addresses are names");
        let marked = written(&folder, "marked", &format!("\u{feff}{}", identity.cert.pem()));
        assert!(TlsSettings { ca: marked, ..good.clone() }.load("siem.example").is_ok());

        let cases = [
            (TlsSettings { ca: Some("/nowhere.pem".into()), ..good.clone() }, "/nowhere.pem: no such file"),
            (TlsSettings { ca: written(&folder, "text", "hello"), ..good.clone() }, "text has no certificate"),
            (TlsSettings { key: good.certificate.clone(), ..good.clone() }, "certificate.pem has no private key"),
            (TlsSettings { key: None, ..good.clone() }, "certificate is set without key"),
            (TlsSettings { certificate: None, ..good.clone() }, "key is set without certificate"),
            (
                TlsSettings { key: written(&folder, "other.pem", &other.serialize_pem()), ..good.clone() },
                "cannot use client certificate",
            ),
            (TlsSettings { server_name: Some("not a name".to_owned()), ..good.clone() }, "server name \"not a name\""),
        ];
        for (settings, expected) in cases {
            let error = error(&settings);
            assert!(error.contains(expected), "{error:?} should say {expected:?}");
        }
    }

    #[test]
    fn errors_show_nothing_of_a_damaged_key() {
        let folder = tempfile::tempdir().unwrap();
        let identity = rcgen::generate_simple_self_signed(["siem.example".to_owned()]).unwrap();
        let certificate = written(&folder, "certificate.pem", &identity.cert.pem());
        let key = identity.signing_key.serialize_pem();
        for (name, text) in [
            ("escaped", key.replace('\n', "\\n")),
            ("joined", key.replace('\n', "")),
            ("begun", key.replacen("-----\n", "-----", 1)),
            ("truncated", key[..key.len() / 2].to_owned()),
            ("damaged", key.replacen("M", "!", 1)),
        ] {
            let key = written(&folder, name, &text);
            let expected = key.clone().unwrap().display().to_string();
            let error = error(&TlsSettings {
                ca: certificate.clone(),
                certificate: certificate.clone(),
                key,
                server_name: None,
            });
            assert!(error.contains(&expected) && error.len() < expected.len() + 120, "{error}");
            assert!(!error.contains('['), "bytes of the file: {error}");
        }
    }
}
