//! The settings of JetStream: servers, secrets, and how streams are created.

use std::{fs::File, io::Read, path::PathBuf, sync::Arc, time::Duration};

use sekiwake_settings::{ByteSize, List, NatsUrl, Reader};

use crate::Subscribing;

const BUS: &str = "SEKIWAKE_BUS";
const CA_FILE: &str = "SEKIWAKE_BUS_TLS_CA_FILE";
const CERT_FILE: &str = "SEKIWAKE_BUS_TLS_CERT_FILE";
const KEY_FILE: &str = "SEKIWAKE_BUS_TLS_KEY_FILE";
const NKEY_FILE: &str = "SEKIWAKE_BUS_NKEY_FILE";
const CREDENTIALS_FILE: &str = "SEKIWAKE_BUS_CREDENTIALS_FILE";
const USER: &str = "SEKIWAKE_BUS_USER";
const PASSWORD_FILE: &str = "SEKIWAKE_BUS_PASSWORD_FILE";
const REPLICAS: &str = "SEKIWAKE_BUS_REPLICAS";
const MAX_BYTES: &str = "SEKIWAKE_BUS_MAX_BYTES";
const MAX_AGE: &str = "SEKIWAKE_BUS_MAX_AGE";

/// The settings of the other bus.
const ZEROMQ: [&str; 6] = [
    "SEKIWAKE_BUS_PUBLISH",
    "SEKIWAKE_BUS_SUBSCRIBE",
    "SEKIWAKE_BUS_CONTROL",
    "SEKIWAKE_BUS_SERVER_KEY_FILE",
    "SEKIWAKE_BUS_KEY_FILE",
    "SEKIWAKE_BUS_ALLOWED_KEYS_FILE",
];

/// The settings that would be missed if this bus is not used. Those of streams have defaults.
const OWN: [&str; 7] = [CA_FILE, CERT_FILE, KEY_FILE, NKEY_FILE, CREDENTIALS_FILE, USER, PASSWORD_FILE];

/// The tick on this bus, unless it is set: a message costs more than on ZeroMQ.
const TICK: &str = "20ms";
/// The largest secret or certificate file, bytes.
const MAX_FILE: u64 = 1 << 20;

/// How to reach the servers, and how streams are created.
#[derive(Clone, Debug)]
pub(crate) struct JetStreamSettings {
    /// How to reach the servers.
    pub(crate) access: NatsAccess,
    /// Copies of each record; `None` for 3 in a cluster of at least 3 servers, else 1.
    pub(crate) replicas: Option<usize>,
    /// The most bytes per kind.
    pub(crate) max_bytes: u64,
    /// How long records are retained.
    pub(crate) max_age: Duration,
}

/// How to reach NATS servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NatsAccess {
    /// The servers' URLs with ports, all `nats://` or all `tls://`.
    pub urls: Vec<String>,
    /// Whether connections must be encrypted.
    pub is_tls: bool,
    /// Authorities to check the servers with; `None` for those of the system.
    pub ca_file: Option<PathBuf>,
    /// The certificate and the key of this client.
    pub identity: Option<NatsIdentity>,
    /// How this client authenticates.
    pub login: NatsLogin,
}

/// The files of a client's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NatsIdentity {
    /// The certificate with its chain, PEM.
    pub cert_file: PathBuf,
    /// Its key, PEM.
    pub key_file: PathBuf,
}

/// How a client authenticates. Files are read at each connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NatsLogin {
    /// With its certificate, or not at all.
    None,
    /// By signing with the seed in this file.
    Nkey(PathBuf),
    /// With the JWT and the seed in this file.
    Credentials(PathBuf),
    /// With a name and a password.
    Password {
        /// The name.
        user: String,
        /// The file with the password.
        file: PathBuf,
    },
}

impl NatsAccess {
    /// The servers, for messages.
    pub fn servers(&self) -> String {
        self.urls.join(",")
    }

    /// The files whose change is followed by a new connection.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        let login = match &self.login {
            NatsLogin::None => None,
            NatsLogin::Nkey(file) | NatsLogin::Credentials(file) | NatsLogin::Password { file, .. } => Some(file),
        };
        let identity = self.identity.iter().flat_map(|identity| [&identity.cert_file, &identity.key_file]);
        self.ca_file.iter().chain(identity).chain(login)
    }
}

