//! Access to the proxy: keys, their files, and the gatekeeper that checks them.

mod gatekeeper;
mod key_files;
mod keys;

pub use gatekeeper::{Gatekeeper, GatekeeperSettings, ServerKeys};
pub use key_files::{AllowedKeys, KeyChanges, KeyFileError, read_key_pair, read_public_key, write_key_pair};
pub(crate) use keys::is_key;
pub use keys::{ClientKeys, KeyError, KeyPair, PublicKey, parse_allowed_keys};
