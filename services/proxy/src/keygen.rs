//! `sekiwake-proxy keygen PATH`: a key pair for a party of the bus.

use std::{io::Write, path::Path};

use sekiwake_bus::{KeyPair, write_key_pair};

/// Writes the secret key to `path`, which must not exist, and the public key to `path`.pub; then prints to `out` the line by
/// which the proxy's list of allowed keys knows it.
///
/// # Errors
/// A file that exists already, or cannot be written; a libzmq without CURVE.
pub fn keygen(path: &Path, out: &mut impl Write) -> anyhow::Result<()> {
    let line = write_key_pair(path, &KeyPair::generate()?)?;
    Ok(writeln!(out, "{line}")?)
}
