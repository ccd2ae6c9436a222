//! Where the bus is, and the keys to it: the settings that its parties share.

use std::path::{Path, PathBuf};

use std::time::Duration;

use sekiwake_record::{Name, NameError};
use sekiwake_runtime::host_name;
use sekiwake_settings::{Endpoint, List, Reader};

use crate::{
    AllowedKeys, ClientKeys, GatekeeperSettings, KeyFileError, KeyPair, PublicKey, key_files::read_key_pair,
    key_files::read_public_key, keys::is_key,
};

/// The longest name of a group, bytes: a service's name stands before it.
const MAX_GROUP_NAME: usize = 40;

const KEY_FILE: &str = "SEKIWAKE_BUS_KEY_FILE";
const SERVER_KEY_FILE: &str = "SEKIWAKE_BUS_SERVER_KEY_FILE";
const ALLOWED_KEYS_FILE: &str = "SEKIWAKE_BUS_ALLOWED_KEYS_FILE";

const SECRET_KEY: &str = "a file with a secret key, as sekiwake-proxy keygen writes it";
const SERVER_KEY: &str = "a file with the proxy's public key";
const ALLOWED_KEYS: &str = "a file with the public keys of clients, one a line";

/// Where to publish.
#[derive(Clone, Debug)]
pub struct Publishing {
    /// The proxy's endpoints for publishers.
    pub endpoints: Vec<String>,
    /// The keys, if connections are encrypted.
    pub keys: Option<ClientKeys>,
}

/// Where to subscribe.
#[derive(Clone, Debug)]
pub struct Subscribing {
    /// The proxy's endpoints for subscribers.
    pub endpoints: Vec<String>,
    /// The keys, if connections are encrypted.
    pub keys: Option<ClientKeys>,
}

/// Where control connections go.
#[derive(Clone, Debug)]
pub struct Controlling {
    /// The proxy's endpoints for control.
    pub endpoints: Vec<String>,
    /// This party's keys, where the bus is encrypted.
    pub keys: Option<ClientKeys>,
}

/// Which group a subscriber is a member of, and as whom.
#[derive(Clone, Debug)]
pub struct Grouping {
    /// Replicas of a service with one name share the work.
    pub name: Name,
    /// What people call this member.
    pub label: Name,
    /// How far back a group begins that is seen for the first time.
    pub start_age: Duration,
}

impl Publishing {
    /// Reads `SEKIWAKE_BUS_PUBLISH` and the keys of a client.
    pub fn read(reader: &mut Reader) -> Publishing {
        Publishing { endpoints: endpoints(reader, "SEKIWAKE_BUS_PUBLISH"), keys: ClientKeys::read(reader) }
    }
}

impl Subscribing {
    /// Reads `SEKIWAKE_BUS_SUBSCRIBE` and the keys of a client.
    pub fn read(reader: &mut Reader) -> Subscribing {
        Subscribing { endpoints: endpoints(reader, "SEKIWAKE_BUS_SUBSCRIBE"), keys: ClientKeys::read(reader) }
    }
}

impl Controlling {
    /// Reads `SEKIWAKE_BUS_CONTROL` and the keys of a client.
    pub fn read(reader: &mut Reader) -> Controlling {
        Controlling { endpoints: endpoints(reader, "SEKIWAKE_BUS_CONTROL"), keys: ClientKeys::read(reader) }
    }

    /// Whether the coordinator is in this process: such connections are not seen by a watch, and stand as long as the process does.
    pub(crate) fn is_in_process(&self) -> bool {
        self.endpoints.iter().any(|endpoint| endpoint.starts_with("inproc:"))
    }
}

impl Grouping {
    /// Reads `SEKIWAKE_GROUP`, `SEKIWAKE_MEMBER` and `SEKIWAKE_GROUP_START`.
    pub fn read(reader: &mut Reader) -> Grouping {
        let takes = "1 to 40 letters, digits, dots, hyphens or underscores";
        let group: String = reader.value("SEKIWAKE_GROUP");
        let name = Name::new(&group).ok().filter(|name| name.as_str().len() <= MAX_GROUP_NAME);
        if name.is_none() {
            reader.mistake("SEKIWAKE_GROUP", &group, takes);
        }
        let member: Option<String> = reader.optional("SEKIWAKE_MEMBER");
        let label = member.as_deref().map_or_else(|| Ok(host_name()), Name::new);
        if label.is_err() {
            let takes = "1 to 63 letters, digits, dots, hyphens or underscores";
            reader.mistake("SEKIWAKE_MEMBER", member.as_deref().unwrap_or_default(), takes);
        }
        Grouping {
            name: name.unwrap_or_else(host_name),
            label: label.unwrap_or_else(|_| host_name()),
            start_age: reader.within("SEKIWAKE_GROUP_START", Duration::ZERO..=Duration::from_secs(24 * 3600)),
        }
    }