impl JetStreamSettings {
    /// Reads `SEKIWAKE_BUS` and what belongs to it; `None` if the bus is ZeroMQ.
    pub(crate) fn read(reader: &mut Reader) -> Option<Arc<JetStreamSettings>> {
        let urls: Option<List<NatsUrl>> = reader.optional(BUS);
        // All are read in any case, so that all are listed.
        let ca_file = file(reader, CA_FILE);
        let identity = identity(reader);
        let login = login(reader);
        let replicas: Option<usize> = reader.optional(REPLICAS);
        if let Some(wrong) = replicas.filter(|replicas| ![1, 3, 5].contains(replicas)) {
            reader.mistake(REPLICAS, &wrong.to_string(), "1, 3 or 5");
        }
        let max_bytes = reader.within(MAX_BYTES, ByteSize(1 << 20)..=ByteSize(1 << 50)).0;
        let max_age = reader.within(MAX_AGE, Duration::from_secs(60)..=Duration::from_secs(366 * 86_400));
        let Some(urls) = urls else {
            // A mistake in SEKIWAKE_BUS is enough.
            if !reader.is_set(BUS) {
                OWN.into_iter().for_each(|name| reader.must_be_unset(name, "because SEKIWAKE_BUS is not set"));
            }
            return None;
        };
        let shown = urls.to_string();
        if !cfg!(feature = "jetstream") {
            reader.mistake(
                BUS,
                &shown,
                "it to be unset, because this program was built without its cargo feature jetstream",
            );
        }
        ZEROMQ.into_iter().for_each(|name| reader.must_be_unset(name, "because SEKIWAKE_BUS is set"));
        let is_tls = urls.iter().any(NatsUrl::is_tls);
        if is_tls && !urls.iter().all(NatsUrl::is_tls) {
            reader.mistake(BUS, &shown, "tls:// for all servers or for none");
        }
        reader.default_to("SEKIWAKE_TICK", TICK);
        if !is_tls {
            for name in [CA_FILE, CERT_FILE, KEY_FILE] {
                reader.must_be_unset(name, "because SEKIWAKE_BUS does not begin with tls://");
            }
        }
        let urls = urls.iter().map(|url| url.as_str().to_owned()).collect();
        let access = NatsAccess { urls, is_tls, ca_file, identity, login };
        Some(Arc::new(JetStreamSettings { access, replicas, max_bytes, max_age }))
    }

    /// Settings of a client that creates no streams.
    #[cfg(feature = "jetstream")]
    pub(crate) fn without_streams(access: NatsAccess) -> Arc<JetStreamSettings> {
        Arc::new(JetStreamSettings { access, replicas: None, max_bytes: 0, max_age: Duration::ZERO })
    }

    /// The servers, for messages.
    pub(crate) fn servers(&self) -> String {
        self.access.servers()
    }
}

impl Subscribing {
    /// The URLs of the bus's NATS servers, with ports.
    pub fn nats_servers(&self) -> impl Iterator<Item = &str> {
        self.jetstream.iter().flat_map(|settings| settings.access.urls.iter().map(String::as_str))
    }
}

fn identity(reader: &mut Reader) -> Option<NatsIdentity> {
    match (file(reader, CERT_FILE), file(reader, KEY_FILE)) {
        (Some(cert_file), Some(key_file)) => Some(NatsIdentity { cert_file, key_file }),
        (None, None) => None,
        (Some(_), None) => {
            reader.mistake(KEY_FILE, "", "the private key, because SEKIWAKE_BUS_TLS_CERT_FILE is set");
            None
        }
        (None, Some(_)) => {
            reader.mistake(CERT_FILE, "", "the certificate, because SEKIWAKE_BUS_TLS_KEY_FILE is set");
            None
        }
    }
}

fn login(reader: &mut Reader) -> NatsLogin {
    let nkey = file(reader, NKEY_FILE).map(NatsLogin::Nkey);
    let credentials = file(reader, CREDENTIALS_FILE).map(NatsLogin::Credentials);
    let user: Option<String> = reader.optional(USER);
    let password = match (user, file(reader, PASSWORD_FILE)) {
        (Some(user), Some(file)) => Some(NatsLogin::Password { user, file }),
        (None, None) => None,
        (Some(_), None) => {
            reader.mistake(PASSWORD_FILE, "", "a file with the password, because SEKIWAKE_BUS_USER is set");
            None
        }
        (None, Some(_)) => {
            reader.mistake(USER, "", "the user, because SEKIWAKE_BUS_PASSWORD_FILE is set");
            None
        }
    };
    let mut logins = [(NKEY_FILE, nkey), (CREDENTIALS_FILE, credentials), (PASSWORD_FILE, password)]
        .into_iter()
        .filter_map(|(name, login)| Some((name, login?)));
    let Some((first, login)) = logins.next() else { return NatsLogin::None };
    for (name, _) in logins {
        reader.must_be_unset(name, &format!("because {first} is set"));
    }
    login
}

