//! A connection to the servers, in the thread that uses it.

use std::{
    fs,
    future::Future,
    io,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime},
};

use async_nats::{
    Auth, AuthError, Client, ConnectOptions, Event, ServerError,
    jetstream::context::{Context, ContextBuilder},
};
use nkeys::KeyPair;
use sekiwake_runtime::Hangups;
use tokio::{
    runtime::{Builder, Handle, Runtime},
    sync::Notify,
    task::JoinHandle,
};
use tracing::{debug, info, warn};

use super::settings::{JetStreamSettings, NatsLogin};
use crate::BusError;

/// How often a connection is checked. Two unanswered pings end it.
const PING_EVERY: Duration = Duration::from_secs(1);
/// How long a server may take to accept a connection.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// How long a request may take.
pub(crate) const REQUEST_WITHIN: Duration = Duration::from_secs(2);
/// The longest pause between attempts to connect.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How often the files of secrets and certificates are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a refused permission counts: requests are repeated within this time.
const VIOLATION_FOR: Duration = Duration::from_secs(10);
/// How long what a connection says at its end may take.
const END_WITHIN: Duration = Duration::from_millis(250);
/// Time without a connection after which it is logged.
const LOG_AFTER: Duration = Duration::from_secs(3);

/// A connection and the runtime that it lives in. Belongs to one thread; the client makes progress
/// only within [`Connection::block_on`], so that has to be called at least once per second or so.
pub(crate) struct Connection {
    nats: Nats,
    /// The task that says something at the end.
    last: Option<JoinHandle<()>>,
    // The client is dropped before its runtime.
    runtime: Runtime,
}

/// A client of the servers, for use within [`Connection::block_on`]. Clones share the connection.
#[derive(Clone)]
pub(crate) struct Nats {
    pub(crate) client: Client,
    pub(crate) jetstream: Context,
    pub(crate) settings: Arc<JetStreamSettings>,
    pub(crate) link: Arc<Link>,
}

/// The state of a connection, as its events tell it.
#[derive(Debug, Default)]
pub(crate) struct Link {
    is_connected: AtomicBool,
    connects: AtomicU64,
    /// The newest error of the server, such as a refused permission.
    error: Mutex<Option<Said>>,
    changed: Notify,
    ending: Notify,
}

/// An error, and when it was received.
#[derive(Clone, Debug)]
struct Said {
    text: String,
    at: Instant,
}

impl Connection {
    /// Begins to connect; the servers may be started later. `role` is the name of the connection at
    /// the server, `sekiwake-<role>`, and its inbox is `_INBOX_sekiwake_<role>`: permissions name
    /// it. `role` consists of lower-case letters. Each of `hangups` makes it connect
    /// again, with the secrets and certificates that the files have then.
    ///
    /// # Errors
    /// No descriptor or thread is left, or the files of the certificates cannot be used.
    pub(crate) fn open(
        settings: &Arc<JetStreamSettings>,
        hangups: &Hangups,
        role: &str,
    ) -> Result<Connection, BusError> {
        let runtime = Builder::new_current_thread().enable_all().build().map_err(BusError::Thread)?;
        let link = Arc::new(Link::default());
        let options = options(settings, role, &link);
        let failed = |source| BusError::Connect { endpoint: settings.servers(), source: Box::new(source) };
        let client = runtime.block_on(options.connect(settings.access.urls.as_slice())).map_err(failed)?;
        // It begins a task.
        let entered = runtime.enter();
        let jetstream = ContextBuilder::new().timeout(REQUEST_WITHIN).build(client.clone());
        let nats = Nats { client, jetstream, settings: Arc::clone(settings), link };
        runtime.spawn(follow_files(nats.clone(), hangups.clone()));
        runtime.spawn(say_outages(nats.clone()));
        drop(entered);
        Ok(Connection { nats, last: None, runtime })
    }

    /// The client. It makes progress only within [`Connection::block_on`].
    pub(crate) fn nats(&self) -> &Nats {
        &self.nats
    }

    /// Runs a future to its end, and the connection meanwhile.
    pub(crate) fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    /// Begins a task that makes progress within [`Connection::block_on`], and ends with the
    /// connection.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        drop(self.runtime.spawn(task));
    }

    /// As [`Connection::spawn`], but the task has a moment left when [`Link::ending`] returns.
    pub(crate) fn spawn_to_the_end(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.last = Some(self.runtime.spawn(task));
    }

    /// For what begins tasks as [`Connection::spawn`] does.
    pub(crate) fn runtime(&self) -> Handle {
        self.runtime.handle().clone()
    }

    /// A permission that a server has refused within the last seconds, as one sentence.
    pub(crate) fn violation(&self) -> Option<String> {
        let error = self.nats.link.recent_violation(VIOLATION_FOR)?;
        Some(format!("the NATS server {} of SEKIWAKE_BUS rejects a request ({error})", self.nats.server()))
    }

    /// Whether the newest event was a connection.
    pub(crate) fn is_connected(&self) -> bool {
        self.nats.link.is_connected()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(last) = self.last.take()
            && self.is_connected()
            && !std::thread::panicking()
        {
            self.nats.link.ending.notify_one();
            drop(self.runtime.block_on(async { tokio::time::timeout(END_WITHIN, last).await }));
        }
    }
}