    /// The group of this service: `<service>.<name>`, so that one environment can serve all services.
    ///
    /// # Errors
    /// A service whose name is too long.
    pub fn group(&self, service: &str) -> Result<Name, NameError> {
        Name::new(&format!("{service}.{}", self.name))
    }
}

impl ClientKeys {
    /// Reads `SEKIWAKE_BUS_KEY_FILE` and `SEKIWAKE_BUS_SERVER_KEY_FILE`: both or none.
    pub fn read(reader: &mut Reader) -> Option<ClientKeys> {
        let [own, server] = [KEY_FILE, SERVER_KEY_FILE].map(|name| reader.optional::<PathBuf>(name));
        all_or_none(reader, &[(KEY_FILE, &own, SECRET_KEY), (SERVER_KEY_FILE, &server, SERVER_KEY)]);
        // Both are read before either counts, so that all mistakes are told.
        let own = own.and_then(|path| key_pair(reader, &path));
        let server = server.and_then(|path| server_key(reader, &path));
        Some(ClientKeys { own: own?, server: server? })
    }
}

impl GatekeeperSettings {
    /// Reads `SEKIWAKE_BUS_KEY_FILE` and `SEKIWAKE_BUS_ALLOWED_KEYS_FILE`: both or none. `SEKIWAKE_BUS_SERVER_KEY_FILE`, which
    /// the clients need and may share an environment file, has to fit if it is set.
    pub fn read(reader: &mut Reader) -> Option<GatekeeperSettings> {
        let [own, allowed, server] =
            [KEY_FILE, ALLOWED_KEYS_FILE, SERVER_KEY_FILE].map(|name| reader.optional::<PathBuf>(name));
        let mut wanted = vec![(KEY_FILE, &own, SECRET_KEY), (ALLOWED_KEYS_FILE, &allowed, ALLOWED_KEYS)];
        if server.is_some() {
            wanted.push((SERVER_KEY_FILE, &server, SERVER_KEY));
        }
        all_or_none(reader, &wanted);
        let own = own.and_then(|path| key_pair(reader, &path));
        let allowed = allowed
            .and_then(|path| AllowedKeys::read(&path).or_mistake(reader, ALLOWED_KEYS_FILE, &path, ALLOWED_KEYS));
        if let Some(path) = server
            && let (Some(server), Some(own)) = (server_key(reader, &path), &own)
            && server != own.public()
        {
            let expected = format!("the public key that belongs to the proxy's own, which is {}", own.public());
            reader.mistake(SERVER_KEY_FILE, &path.to_string_lossy(), &expected);
        }
        Some(GatekeeperSettings { own: own?, allowed: allowed? })
    }
}

/// What is set of these has to be set completely: whoever sets one counts on encryption.
fn all_or_none(reader: &mut Reader, wanted: &[(&'static str, &Option<PathBuf>, &str)]) {
    let Some((present, ..)) = wanted.iter().find(|(_, path, _)| path.is_some()) else { return };
    for (name, ..) in wanted.iter().filter(|(_, path, _)| path.is_none()) {
        let takes = wanted.iter().find(|(other, ..)| other == name).map_or("", |(.., takes)| takes);
        reader.mistake(name, "", &format!("{takes}, as {present} is set"));
    }
}

fn key_pair(reader: &mut Reader, path: &Path) -> Option<KeyPair> {
    read_key_pair(path).or_mistake(reader, KEY_FILE, path, SECRET_KEY)
}

fn server_key(reader: &mut Reader, path: &Path) -> Option<PublicKey> {
    read_public_key(path).or_mistake(reader, SERVER_KEY_FILE, path, SERVER_KEY)
}

/// Notes what is wrong with a file as a mistake in the variable that names it.
trait OrMistake<T> {
    fn or_mistake(self, reader: &mut Reader, name: &str, path: &Path, takes: &str) -> Option<T>;
}

impl<T> OrMistake<T> for Result<T, KeyFileError> {
    fn or_mistake(self, reader: &mut Reader, name: &str, path: &Path, takes: &str) -> Option<T> {
        let path = path.to_string_lossy();
        match self {
            Ok(value) => Some(value),
            // It may be the secret itself, put where its file's name belongs.
            Err(_) if is_key(&path) => {
                reader.mistake(name, "(hidden)", &format!("{takes}, not the key itself"));
                None
            }
            Err(error) => {
                reader.mistake(name, &path, &format!("{takes} ({})", error.told()));
                None
            }
        }
    }
}

/// A list from the start, of one entry for now: with two, nothing would merge what comes twice.
fn endpoints(reader: &mut Reader, name: &'static str) -> Vec<String> {
    let list: List<Endpoint> = reader.value(name);
    if list.0.len() > 1 {
        let given: Vec<&str> = list.0.iter().map(Endpoint::as_str).collect();
        reader.mistake(name, &given.join(","), "one endpoint (several proxies are not supported by this version)");
    }
    list.0.iter().map(|endpoint| endpoint.as_str().to_owned()).collect()
}
