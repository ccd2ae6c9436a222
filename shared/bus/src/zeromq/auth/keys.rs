//! CURVE keys and their text form. No files.
//!
//! A key has 32 bytes, written as 40 characters of Z85 (ZeroMQ RFC 32). There are three kinds of
//! files, all made of lines. Blank lines and lines that begin with `#` are skipped (no key begins
//! with `#`, because its first five characters would exceed 32 bits):
//!
//! ```text
//! a key pair          secret KEY          and, for information, `public KEY`
//! a public key        KEY NAME...         one line; the name is a comment
//! allowed keys        KEY NAME...         one line per client
//! ```

use std::{collections::HashMap, fmt, str::FromStr};

/// The length of a key, bytes.
pub(crate) const KEY_BYTES: usize = 32;

/// The length of a key's text, characters.
const KEY_TEXT_BYTES: usize = 40;

/// The digits of Z85, base 85 (ZeroMQ RFC 32).
const DIGITS: &[u8; 85] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#";

/// A public key. Displayed as Z85.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PublicKey([u8; KEY_BYTES]);

/// A secret key and its public key. The secret is never printed, not even for debugging.
#[derive(Clone)]
pub struct KeyPair {
    public: PublicKey,
    secret: [u8; KEY_BYTES],
}

/// The keys of a client: its own pair, and the proxy's public key.
#[derive(Clone, Debug)]
pub struct ClientKeys {
    /// The client's pair.
    pub own: KeyPair,
    /// The proxy's public key.
    pub server: PublicKey,
}

/// Why a text is not a key. Never quotes the text, because it may be a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// A line that is not a key.
    #[error("line {line} is not a key of 40 Z85 characters")]
    NoKey {
        /// Counted from 1.
        line: usize,
    },
    /// Only blank lines and comments.
    #[error("contains no key")]
    Empty,
    /// Several keys where one is expected.
    #[error("contains more than one key")]
    Several,
    /// A key pair where a public key is expected.
    #[error("contains a secret key: the public key is in the file whose name ends in .pub")]
    Secret,
    /// Public keys where a secret key is expected.
    #[error("line {line} does not begin with the word secret or public: is it a file of public keys?")]
    NotSecret {
        /// Counted from 1.
        line: usize,
    },
    /// A public key that does not match the secret key.
    #[error("public key does not match secret key")]
    Mismatch,
    /// libzmq without CURVE.
    #[error("this libzmq was built without CURVE")]
    NoCurve,
}

impl PublicKey {
    /// The key with these bytes.
    pub(crate) fn from_bytes(bytes: [u8; KEY_BYTES]) -> PublicKey {
        PublicKey(bytes)
    }

    /// Parses a file with one public key, with or without a name.
    ///
    /// # Errors
    /// Anything else.
    pub fn parse_file(text: &str) -> Result<PublicKey, KeyError> {
        let keys = parse_public_keys(text)?;
        match &keys[..] {
            [(key, _)] => Ok(*key),
            [] => Err(KeyError::Empty),
            _ => Err(KeyError::Several),
        }
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chunks_exact(4).try_for_each(|bytes| {
            let number = bytes.iter().fold(0, |number, byte| number << 8 | u32::from(*byte));
            let digit = |power| char::from(DIGITS[(number / 85_u32.pow(power) % 85) as usize]);
            (0..5).rev().try_for_each(|power| fmt::Write::write_char(f, digit(power)))
        })
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<PublicKey, KeyError> {
        decode(text).map(PublicKey).ok_or(KeyError::NoKey { line: 1 })
    }
}

impl KeyPair {
    /// A new random pair.
    ///
    /// # Errors
    /// A libzmq without CURVE.
    pub fn generate() -> Result<KeyPair, KeyError> {
        let pair = zmq::CurveKeyPair::new().map_err(|_| KeyError::NoCurve)?;
        Ok(KeyPair { public: PublicKey(pair.public_key), secret: pair.secret_key })
    }

    /// The public key.
    pub fn public(&self) -> PublicKey {
        self.public
    }

