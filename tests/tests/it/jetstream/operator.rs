//! Users with JWTs, as an operator of NATS issues them.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use nkeys::{KeyPair, KeyPairType};
use serde_json::{Value, json};

/// An operator, and one user of one account. The keys are those of tests only.
pub(crate) struct Operator {
    /// The part of a server's configuration.
    configuration: String,
    user: KeyPair,
    token: String,
}

impl Operator {
    pub(crate) fn new() -> Operator {
        let operator = key(KeyPairType::Operator, 1);
        let [system, account] = [2, 3].map(|byte| key(KeyPairType::Account, byte));
        let user = key(KeyPairType::User, 4);
        let limits = json!({
            "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1,
            "leaf": -1, "mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1,
        });
        let operator_jwt = jwt(&operator, &operator, &json!({"type": "operator", "version": 2}));
        let without_storage = json!({"type": "account", "version": 2, "limits": {"subs": -1, "conn": -1}});
        let system_jwt = jwt(&operator, &system, &without_storage);
        let account_jwt = jwt(&operator, &account, &json!({"type": "account", "version": 2, "limits": limits}));
        let claims = json!({"type": "user", "version": 2, "pub": {}, "sub": {}, "subs": -1, "data": -1, "payload": -1});
        let token = jwt(&account, &user, &claims);
        let [system, account] = [system, account].map(|key| key.public_key());
        let configuration = format!(
            "operator: {operator_jwt}\nsystem_account: {system}\nresolver: MEMORY\n\
             resolver_preload: {{ {system}: {system_jwt}, {account}: {account_jwt} }}"
        );
        Operator { configuration, user, token }
    }

    /// What a server's configuration has of it.
    pub(crate) fn configuration(&self) -> &str {
        &self.configuration
    }

    /// The credentials file of the user.
    pub(crate) fn credentials(&self) -> String {
        self.with_key(&self.user)
    }

    /// A credentials file that no server accepts: the token is not that of the key.
    pub(crate) fn wrong_credentials(&self) -> String {
        self.with_key(&key(KeyPairType::User, 5))
    }

    fn with_key(&self, key: &KeyPair) -> String {
        format!(
            "-----BEGIN NATS USER JWT-----\n{}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
            self.token,
            key.seed().unwrap()
        )
    }

    /// The fields of CONNECT for the user.
    pub(crate) fn login(&self, nonce: &str) -> Value {
        json!({"jwt": self.token, "sig": BASE64_URL_SAFE_NO_PAD.encode(self.user.sign(nonce.as_bytes()).unwrap())})
    }
}

fn key(kind: KeyPairType, byte: u8) -> KeyPair {
    KeyPair::new_from_raw(kind, [byte; 32]).unwrap()
}

/// A JWT of NATS about a key, in version 2 of the claims.
fn jwt(issuer: &KeyPair, subject: &KeyPair, about: &Value) -> String {
    let claims = json!({
        "jti": "1", "iat": 1_700_000_000, "iss": issuer.public_key(), "sub": subject.public_key(),
        "name": about["type"], "nats": about,
    });
    let encode = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    let text = format!("{}.{}", encode(&json!({"typ": "JWT", "alg": "ed25519-nkey"})), encode(&claims));
    let signature = BASE64_URL_SAFE_NO_PAD.encode(issuer.sign(text.as_bytes()).unwrap());
    format!("{text}.{signature}")
}