impl Link {
    /// Waits for the end of the connection.
    pub(crate) async fn ending(&self) {
        self.ending.notified().await;
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.is_connected.load(Relaxed)
    }

    /// How often a connection has been established. What was sent before the newest one may have
    /// been lost.
    pub(crate) fn connects(&self) -> u64 {
        self.connects.load(Relaxed)
    }

    /// Waits for the next connection, disconnection or error.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// An error of the server that was received since `since` and names this subject: a refused
    /// permission is told in this way, not as the answer to a request.
    pub(crate) fn refusal(&self, subject: &str, since: Instant) -> Option<String> {
        let error = self.error.lock().unwrap_or_else(PoisonError::into_inner);
        let said = error.as_ref()?;
        (said.at >= since && said.text.contains(subject)).then(|| said.text.clone())
    }

    /// The newest refused permission, if it is not older than `age`.
    pub(crate) fn recent_violation(&self, age: Duration) -> Option<String> {
        self.recent_error(age).filter(|text| text.to_lowercase().contains("permissions violation"))
    }

    /// The newest error of the server, if it is not older than `age`.
    pub(crate) fn recent_error(&self, age: Duration) -> Option<String> {
        let error = self.error.lock().unwrap_or_else(PoisonError::into_inner);
        error.as_ref().filter(|said| said.at.elapsed() <= age).map(|said| said.text.clone())
    }

    fn on_event(&self, event: &Event) {
        match event {
            Event::Connected => {
                self.connects.fetch_add(1, Relaxed);
                self.is_connected.store(true, Relaxed);
            }
            Event::Disconnected | Event::Closed => self.is_connected.store(false, Relaxed),
            Event::ServerError(ServerError::Other(text)) => self.say(text.clone()),
            Event::ServerError(error) => self.say(error.to_string()),
            Event::ClientError(error) => self.say(error.to_string()),
            Event::LameDuckMode | Event::Draining | Event::SlowConsumer(_) => {}
        }
        self.changed.notify_waiters();
    }

    fn say(&self, text: String) {
        debug!(error = %text, "error of a NATS server");
        *self.error.lock().unwrap_or_else(PoisonError::into_inner) = Some(Said { text, at: Instant::now() });
    }
}

fn options(settings: &Arc<JetStreamSettings>, role: &str, link: &Arc<Link>) -> ConnectOptions {
    let link = Arc::clone(link);
    let login = Arc::clone(settings);
    let access = &settings.access;
    let mut options = match access.login {
        NatsLogin::None => ConnectOptions::new(),
        _ => ConnectOptions::with_auth_callback(move |nonce| {
            let signed = authenticate(&login.access.login, &nonce);
            async move { signed }
        }),
    };
    if let Some(file) = &access.ca_file {
        options = options.add_root_certificates(file.clone());
    }
    if let Some(identity) = &access.identity {
        options = options.add_client_certificate(identity.cert_file.clone(), identity.key_file.clone());
    }
    options
        // Not even to servers that a server names: their URLs have no scheme.
        .require_tls(access.is_tls)
        .name(format!("sekiwake-{role}"))
        .custom_inbox_prefix(format!("_INBOX_sekiwake_{role}"))
        .ping_interval(PING_EVERY)
        .connection_timeout(CONNECT_WITHIN)
        .request_timeout(Some(REQUEST_WITHIN))
        .retry_on_initial_connect()
        .reconnect_delay_callback(|attempts| {
            let pause = Duration::from_millis(10 << attempts.min(8));
            if attempts <= 1 { Duration::ZERO } else { pause.min(LONGEST_PAUSE) }
        })
        .event_callback(move |event| {
            link.on_event(&event);
            async {}
        })
}