    /// Parses a secret key file.
    ///
    /// # Errors
    /// Not exactly one secret key, a public key that does not match it, or a libzmq without CURVE.
    pub fn parse_file(text: &str) -> Result<KeyPair, KeyError> {
        let mut secret = None;
        let mut public = None;
        for (line, content) in content_lines(text) {
            let (kind, key) = content.split_once(char::is_whitespace).unwrap_or((content, ""));
            let place = match kind {
                "secret" => &mut secret,
                "public" => &mut public,
                _ => return Err(KeyError::NotSecret { line }),
            };
            let key = decode(key.trim()).ok_or(KeyError::NoKey { line })?;
            if place.replace(key).is_some() {
                return Err(KeyError::Several);
            }
        }
        let pair = KeyPair::of(secret.ok_or(KeyError::Empty)?)?;
        match public {
            Some(public) if public != pair.public.0 => Err(KeyError::Mismatch),
            _ => Ok(pair),
        }
    }

    /// The text of a secret key file.
    pub(crate) fn file_text(&self) -> String {
        format!(
            "# A key pair for Sekiwake's bus. Anyone who can read this file can impersonate its owner.\n\
             # The public key is no secret. It is also in the file of the same name that ends in .pub.\n\
             public {}\n\
             # The secret key must stay here.\n\
             secret {}\n",
            self.public,
            PublicKey(self.secret)
        )
    }

    fn of(secret: [u8; KEY_BYTES]) -> Result<KeyPair, KeyError> {
        let mut text = [0; KEY_TEXT_BYTES];
        text.copy_from_slice(PublicKey(secret).to_string().as_bytes());
        // The text is valid Z85, so the only possible error is a missing CURVE.
        let public = sekiwake_sys::curve_public_key(&text).map_err(|_| KeyError::NoCurve)?;
        let public = str::from_utf8(&public).ok().and_then(decode).ok_or(KeyError::NoCurve)?;
        Ok(KeyPair { public: PublicKey(public), secret })
    }

    pub(crate) fn secret(&self) -> &[u8] {
        &self.secret
    }
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyPair").field("public", &self.public).finish_non_exhaustive()
    }
}

impl ClientKeys {
    /// Makes a socket encrypt its connections and prove its key. To be called before it connects.
    pub(crate) fn apply(&self, socket: &zmq::Socket) -> Result<(), zmq::Error> {
        socket.set_curve_serverkey(&self.server.0)?;
        socket.set_curve_publickey(&self.own.public.0)?;
        socket.set_curve_secretkey(&self.own.secret)
    }
}

/// Parses a list of allowed keys, each with its name, which may be empty.
///
/// # Errors
/// A line that is not a key, or no keys: a truncated list must not be accepted.
pub fn parse_allowed_keys(text: &str) -> Result<HashMap<PublicKey, String>, KeyError> {
    let keys: HashMap<PublicKey, String> = parse_public_keys(text)?.into_iter().collect();
    if keys.is_empty() { Err(KeyError::Empty) } else { Ok(keys) }
}

/// Whether this is a key. If it is given where a path is expected, it must not be printed.
pub(crate) fn is_key(text: &str) -> bool {
    decode(text).is_some()
}

fn parse_public_keys(text: &str) -> Result<Vec<(PublicKey, String)>, KeyError> {
    let key_of = |(line, content): (usize, &str)| {
        let (key, name) = content.split_once(char::is_whitespace).unwrap_or((content, ""));
        match decode(key) {
            Some(key) => Ok((PublicKey(key), name.trim().to_owned())),
            None if matches!(key, "secret" | "public") => Err(KeyError::Secret),
            None => Err(KeyError::NoKey { line }),
        }
    };
    content_lines(text).map(key_of).collect()
}

/// The lines that are neither blank nor comments, trimmed, with their numbers from 1.
fn content_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text.lines().map(str::trim).enumerate().map(|(index, line)| (index + 1, line));
    lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
}

fn decode(text: &str) -> Option<[u8; KEY_BYTES]> {
    if text.len() != KEY_TEXT_BYTES {
        return None;
    }
    let mut key = [0; KEY_BYTES];
    for (bytes, digits) in key.chunks_exact_mut(4).zip(text.as_bytes().chunks_exact(5)) {
        let number = digits.iter().try_fold(0_u32, |number, digit| {
            let digit = DIGITS.iter().position(|known| known == digit)?;
            number.checked_mul(85)?.checked_add(digit as u32)
        })?;
        bytes.copy_from_slice(&number.to_be_bytes());
    }
    Some(key)
}
