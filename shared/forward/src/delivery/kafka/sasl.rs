//! Authentication: PLAIN (RFC 4616) and SCRAM (RFC 5802, RFC 7677). Logic without I/O.
//!
//! The exchange is ours although crates for SASL exist: it is two messages over `ring`, which TLS
//! needs anyway. Passwords are used as they are, without SASLprep, as librdkafka does.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use ring::{digest, hmac, pbkdf2};

/// How a user is authenticated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// The password is sent.
    Plain,
    /// Proof of the password.
    ScramSha256,
    /// The same with SHA-512.
    ScramSha512,
}

impl Mechanism {
    /// Its name in the option `sasl`.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Mechanism::Plain => "plain",
            Mechanism::ScramSha256 => "scram-sha-256",
            Mechanism::ScramSha512 => "scram-sha-512",
        }
    }

    /// Its registered name.
    pub(super) const fn registered(self) -> &'static str {
        match self {
            Mechanism::Plain => "PLAIN",
            Mechanism::ScramSha256 => "SCRAM-SHA-256",
            Mechanism::ScramSha512 => "SCRAM-SHA-512",
        }
    }
}

/// A user with a password, which is never shown.
#[derive(Clone)]
pub(crate) struct Credentials {
    pub(crate) mechanism: Mechanism,
    pub(crate) user: String,
    pub(crate) password: String,
}

/// Fewer iterations are insecure (RFC 7677 §4); more would keep this host busy for long.
const ITERATIONS: std::ops::RangeInclusive<u32> = 4096..=1_000_000;

/// The one message of PLAIN.
pub(super) fn plain(credentials: &Credentials) -> Vec<u8> {
    [b"\0", credentials.user.as_bytes(), b"\0", credentials.password.as_bytes()].concat()
}

/// An exchange of SCRAM that has begun.
pub(super) struct Scram<'a> {
    credentials: &'a Credentials,
    nonce: String,
}

/// The last message of the client, and what the server has to answer.
pub(super) struct Proof {
    pub(super) message: String,
    key: hmac::Key,
    signed: String,
}

