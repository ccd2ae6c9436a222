//! `sekiwake-proxy keygen PATH`: creates a key pair for a client or the proxy.

use std::{io::Write, path::Path};

use sekiwake_bus::zeromq::{KeyPair, write_key_pair};

/// Writes the secret key to `path`, which must not exist, and the public key to `path`.pub. Then
/// prints the line for the proxy's list of allowed keys to `out`.
///
/// # Errors
/// A file that already exists or cannot be written; a libzmq without CURVE.
pub fn keygen(path: &Path, out: &mut impl Write) -> anyhow::Result<()> {
    let line = write_key_pair(path, &KeyPair::generate()?)?;
    Ok(writeln!(out, "{line}")?)
}
