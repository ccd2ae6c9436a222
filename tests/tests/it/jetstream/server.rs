//! A real nats-server in a site's namespace.

use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
    time::Duration,
};

use sekiwake_testkit::{netns::Namespace, process::Process, wait::wait_for};
use sekiwake_tests::nats;
use serde_json::{Value, json};

use crate::support::*;

/// Its setting, for services in the same namespace.
pub(crate) const BUS: (&str, &str) = JETSTREAM;

/// The Python that has the client, installed by `tests/receivers/install`.
pub(crate) fn python() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/receivers/bin/python")
}

/// A server, its configuration and its disk.
pub(crate) struct NatsServer<'a> {
    server: nats::NatsServer<'a>,
    namespace: &'a Namespace,
    address: Ipv4Addr,
    folder: tempfile::TempDir,
}

impl<'a> NatsServer<'a> {
    /// Whether the server is installed; otherwise the test is skipped.
    pub(crate) fn is_installed() -> bool {
        nats::nats_or_skipped()
    }

    /// Starts a server on port 4222 of `namespace`. `more` is appended to its configuration.
    pub(crate) fn start(namespace: &'a Namespace, more: &str) -> NatsServer<'a> {
        NatsServer::start_at(namespace, Ipv4Addr::LOCALHOST, more)
    }

    /// The same at another address.
    pub(crate) fn start_at(namespace: &'a Namespace, address: Ipv4Addr, more: &str) -> NatsServer<'a> {
        let folder = tempfile::tempdir().unwrap();
        let configuration = configuration(address, &folder, more);
        let server = nats::NatsServer::start(namespace, folder.path(), &configuration).unwrap();
        NatsServer { server, namespace, address, folder }
    }

    /// Replaces what was appended to its configuration, and makes it read that.
    pub(crate) fn reload(&self, more: &str) {
        self.server.reload(&configuration(self.address, &self.folder, more)).unwrap();
    }

    /// Kills it as `kill -9` does.
    pub(crate) fn kill(&mut self) {
        self.server.kill().unwrap();
    }

    /// Starts it again on the same disk.
    pub(crate) fn start_again(&mut self) {
        self.server.start_again().unwrap();
    }

    /// Makes a request to the API of JetStream, which must succeed.
    pub(crate) fn request(&self, subject: &str) -> Value {
        self.request_as(subject, &json!({}), &|_| json!({}))
    }

    /// The same as a user, as [`nats::api_as`].
    pub(crate) fn request_as(&self, subject: &str, request: &Value, login: &dyn Fn(&str) -> Value) -> Value {
        let answer = nats::api_as(self.namespace, at(self.address, 4222), subject, request, login).unwrap();
        assert!(answer["error"].is_null(), "{subject}: {answer}");
        answer
    }
}

fn configuration(address: Ipv4Addr, folder: &tempfile::TempDir, more: &str) -> String {
    format!("{}{more}\n", nats_configuration(address, &folder.path().join("disk")))
}

/// A request to the API of JetStream of a server on loopback.
pub(crate) fn api(namespace: &Namespace, port: u16, subject: &str, request: &Value) -> Value {
    nats::api(namespace, at(Ipv4Addr::LOCALHOST, port), subject, request).unwrap()
}

/// Waits until all `count` lines have been printed.
pub(crate) fn wait_for_lines(tap: &Process, count: u64) {
    wait_for("all records at the tap", 2 * LONG, || tap.stdout().len() as u64 >= count).unwrap_or_else(|late| {
        panic!("{late}: {} of {count}: {}", tap.stdout().len(), tap.stderr().join("\n"));
    });
}

/// Waits until a tap has connected.
pub(crate) fn pause_until(what: &str, condition: impl FnMut() -> bool) {
    wait_for(what, LONG, condition).unwrap();
}

/// Longer than any test.
pub(crate) const SINCE: [&str; 2] = ["--since", "1h"];

/// How long a server stays away.
pub(crate) const AWAY: Duration = Duration::from_secs(3);
