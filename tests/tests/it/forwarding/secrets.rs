//! The secrets of a NATS destination are read again on SIGHUP.
//!
//! ```text
//! file and server have the first secret ─▶ the file gets the second, SIGHUP: refused, spooled
//!                                       ─▶ the server accepts it, or the file is put right: delivered
//! ```

use std::{
    fs,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use nkeys::KeyPair;
use sekiwake_testkit::{process::Signal, wait::wait_for};
use sekiwake_tests::{MIRRORED, Service, collector};
use serde_json::{Value, json};

use crate::{
    jetstream::{operator::Operator, server::NatsServer},
    support::*,
};

/// A way to log in, and its change.
struct Change<'a> {
    /// The option, without the file.
    option: &'static str,
    secrets: [String; 2],
    /// What the server's configuration has first.
    configuration: String,
    /// What it has later, to accept the second secret. `None`: it never does.
    changed: Option<String>,
    /// How the administrator logs in, who creates the stream.
    admin: &'a dyn Fn(&str) -> Value,
}

/// A file of a secret.
struct SecretFile {
    path: PathBuf,
}

impl SecretFile {
    fn new(folder: &Path, secret: &str) -> SecretFile {
        let file = SecretFile { path: folder.join("secret") };
        SecretFile::write(&file.path, secret);
        file
    }

    fn write(path: &Path, secret: &str) {
        let mut options = fs::File::options();
        let file = options.write(true).create(true).truncate(true).mode(0o600).open(path).unwrap();
        std::io::Write::write_all(&mut &file, secret.as_bytes()).unwrap();
    }

    /// Replaces it by a file of the same age, so that only SIGHUP says that it has changed.
    fn replace(&self, secret: &str, forwarder: &Service<'_>) {
        let modified = fs::metadata(&self.path).unwrap().modified().unwrap();
        let new = self.path.with_extension("new");
        SecretFile::write(&new, secret);
        fs::File::options().append(true).open(&new).unwrap().set_modified(modified).unwrap();
        fs::rename(new, &self.path).unwrap();
        forwarder.process.signal(Signal::HUP).unwrap();
    }
}

fn are_read_again(change: &Change<'_>) {
    let Some(site) = site() else { return };
    if !NatsServer::is_installed() {
        return;
    }
    let server = NatsServer::start_at(&site.collectors, collector(3), &change.configuration);
    let stream = json!({"name": "LOGS", "subjects": ["logs"], "storage": "file"});
    server.request_as("STREAM.CREATE.LOGS", &stream, change.admin);
    let stored = || {
        let info = server.request_as("STREAM.INFO.LOGS", &json!({}), change.admin);
        info["state"]["messages"].as_u64().unwrap()
    };
    let folder = tempfile::tempdir().unwrap();
    let file = SecretFile::new(folder.path(), &change.secrets[0]);
    let (option, path) = (change.option, file.path.display());
    let destination = format!("nats://{}:4222/logs?value=raw&spool=16MiB&{option}{path}", collector(3));
    let spool = folder.path().display().to_string();
    let settings = [("SEKIWAKE_SYSLOG_DESTINATIONS", &*destination), ("SEKIWAKE_SPOOL_DIR", &spool)];
    let services = site.start(&SYSLOG_PATH, &settings);
    let forwarder = services.get(SYSLOG);
    let send = || site.send(&format!("--to {MIRRORED} --from 198.19.0.0/16 --sources 4 --rate 1000 --count 300"));
    let log = || forwarder.process.stderr().join("\n");

    let before = send();
    wait_for("the first records", LONG, || stored() == before).unwrap_or_else(|late| panic!("{late}: {}", log()));

    file.replace(&change.secrets[1], forwarder);
    wait_for("a new connection", LONG, || log().contains("reconnecting to the NATS servers"))
        .unwrap_or_else(|late| panic!("{late}: {}", log()));
    let sent = before + send();
    let status = || forwarder.page("/status").unwrap().to_lowercase();
    wait_for("a refusal", LONG, || status().contains("authorization violation"))
        .unwrap_or_else(|late| panic!("{late}: {}\n{}", status(), log()));
    let count = |metric: &str| forwarder.metrics().unwrap().count(metric, &[]);
    wait_for("records in the spool", LONG, || count("sekiwake_forward_spool_datagrams") == sent - before)
        .unwrap_or_else(|late| panic!("{late}: {}", log()));
    assert_eq!(stored(), before);

    match &change.changed {
        Some(configuration) => server.reload(configuration),
        None => file.replace(&change.secrets[0], forwarder),
    }
    wait_for("all records", LONG, || stored() >= sent && count("sekiwake_forward_spool_datagrams") == 0)
        .unwrap_or_else(|late| panic!("{late}: {}\n{}", status(), log()));
    assert_eq!((stored(), count("sekiwake_forward_dropped_datagrams_total")), (sent, 0));
    services.stop().unwrap();
}

/// Users in a server's configuration: the administrator, and this one.
fn users(user: &str) -> String {
    format!("authorization {{ users: [{{user: admin, password: admin}}, {user}] }}")
}

fn admin(_nonce: &str) -> Value {
    json!({"user": "admin", "pass": "admin"})
}

#[test]
fn password_of_a_nats_destination_is_read_again_on_sighup() {
    let with = |password: &str| users(&format!("{{user: writer, password: \"{password}\"}}"));
    are_read_again(&Change {
        option: "user=writer&password=",
        secrets: ["first\n", "second\n"].map(str::to_owned),
        configuration: with("first"),
        changed: Some(with("second")),
        admin: &admin,
    });
}

#[test]
fn nkey_of_a_nats_destination_is_read_again_on_sighup() {
    // Keys of this test only.
    let [first, second] = [6, 7].map(|byte| KeyPair::new_from_raw(nkeys::KeyPairType::User, [byte; 32]).unwrap());
    let with = |key: &KeyPair| users(&format!("{{nkey: {}}}", key.public_key()));
    are_read_again(&Change {
        option: "nkey=",
        secrets: [&first, &second].map(|key| key.seed().unwrap()),
        configuration: with(&first),
        changed: Some(with(&second)),
        admin: &admin,
    });
}

#[test]
fn credentials_of_a_nats_destination_are_read_again_on_sighup() {
    let operator = Operator::new();
    are_read_again(&Change {
        option: "creds=",
        secrets: [operator.credentials(), operator.wrong_credentials()],
        configuration: operator.configuration().to_owned(),
        changed: None,
        admin: &|nonce| operator.login(nonce),
    });
}