/// The path in a variable. That the file cannot be read is a mistake.
fn file(reader: &mut Reader, name: &'static str) -> Option<PathBuf> {
    let path: PathBuf = reader.optional(name)?;
    if reader.reads_files() {
        let read = File::open(&path).and_then(|file| file.take(MAX_FILE).read_to_end(&mut Vec::new()));
        if let Err(error) = read {
            reader.mistake(name, &path.to_string_lossy(), &format!("a file that can be read ({error})"));
        }
    }
    Some(path)
}

#[cfg(test)]
mod tests {
    use sekiwake_settings::Environment;

    use super::*;

    fn read(pairs: &[(&str, &str)]) -> (Option<Arc<JetStreamSettings>>, Vec<String>) {
        let mut reader = Reader::new(&Environment::from_pairs(pairs.iter().copied())).without_files();
        let settings = JetStreamSettings::read(&mut reader);
        let mistakes = reader.finish().err().map(|mistakes| mistakes.to_string()).unwrap_or_default();
        (settings, mistakes.lines().map(str::to_owned).collect())
    }

    const SERVERS: (&str, &str) = ("SEKIWAKE_BUS", "nats://n1,nats://n2:4223");

    #[test]
    fn servers_select_this_bus() {
        assert!(read(&[]).0.is_none());
        let (settings, mistakes) = read(&[SERVERS, ("SEKIWAKE_BUS_MAX_AGE", "2h"), ("SEKIWAKE_BUS_REPLICAS", "3")]);
        let settings = settings.unwrap();
        assert_eq!(mistakes, Vec::<String>::new());
        assert_eq!(settings.servers(), "nats://n1:4222,nats://n2:4223");
        assert_eq!((settings.max_bytes, settings.max_age.as_secs(), settings.replicas), (1 << 30, 7200, Some(3)));
        assert_eq!((settings.access.is_tls, &settings.access.login), (false, &NatsLogin::None));
    }

    #[test]
    fn contradictions_are_mistakes() {
        let tls = ("SEKIWAKE_BUS", "tls://n1");
        let nkey = ("SEKIWAKE_BUS_NKEY_FILE", "/etc/sekiwake/nkey");
        for (settings, text) in [
            (
                vec![SERVERS, ("SEKIWAKE_BUS_PUBLISH", "tcp://n1:5559")],
                "expected it to be unset, because SEKIWAKE_BUS is set",
            ),
            (vec![SERVERS, ("SEKIWAKE_BUS_KEY_FILE", "k")], "(hidden)"),
            (vec![("SEKIWAKE_BUS", "nats://n1,tls://n2")], "expected tls:// for all servers or for none"),
            (vec![SERVERS, ("SEKIWAKE_BUS_TLS_CA_FILE", "ca")], "because SEKIWAKE_BUS does not begin with tls://"),
            (vec![tls, ("SEKIWAKE_BUS_TLS_CERT_FILE", "c")], "SEKIWAKE_BUS_TLS_KEY_FILE is not set"),
            (vec![SERVERS, ("SEKIWAKE_BUS_USER", "u")], "SEKIWAKE_BUS_PASSWORD_FILE is not set"),
            (
                vec![SERVERS, nkey, ("SEKIWAKE_BUS_CREDENTIALS_FILE", "c")],
                "expected it to be unset, because SEKIWAKE_BUS_NKEY_FILE is set",
            ),
            (vec![SERVERS, ("SEKIWAKE_BUS_REPLICAS", "2")], "expected 1, 3 or 5"),
            (vec![("SEKIWAKE_BUS_CREDENTIALS_FILE", "c")], "expected it to be unset, because SEKIWAKE_BUS is not set"),
            (vec![("SEKIWAKE_BUS", "nats://u:p@n1")], "user and password belong in SEKIWAKE_BUS_USER"),
        ] {
            let mistakes = read(&settings).1;
            assert!(mistakes.len() == 1 && mistakes[0].contains(text), "{text}: {mistakes:?}");
        }
    }

    #[test]
    fn tick_is_longer_unless_set() {
        let tick = |pairs: &[(&str, &str)]| {
            let mut reader = Reader::new(&Environment::from_pairs(pairs.iter().copied()));
            JetStreamSettings::read(&mut reader);
            reader.value::<Duration>("SEKIWAKE_TICK").as_millis()
        };
        assert_eq!((tick(&[]), tick(&[SERVERS]), tick(&[SERVERS, ("SEKIWAKE_TICK", "3ms")])), (6, 20, 3));
    }
}
