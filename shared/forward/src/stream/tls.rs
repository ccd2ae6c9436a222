//! TLS as an operator sets it up: whom to trust, who we are, and whom we expect.
//!
//! Files are read once, at the start, so that a missing or broken one stops the start instead of every connection.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{ClientConfig, RootCertStore, crypto::ring};
use rustls_pki_types::{
    CertificateDer, PrivateKeyDer, ServerName,
    pem::{self, PemObject},
};

use crate::destination::TlsFiles;

/// How a TLS destination is spoken to. Versions 1.2 and 1.3, nothing older.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsSettings {
    /// PEM file with the certificates that are trusted, instead of the system's.
    pub ca: Option<PathBuf>,
    /// PEM file with our certificate and those that lead to its root, where the destination asks for one (RFC 5425 §4.2.1).
    pub certificate: Option<PathBuf>,
    /// PEM file with its private key: PKCS #8, PKCS #1 or SEC 1.
    pub key: Option<PathBuf>,
    /// The name that the destination's certificate must be for, when it is not the host of the URI.
    pub server_name: Option<String>,
}

/// What TLS needs, read and checked.
#[derive(Clone)]
pub struct Tls {
    pub(crate) config: Arc<ClientConfig>,
    pub(crate) server_name: ServerName<'static>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The configuration holds a private key.
        f.debug_struct("Tls").field("server_name", &self.server_name).finish_non_exhaustive()
    }
}

/// Why TLS cannot be spoken as it is set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is not there or is no PEM.
    #[error("cannot read {what} {}: {}", path.display(), reason(source))]
    File {
        /// What it should hold.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        source: pem::Error,
    },
    /// A file holds none of what it is for.
    #[error("{} holds no {what} in PEM form", path.display())]
    Empty {
        /// What it should hold.
        what: &'static str,
        /// Which file.
        path: PathBuf,
    },
    /// Something in a file is not what rustls takes.
    #[error("cannot use {what} {}: {source}", path.display())]
    Unusable {
        /// What it should hold.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        source: rustls::Error,
    },
    /// A certificate without its key, or the other way round.
    #[error("{0} is set without {1}: a client certificate takes both")]
    Half(&'static str, &'static str),
    /// Neither a name nor an address.
    #[error("server name \"{0}\", expected a host name or an IP address")]
    ServerName(String),
    /// The system trusts nobody.
    #[error("the system has no trusted certificates ({0}); install ca-certificates or set ca=FILE")]
    NoRoots(String),
    /// rustls refuses the set-up.
    #[error("TLS cannot be set up")]
    Refused(#[from] rustls::Error),
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
    /// Which file is missing, broken or does not fit, or that the host is none that a certificate can name.
    pub fn load(&self, host: &str) -> Result<Tls, TlsError> {
        let written = self.server_name.as_deref().unwrap_or(host);
        // A name that is written as absolute is certified without its last dot (RFC 6066 §3).
        let name = written.strip_suffix('.').unwrap_or(written);
        let server_name =
            ServerName::try_from(name.to_owned()).map_err(|_| TlsError::ServerName(written.to_owned()))?;
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(self.roots()?);
        let config = match (&self.certificate, &self.key) {
            (None, None) => builder.with_no_client_auth(),
            (Some(_), None) => return Err(TlsError::Half("certificate", "key")),
            (None, Some(_)) => return Err(TlsError::Half("key", "certificate")),
            (Some(certificate), Some(key)) => {
                let what = "private key";
                let private_key = match PrivateKeyDer::from_pem_file(key) {
                    Ok(private_key) => private_key,
                    Err(pem::Error::NoItemsFound) => return Err(TlsError::Empty { what, path: key.clone() }),
                    Err(source) => return Err(TlsError::File { what, path: key.clone(), source }),
                };
                builder.with_client_auth_cert(certificates(certificate)?, private_key).map_err(|source| {
                    TlsError::Unusable { what: "client certificate", path: certificate.clone(), source }
                })?
            }
        };
        Ok(Tls { config: Arc::new(config), server_name })
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
        // What a distribution ships and rustls cannot read is no reason not to trust the others.
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
    let text = fs::read(path).map_err(|error| failed(pem::Error::Io(error)))?;
    let certificates = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>().map_err(failed)?;
    if certificates.is_empty() {
        return Err(TlsError::Empty { what, path: path.to_owned() });
    }
    Ok(certificates)
}

/// The text of an error of reading PEM, without the library's "I/O error:".
fn reason(error: &pem::Error) -> String {
    match error {
        pem::Error::Io(error) if error.kind() == io::ErrorKind::NotFound => "there is no such file".to_owned(),
        pem::Error::Io(error) => error.to_string(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
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
    fn files_that_cannot_be_used_are_told_at_the_start_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let identity = rcgen::generate_simple_self_signed(["siem.example".to_owned()]).unwrap();
        let other = rcgen::KeyPair::generate().unwrap();
        let certificate = written(&folder, "certificate.pem", &identity.cert.pem());
        let key = written(&folder, "key.pem", &identity.signing_key.serialize_pem());
        let ca = certificate.clone();
        let good = TlsSettings { ca, certificate, key, server_name: None };
        assert!(good.load("siem.example.").is_ok());
        assert!(good.load("2001:db8::7").is_ok(), "addresses are names");

        let cases = [
            (TlsSettings { ca: Some("/nowhere.pem".into()), ..good.clone() }, "/nowhere.pem: there is no such file"),
            (TlsSettings { ca: written(&folder, "text", "hello"), ..good.clone() }, "text holds no certificate"),
            (TlsSettings { key: good.certificate.clone(), ..good.clone() }, "certificate.pem holds no private key"),
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
}