impl<'a> Scram<'a> {
    pub(super) fn new(credentials: &'a Credentials, nonce: String) -> Scram<'a> {
        Scram { credentials, nonce }
    }

    fn bare(&self) -> String {
        let user = self.credentials.user.replace('=', "=3D").replace(',', "=2C");
        format!("n={user},r={}", self.nonce)
    }

    /// The first message.
    pub(super) fn first(&self) -> String {
        format!("n,,{}", self.bare())
    }

    /// Reads the server's first message, `r=NONCE,s=SALT,i=ITERATIONS`.
    pub(super) fn proof(&self, server: &[u8]) -> Result<Proof, String> {
        let server = str::from_utf8(server).map_err(|_| "its message is not text".to_owned())?;
        let field = |name: &str| {
            let found = server.split(',').find_map(|field| field.strip_prefix(name)?.strip_prefix('='));
            found.ok_or_else(|| format!("its message has no {name}="))
        };
        let nonce = field("r")?;
        if !nonce.starts_with(&self.nonce) || nonce.len() == self.nonce.len() {
            return Err("its nonce does not continue this client's".to_owned());
        }
        let salt = BASE64_STANDARD.decode(field("s")?).map_err(|_| "its salt is not base64".to_owned())?;
        let iterations = field("i")?.parse::<u32>().ok().filter(|iterations| ITERATIONS.contains(iterations));
        let iterations = iterations
            .and_then(|iterations| iterations.try_into().ok())
            .ok_or_else(|| format!("expected {} to {} iterations", ITERATIONS.start(), ITERATIONS.end()))?;
        let (derivation, mac, hash) = match self.credentials.mechanism {
            Mechanism::ScramSha512 => (pbkdf2::PBKDF2_HMAC_SHA512, hmac::HMAC_SHA512, &digest::SHA512),
            _ => (pbkdf2::PBKDF2_HMAC_SHA256, hmac::HMAC_SHA256, &digest::SHA256),
        };
        let mut salted = vec![0; hash.output_len()];
        pbkdf2::derive(derivation, iterations, &salt, self.credentials.password.as_bytes(), &mut salted);
        let salted = hmac::Key::new(mac, &salted);
        let client_key = hmac::sign(&salted, b"Client Key");
        let stored_key = digest::digest(hash, client_key.as_ref());
        // "biws" is "n,,": no channel binding.
        let without_proof = format!("c=biws,r={nonce}");
        let signed = format!("{},{server},{without_proof}", self.bare());
        let signature = hmac::sign(&hmac::Key::new(mac, stored_key.as_ref()), signed.as_bytes());
        let proof: Vec<u8> = client_key.as_ref().iter().zip(signature.as_ref()).map(|(key, sign)| key ^ sign).collect();
        let server_key = hmac::sign(&salted, b"Server Key");
        Ok(Proof {
            message: format!("{without_proof},p={}", BASE64_STANDARD.encode(proof)),
            key: hmac::Key::new(mac, server_key.as_ref()),
            signed,
        })
    }
}

impl Proof {
    /// Whether the server's last message, `v=SIGNATURE`, shows that it knows the password as well.
    pub(super) fn is_answered_by(&self, server: &[u8]) -> bool {
        let signature = server.strip_prefix(b"v=").map(|text| text.split(|&byte| byte == b',').next().unwrap_or(text));
        let signature = signature.and_then(|text| BASE64_STANDARD.decode(text).ok());
        signature.is_some_and(|signature| hmac::verify(&self.key, self.signed.as_bytes(), &signature).is_ok())
    }
}

/// Reads a server's first and last message, for the fuzz target.
pub(super) fn read_answers(answer: &[u8]) {
    let credentials =
        Credentials { mechanism: Mechanism::ScramSha256, user: "user".to_owned(), password: "pencil".to_owned() };
    let scram = Scram::new(&credentials, "abc".to_owned());
    // The most iterations take long.
    if !answer.windows(7).any(|digits| digits.iter().all(u8::is_ascii_digit))
        && let Ok(proof) = scram.proof(answer)
    {
        assert!(!proof.is_answered_by(answer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials(mechanism: Mechanism, user: &str, password: &str) -> Credentials {
        Credentials { mechanism, user: user.to_owned(), password: password.to_owned() }
    }

    #[test]
    fn exchange_is_the_one_of_rfc_7677() {
        let credentials = credentials(Mechanism::ScramSha256, "user", "pencil");
        let scram = Scram::new(&credentials, "rOprNGfwEbeRWgbNEkqO".to_owned());
        assert_eq!(scram.first(), "n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
        let server = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
        let proof = scram.proof(server.as_bytes()).unwrap();
        assert_eq!(
            proof.message,
            "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
        );
        assert!(proof.is_answered_by(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="));
        assert!(!proof.is_answered_by(b"v=7rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="));
        assert!(!proof.is_answered_by(b"e=invalid-proof"));
    }

    #[test]
    fn server_that_cheats_gets_no_proof() {
        let credentials = credentials(Mechanism::ScramSha512, "a,b=c", "secret");
        let scram = Scram::new(&credentials, "abc".to_owned());
        assert_eq!(scram.first(), "n,,n=a=2Cb=3Dc,r=abc");
        for server in [
            "r=abd1,s=c2FsdA==,i=4096",
            "r=abc,s=c2FsdA==,i=4096",
            "r=abc1,s=!,i=4096",
            "r=abc1,s=c2FsdA==,i=1",
            "r=abc1,s=c2FsdA==,i=4000000000",
            "r=abc1,i=4096",
            "",
        ] {
            assert!(scram.proof(server.as_bytes()).is_err(), "{server}");
        }
        assert!(scram.proof(b"\xff").is_err());
        assert!(scram.proof(b"r=abc1,s=c2FsdA==,i=4096").is_ok());
        assert_eq!(plain(&credentials), b"\0a,b=c\0secret");
    }
}