/// What the server is told: read for each connection, because secrets change.
fn authenticate(login: &NatsLogin, nonce: &[u8]) -> Result<Auth, AuthError> {
    let mut auth = Auth::new();
    match login {
        NatsLogin::None => {}
        NatsLogin::Password { user, file } => {
            auth.username = Some(user.clone());
            auth.password = Some(read(file)?);
        }
        NatsLogin::Nkey(file) => {
            let key = key_pair(&read(file)?, file)?;
            auth.nkey = Some(key.public_key());
            auth.signature = Some(sign(&key, nonce)?);
        }
        NatsLogin::Credentials(file) => {
            let text = read(file)?;
            let jwt = between(&text, "NATS USER JWT").ok_or_else(|| without(file, "JWT"))?;
            let seed = between(&text, "USER NKEY SEED").ok_or_else(|| without(file, "seed"))?;
            auth.signature = Some(sign(&key_pair(seed, file)?, nonce)?);
            auth.jwt = Some(jwt.to_owned());
        }
    }
    Ok(auth)
}

/// Reads the secrets of a login once.
///
/// # Errors
/// A file cannot be used.
pub(crate) fn check_login(login: &NatsLogin) -> Result<(), String> {
    authenticate(login, b"").map(drop).map_err(|error| error.to_string())
}

fn read(file: &Path) -> Result<String, AuthError> {
    let text = fs::read_to_string(file).map_err(|error| AuthError::new(format!("{}: {error}", file.display())))?;
    Ok(text.trim().to_owned())
}

fn key_pair(seed: &str, file: &Path) -> Result<KeyPair, AuthError> {
    KeyPair::from_seed(seed).map_err(|error| AuthError::new(format!("{}: {error}", file.display())))
}

fn sign(key: &KeyPair, nonce: &[u8]) -> Result<Vec<u8>, AuthError> {
    key.sign(nonce).map_err(AuthError::new)
}

fn without(file: &Path, what: &str) -> AuthError {
    AuthError::new(format!("{}: no {what} found", file.display()))
}

/// The line between `-----BEGIN <what>-----` and the next line of hyphens.
fn between<'a>(text: &'a str, what: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("-----BEGIN {what}-----"))?;
    rest.lines().map(str::trim).find(|line| !line.is_empty()).filter(|line| !line.starts_with("---"))
}

/// Connects again when a file of a secret or certificate has changed, or the process was asked to
/// reload.
async fn follow_files(nats: Nats, hangups: Hangups) {
    let changed_at = |path: &Path| -> io::Result<SystemTime> { fs::metadata(path)?.modified() };
    let look =
        || -> Vec<Option<SystemTime>> { nats.settings.access.files().map(|path| changed_at(path).ok()).collect() };
    let mut known = look();
    let mut asked = hangups.count();
    while !known.is_empty() {
        tokio::time::sleep(LOOK_EVERY).await;
        let found = look();
        let count = hangups.count();
        let has_changed = found != known && found.iter().all(Option::is_some);
        if !has_changed && count == asked {
            continue;
        }
        (known, asked) = (found, count);
        info!("secrets and certificates may have changed, reconnecting to the NATS servers");
        if nats.client.force_reconnect().await.is_err() {
            return;
        }
    }
}

/// Logs once per outage what is waited for.
async fn say_outages(nats: Nats) {
    loop {
        let since = Instant::now();
        while nats.link.is_connected() {
            nats.link.changed().await;
        }
        let lost_at = Instant::now().max(since);
        let mut is_said = false;
        while !nats.link.is_connected() {
            let left = LOG_AFTER.saturating_sub(lost_at.elapsed());
            if left.is_zero() && !is_said {
                is_said = true;
                let error = nats.link.recent_error(2 * LOG_AFTER).unwrap_or_default();
                warn!(servers = %nats.settings.servers(), %error, "no connection to a NATS server, waiting for one");
            }
            let pause = if is_said { LOOK_EVERY } else { left };
            drop(tokio::time::timeout(pause, nats.link.changed()).await);
        }
        if is_said {
            info!(seconds = lost_at.elapsed().as_secs(), "connected to a NATS server");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_file_has_a_token_and_a_seed() {
        let text = "-----BEGIN NATS USER JWT-----\neyJ0.e.x\n------END NATS USER JWT------\n\n\
                    *** IMPORTANT ***\n-----BEGIN USER NKEY SEED-----\r\nSUAX\r\n------END USER NKEY SEED------\n";
        assert_eq!(between(text, "NATS USER JWT"), Some("eyJ0.e.x"));
        assert_eq!(between(text, "USER NKEY SEED"), Some("SUAX"));
        assert_eq!(between("-----BEGIN USER NKEY SEED-----\n------END", "USER NKEY SEED"), None);
    }

    #[test]
    fn refusal_names_its_subject_and_is_recent() {
        let link = Link::default();
        let before = Instant::now();
        link.on_event(&Event::ServerError(ServerError::Other("Permissions Violation for \"a.b\"".to_owned())));
        assert!(link.refusal("\"a.b\"", before).is_some() && link.refusal("\"a.c\"", before).is_none());
        assert!(link.refusal("\"a.b\"", Instant::now() + Duration::from_secs(1)).is_none());
    }
}
