//! The settings of ZeroMQ: endpoints and keys.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use sekiwake_settings::{Endpoint, List, Reader};

use super::auth::{
    AllowedKeys, ClientKeys, GatekeeperSettings, KeyFileError, KeyPair, PublicKey, is_key, read_key_pair,
    read_public_key,
};
use crate::{Controlling, Publishing, Subscribing};

const KEY_FILE: &str = "SEKIWAKE_BUS_KEY_FILE";
const SERVER_KEY_FILE: &str = "SEKIWAKE_BUS_SERVER_KEY_FILE";
const ALLOWED_KEYS_FILE: &str = "SEKIWAKE_BUS_ALLOWED_KEYS_FILE";

const SECRET_KEY: &str = "a file with a secret key, as sekiwake-proxy keygen writes it";
const SERVER_KEY: &str = "a file with the proxy's public key";
const ALLOWED_KEYS: &str = "a file with the public keys of clients, one per line";

/// The proxy's endpoints for one side.
#[derive(Clone, Debug)]
pub struct Endpoints {
    /// Their URIs.
    pub endpoints: Vec<String>,
    /// The keys, if connections are encrypted.
    pub keys: Option<ClientKeys>,
}

impl Endpoints {
    /// Reads this variable and the client's keys.
    pub(crate) fn read(reader: &mut Reader, name: &'static str) -> Endpoints {
        Endpoints { endpoints: endpoints(reader, name), keys: ClientKeys::read(reader) }
    }

    /// No endpoints: the bus is not ZeroMQ.
    pub(crate) fn none() -> Endpoints {
        Endpoints { endpoints: Vec::new(), keys: None }
    }

    /// An endpoint within the process, where nothing is encrypted.
    pub(crate) fn inside(endpoint: &str) -> Endpoints {
        Endpoints { endpoints: vec![endpoint.to_owned()], keys: None }
    }

    /// Whether the proxy is in this process: `Connections` does not see such connections, which
    /// last as long as the process.
    pub(crate) fn is_in_process(&self) -> bool {
        self.endpoints.iter().any(|endpoint| endpoint.starts_with("inproc:"))
    }
}

impl fmt::Display for Endpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.endpoints.join(","))
    }
}

impl From<Endpoints> for Publishing {
    fn from(zeromq: Endpoints) -> Publishing {
        Publishing { zeromq, jetstream: None }
    }
}

impl From<Endpoints> for Subscribing {
    fn from(zeromq: Endpoints) -> Subscribing {
        Subscribing { zeromq, jetstream: None }
    }
}

impl From<Endpoints> for Controlling {
    fn from(zeromq: Endpoints) -> Controlling {
        Controlling { zeromq, jetstream: None }
    }
}

impl ClientKeys {
    /// Reads `SEKIWAKE_BUS_KEY_FILE` and `SEKIWAKE_BUS_SERVER_KEY_FILE`: both or neither.
    pub fn read(reader: &mut Reader) -> Option<ClientKeys> {
        let [own, server] = [KEY_FILE, SERVER_KEY_FILE].map(|name| reader.optional::<PathBuf>(name));
        all_or_none(reader, &[(KEY_FILE, &own, SECRET_KEY), (SERVER_KEY_FILE, &server, SERVER_KEY)]);
        // Both are read before either is used, so that all mistakes are reported.
        let own = own.and_then(|path| key_pair(reader, &path));
        let server = server.and_then(|path| server_key(reader, &path));
        Some(ClientKeys { own: own?, server: server? })
    }
}

impl GatekeeperSettings {
    /// Reads `SEKIWAKE_BUS_KEY_FILE` and `SEKIWAKE_BUS_ALLOWED_KEYS_FILE`: both or neither.
    /// `SEKIWAKE_BUS_SERVER_KEY_FILE`, which clients need and which may be in a shared environment
    /// file, must match if it is set.
    pub fn read(reader: &mut Reader) -> Option<GatekeeperSettings> {
        let [own, allowed, server] =
            [KEY_FILE, ALLOWED_KEYS_FILE, SERVER_KEY_FILE].map(|name| reader.optional::<PathBuf>(name));
        let mut wanted = vec![(KEY_FILE, &own, SECRET_KEY), (ALLOWED_KEYS_FILE, &allowed, ALLOWED_KEYS)];
        if server.is_some() {
            wanted.push((SERVER_KEY_FILE, &server, SERVER_KEY));
        }
        all_or_none(reader, &wanted);
        let own = own.and_then(|path| key_pair(reader, &path));
        let allowed = allowed.and_then(|path| file(reader, ALLOWED_KEYS_FILE, &path, ALLOWED_KEYS, AllowedKeys::read));
        if let Some(path) = server
            && let (Some(server), Some(own)) = (server_key(reader, &path), &own)
            && server != own.public()
        {
            let expected = format!("the proxy's public key, {}", own.public());
            reader.mistake(SERVER_KEY_FILE, &path.to_string_lossy(), &expected);
        }
        Some(GatekeeperSettings { own: own?, allowed: allowed? })
    }
}

/// Requires all of these variables if one of them is set, because then encryption is expected.
fn all_or_none(reader: &mut Reader, wanted: &[(&'static str, &Option<PathBuf>, &str)]) {
    let Some((present, ..)) = wanted.iter().find(|(_, path, _)| path.is_some()) else { return };
    for (name, ..) in wanted.iter().filter(|(_, path, _)| path.is_none()) {
        let takes = wanted.iter().find(|(other, ..)| other == name).map_or("", |(.., takes)| takes);
        reader.mistake(name, "", &format!("{takes}, because {present} is set"));
    }
}

fn key_pair(reader: &mut Reader, path: &Path) -> Option<KeyPair> {
    file(reader, KEY_FILE, path, SECRET_KEY, read_key_pair)
}

fn server_key(reader: &mut Reader, path: &Path) -> Option<PublicKey> {
    file(reader, SERVER_KEY_FILE, path, SERVER_KEY, read_public_key)
}

/// Reads the file that a variable names, if files are to be read. A problem with it is a mistake in
/// the variable.
fn file<T>(
    reader: &mut Reader,
    name: &str,
    path: &Path,
    takes: &str,
    read: impl FnOnce(&Path) -> Result<T, KeyFileError>,
) -> Option<T> {
    let shown = path.to_string_lossy();
    match reader.reads_files().then(|| read(path)) {
        Some(Ok(value)) => Some(value),
        // The value may be the secret itself instead of a file name.
        Some(Err(_)) | None if is_key(&shown) => {
            reader.mistake(name, "(hidden)", &format!("{takes}, not the key itself"));
            None
        }
        Some(Err(error)) => {
            reader.mistake(name, &shown, &format!("{takes} ({})", error.with_source()));
            None
        }
        None => None,
    }
}

/// Reads a list of exactly one endpoint: with two, duplicates would not be merged.
fn endpoints(reader: &mut Reader, name: &'static str) -> Vec<String> {
    let list: List<Endpoint> = reader.value(name);
    if list.0.len() > 1 {
        let given: Vec<&str> = list.0.iter().map(Endpoint::as_str).collect();
        reader.mistake(name, &given.join(","), "one endpoint (several proxies are not supported by this version)");
    }
    list.0.iter().map(|endpoint| endpoint.as_str().to_owned()).collect()
}
