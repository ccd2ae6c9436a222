//! The streams on the servers: their names, what they must promise, and how they are created.
//!
//! | stream | subjects | contents |
//! |---|---|---|
//! | `SEKIWAKE_SYSLOG`, `_XFLOW`, `_SNMPTRAP` | `sekiwake.<kind>.<shard>` | records |
//! | `SEKIWAKE_STATE` | `sekiwake.state.>` | announcements, own destinations; the newest of each |
//! | `KV_SEKIWAKE_GROUPS` | `$KV.SEKIWAKE_GROUPS.>` | leases and positions |
//! | `SEKIWAKE_HANDOFF_<group>` | `sekiwake.handoff.<group>.>` | hand-off state |
//!
//! A service creates a stream that does not exist, where it may. It never changes one.

use std::{
    fmt::Write as _,
    time::{Duration, Instant},
};

use async_nats::jetstream::{
    ErrorCode,
    context::RequestErrorKind,
    response::Response,
    stream::{Config, DiscardPolicy, Info, RetentionPolicy, StorageType},
};
use sekiwake_record::{Kind, Name, Shard, Topic};
use serde_json::{Value, json};

use super::{connection::Nats, settings::JetStreamSettings};

/// The beginning of every subject.
const PREFIX: &str = "sekiwake";
/// The stream of announcements and own destinations.
pub(crate) const STATE_STREAM: &str = "SEKIWAKE_STATE";
/// The stream of the bucket of leases.
pub(crate) const GROUPS_STREAM: &str = "KV_SEKIWAKE_GROUPS";
/// The beginning of its subjects.
pub(crate) const GROUPS_PREFIX: &str = "$KV.SEKIWAKE_GROUPS.";
/// The beginning of the names of streams of hand-off state.
pub(crate) const HANDOFF_PREFIX: &str = "SEKIWAKE_HANDOFF_";
/// The largest message of a data stream, bytes: a batch is closed at 256 KiB, and a single record
/// may be larger than its share.
pub(crate) const MAX_MESSAGE_BYTES: usize = 512 << 10;
/// How long the servers recognise a message that is sent again.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(120);
/// What the state stream may take, bytes.
const MAX_STATE_BYTES: i64 = 64 << 20;
/// What the hand-off state of a group may take, bytes.
const MAX_HANDOFF_BYTES: i64 = 256 << 20;
/// How long the announcement of a stream that has ended is kept, at least.
const MIN_STATE_AGE: Duration = Duration::from_secs(7 * 86_400);
/// Header and subject beside the largest message, bytes.
const MESSAGE_OVERHEAD: usize = 4 << 10;

/// The oldest server that has what is needed (reading several keys in one request).
const OLDEST_SERVER: (i64, i64, i64) = (2, 11, 0);

/// Copies in a cluster of so many servers or more, if not set.
const DEFAULT_REPLICAS: usize = 3;
/// What the servers say if there are fewer in the cluster. Where there are enough, and one has no
/// room or is not wanted, more text follows.
const TOO_FEW_SERVERS: &str = "no suitable peers for placement";

/// A stream that cannot be used, as one sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotUsable {
    #[error("no NATS server of SEKIWAKE_BUS={servers} is connected{error}")]
    Disconnected { servers: String, error: String },
    #[error("the NATS server {server} of SEKIWAKE_BUS is {version}, expected 2.11 or newer")]
    TooOld { server: String, version: String },
    #[error(
        "the NATS server {server} of SEKIWAKE_BUS accepts messages of at most {max_payload} bytes, expected \
         max_payload of at least {}",
        MAX_MESSAGE_BYTES + MESSAGE_OVERHEAD
    )]
    SmallMessages { server: String, max_payload: usize },
    #[error("the NATS server {server} of SEKIWAKE_BUS has JetStream not enabled for this account ({error})")]
    NoJetStream { server: String, error: String },
    #[error("no NATS server of SEKIWAKE_BUS={servers} answers for the stream {stream}: no JetStream, or no leader yet")]
    NoLeader { servers: String, stream: String },
    #[error("the NATS server {server} of SEKIWAKE_BUS does not answer on {subject}")]
    Late { server: String, subject: String },
    #[error("the NATS server {server} of SEKIWAKE_BUS refuses {subject} ({error}); to create the stream: {command}")]
    Refused { server: String, subject: String, error: String, command: String },
    #[error("the stream {stream} cannot be used: {differences}; to change it: {command}")]
    Differs { stream: String, differences: String, command: String },
}

impl NotUsable {
    /// Whether waiting may help.
    pub(crate) fn is_passing(&self) -> bool {
        matches!(self, NotUsable::Disconnected { .. } | NotUsable::NoLeader { .. } | NotUsable::Late { .. })
    }
}

/// The stream of a kind.
pub(crate) fn data_stream(kind: Kind) -> &'static str {
    match kind {
        Kind::Syslog => "SEKIWAKE_SYSLOG",
        Kind::Xflow => "SEKIWAKE_XFLOW",
        Kind::SnmpTrap => "SEKIWAKE_SNMPTRAP",
    }
}

/// Whether this is the name of one of the bus's streams.
pub(crate) fn is_own_stream(name: &str) -> bool {
    let is_data = Kind::ALL.into_iter().any(|kind| data_stream(kind) == name);
    is_data || [STATE_STREAM, GROUPS_STREAM].contains(&name) || name.starts_with(HANDOFF_PREFIX)
}

/// The subject of a topic, such as `sekiwake.xflow.0a`.
pub(crate) fn data_subject(topic: Topic) -> String {
    let name = topic.as_str().replace('/', ".");
    format!("{PREFIX}.{name}")
}

/// The topic of a subject.
pub(crate) fn topic_of(subject: &str) -> Option<Topic> {
    let name = subject.strip_prefix(PREFIX)?.strip_prefix('.')?;
    Topic::parse(name.replacen('.', "/", 1).as_bytes())
}

/// The subjects of all topics whose names begin with one of `prefixes`, by kind: one subject for a
/// whole kind.
pub(crate) fn data_subjects(kind: Kind, prefixes: &[String]) -> Vec<String> {
    let selected = |topic: Topic| prefixes.iter().any(|prefix| topic.as_str().starts_with(prefix.as_str()));
    let topics = Shard::all().map(|shard| Topic { kind, shard });
    let subjects: Vec<String> = topics.filter(|topic| selected(*topic)).map(data_subject).collect();
    if subjects.len() == sekiwake_record::SHARDS { vec![format!("{PREFIX}.{kind}.*")] } else { subjects }
}

/// A name as one token of a subject, and as a part of a stream's name: neither may have dots.
pub(crate) fn token(name: &Name) -> String {
    name.as_str().replace('.', "=")
}

/// The stream of a kind, as it is created.
pub(crate) fn data_config(kind: Kind, settings: &JetStreamSettings) -> Config {
    Config {
        name: data_stream(kind).to_owned(),
        description: Some(format!("Sekiwake: {kind} records")),
        subjects: vec![format!("{PREFIX}.{kind}.*")],
        max_bytes: i64::try_from(settings.max_bytes).unwrap_or(i64::MAX),
        max_age: settings.max_age,
        max_message_size: MAX_MESSAGE_BYTES as i32,
        duplicate_window: DUPLICATE_WINDOW.min(settings.max_age),
        ..common()
    }
}

/// The state stream, as it is created.
pub(crate) fn state_config(settings: &JetStreamSettings) -> Config {
    Config {
        name: STATE_STREAM.to_owned(),
        description: Some("Sekiwake: announcements and own destinations".to_owned()),
        subjects: vec![format!("{PREFIX}.state.>")],
        max_messages_per_subject: 1,
        max_bytes: MAX_STATE_BYTES,
        max_age: settings.max_age.max(MIN_STATE_AGE),
        ..common()
    }
}

/// The bucket of leases, as it is created.
pub(crate) fn groups_config() -> Config {
    Config {
        name: GROUPS_STREAM.to_owned(),
        description: Some("Sekiwake: leases and positions".to_owned()),
        subjects: vec![format!("{GROUPS_PREFIX}>")],
        max_messages_per_subject: 1,
        // A full bucket must not forget a position.
        discard: DiscardPolicy::New,
        allow_rollup: true,
        deny_delete: true,
        ..common()
    }
}

/// The stream of a group's hand-off state.
pub(crate) fn handoff_stream(group: &Name) -> String {
    format!("{HANDOFF_PREFIX}{}", token(group))
}

/// The hand-off stream, as it is created. Its subjects are `sekiwake.handoff.<group>.>`, with the
/// group's name as [`token`].
pub(crate) fn handoff_config(group: &Name) -> Config {
    Config {
        name: handoff_stream(group),
        description: Some(format!("Sekiwake: hand-off state of {group}")),
        subjects: vec![format!("{PREFIX}.handoff.{}.>", token(group))],
        max_messages_per_subject: 1,
        max_bytes: MAX_HANDOFF_BYTES,
        ..common()
    }
}

fn common() -> Config {
    Config {
        retention: RetentionPolicy::Limits,
        discard: DiscardPolicy::Old,
        storage: StorageType::File,
        max_messages: -1,
        max_messages_per_subject: -1,
        max_bytes: -1,
        max_message_size: -1,
        max_consumers: -1,
        duplicate_window: DUPLICATE_WINDOW,
        allow_direct: true,
        ..Config::default()
    }
}

impl Nats {
    /// Checks the connection and the server.
    ///
    /// # Errors
    /// There is no connection, or the server is too old or accepts too small messages.
    pub(crate) fn check_server(&self) -> Result<(), NotUsable> {
        if !self.link.is_connected() {
            let error = self.link.recent_error(Duration::from_secs(10));
            let error = error.map(|error| format!(" ({error})")).unwrap_or_default();
            return Err(NotUsable::Disconnected { servers: self.settings.servers(), error });
        }
        let (major, minor, patch) = OLDEST_SERVER;
        if !self.client.is_server_compatible(major, minor, patch) {
            return Err(NotUsable::TooOld { server: self.server(), version: self.client.server_info().version });
        }
        let max_payload = self.client.max_payload();
        if max_payload < MAX_MESSAGE_BYTES + MESSAGE_OVERHEAD {
            return Err(NotUsable::SmallMessages { server: self.server(), max_payload });
        }
        Ok(())
    }

    /// The name of the connected server.
    pub(crate) fn server(&self) -> String {
        let info = self.client.server_info();
        if info.server_name.is_empty() { self.settings.servers() } else { info.server_name }
    }

    /// Checks that a stream exists and promises what `wanted` does, and creates it if it does not
    /// exist.
    ///
    /// # Errors
    /// See [`NotUsable`].
    pub(crate) async fn ensure(&self, wanted: &Config) -> Result<Info, NotUsable> {
        self.check_server()?;
        // Another service may create it at the same time.
        for _ in 0..3 {
            if let Some(info) = self.stream_info(&wanted.name).await? {
                return promises(&info.config, wanted).map(|()| info);
            }
            if let Some(info) = self.create_stream(wanted).await? {
                tracing::info!(stream = %wanted.name, replicas = info.config.num_replicas, "stream created");
                return Ok(info);
            }
        }
        Err(NotUsable::NoLeader { servers: self.settings.servers(), stream: wanted.name.clone() })
    }

    /// Checks that a stream promises what `wanted` does, if it exists.
    ///
    /// # Errors
    /// See [`NotUsable`].
    pub(crate) async fn examine(&self, wanted: &Config) -> Result<(), NotUsable> {
        self.check_server()?;
        self.stream_info(&wanted.name).await?.map_or(Ok(()), |info| promises(&info.config, wanted))
    }

    /// A stream's settings and state, or `None` if it does not exist.
    ///
    /// # Errors
    /// See [`NotUsable`].
    pub(crate) async fn stream_info(&self, stream: &str) -> Result<Option<Info>, NotUsable> {
        let subject = format!("STREAM.INFO.{stream}");
        match self.api(&subject, stream, &json!({})).await? {
            Response::Ok(info) => Ok(Some(info)),
            Response::Err { error } if error.error_code() == ErrorCode::STREAM_NOT_FOUND => Ok(None),
            Response::Err { error } => Err(self.rejected(&subject, stream, &error, String::new())),
        }
    }

    /// Creates a stream; `None` if another has done so meanwhile.
    async fn create_stream(&self, wanted: &Config) -> Result<Option<Info>, NotUsable> {
        let subject = format!("STREAM.CREATE.{}", wanted.name);
        let mut config = wanted.clone();
        config.num_replicas = self.settings.replicas.unwrap_or(DEFAULT_REPLICAS);
        loop {
            let answer = self.api(&subject, &wanted.name, &json!(config)).await;
            let answer = answer.map_err(|error| match error {
                NotUsable::Refused { server, subject, error, .. } => {
                    NotUsable::Refused { server, subject, error, command: add_command(&config) }
                }
                other => other,
            });
            return match answer? {
                Response::Ok(info) => Ok(Some(info)),
                Response::Err { error } if error.error_code() == ErrorCode::STREAM_NAME_EXIST => Ok(None),
                Response::Err { error }
                    if self.settings.replicas.is_none() && config.num_replicas > 1 && has_too_few_servers(&error) =>
                {
                    config.num_replicas = 1;
                    continue;
                }
                Response::Err { error } => Err(self.rejected(&subject, &wanted.name, &error, add_command(&config))),
            };
        }
    }

    /// A request to the API of JetStream.
    async fn api(&self, subject: &str, stream: &str, request: &Value) -> Result<Response<Info>, NotUsable> {
        let since = Instant::now();
        self.jetstream.request(subject.to_owned(), request).await.map_err(|error| {
            let subject = format!("$JS.API.{subject}");
            let server = self.server();
            if error.kind() == RequestErrorKind::NoResponders {
                return NotUsable::NoLeader { servers: self.settings.servers(), stream: stream.to_owned() };
            }
            match self.link.refusal(&subject, since) {
                Some(error) => NotUsable::Refused { server, subject, error, command: String::new() },
                None => NotUsable::Late { server, subject },
            }
        })
    }

    fn rejected(
        &self,
        subject: &str,
        stream: &str,
        error: &async_nats::jetstream::Error,
        command: String,
    ) -> NotUsable {
        let disabled = [ErrorCode::JETSTREAM_NOT_ENABLED, ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT];
        match error.error_code() {
            code if disabled.contains(&code) => {
                NotUsable::NoJetStream { server: self.server(), error: error.to_string() }
            }
            _ if error.code() >= 500 => {
                NotUsable::NoLeader { servers: self.settings.servers(), stream: stream.to_owned() }
            }
            _ => NotUsable::Refused {
                server: self.server(),
                subject: format!("$JS.API.{subject}"),
                error: error.to_string(),
                command,
            },
        }
    }
}

/// Whether a stream was rejected because a single server, or a cluster of fewer than
/// [`DEFAULT_REPLICAS`], cannot keep so many copies. A server that is down is not missed: the
/// cluster knows it, and one that has never been complete has no leader.
fn has_too_few_servers(error: &async_nats::jetstream::Error) -> bool {
    let is_single = error.error_code() == ErrorCode::STREAM_REPLICAS_NOT_SUPPORTED;
    // Its text is followed by codes in parentheses.
    let is_bare = |text: &str| text.strip_prefix(TOO_FEW_SERVERS).is_some_and(|rest| rest.starts_with(" ("));
    is_single || error.error_code() == ErrorCode::CLUSTER_NO_PEERS && is_bare(&error.to_string())
}

/// Checks that an existing stream promises what `wanted` does.
fn promises(has: &Config, wanted: &Config) -> Result<(), NotUsable> {
    let differences = differences(has, wanted);
    if differences.is_empty() {
        return Ok(());
    }
    let (stream, differences) = (wanted.name.clone(), differences.join(", "));
    Err(NotUsable::Differs { command: change_command(wanted), stream, differences })
}

/// What an existing stream does not promise, in words.
fn differences(has: &Config, wanted: &Config) -> Vec<String> {
    let mut found = Vec::new();
    let mut differ = |is_wrong: bool, text: String| {
        if is_wrong {
            found.push(text);
        }
    };
    differ(
        has.retention != RetentionPolicy::Limits,
        "its retention is not limits, so that a reader removes records".to_owned(),
    );
    differ(
        has.discard != wanted.discard,
        match wanted.discard {
            DiscardPolicy::Old => "it discards new messages when it is full, expected old ones".to_owned(),
            DiscardPolicy::New => "it discards old messages when it is full, expected new ones".to_owned(),
        },
    );
    differ(has.sealed, "it is sealed".to_owned());
    differ(has.no_ack, "it does not acknowledge messages".to_owned());
    let size = |bytes: i32| if bytes <= 0 { i64::MAX } else { i64::from(bytes) };
    differ(
        size(has.max_message_size) < size(wanted.max_message_size),
        format!(
            "its messages have at most {} bytes, expected {}",
            has.max_message_size,
            if wanted.max_message_size > 0 { wanted.max_message_size.to_string() } else { "no limit".to_owned() }
        ),
    );
    differ(
        has.duplicate_window < wanted.duplicate_window,
        format!(
            "its duplicate window is {}s, expected at least {}s",
            has.duplicate_window.as_secs(),
            wanted.duplicate_window.as_secs()
        ),
    );
    let per_subject = |messages: i64| messages.max(0);
    differ(
        per_subject(has.max_messages_per_subject) != per_subject(wanted.max_messages_per_subject),
        format!(
            "it keeps {} messages per subject, expected {}",
            has.max_messages_per_subject, wanted.max_messages_per_subject
        ),
    );
    differ(wanted.allow_direct && !has.allow_direct, "it does not allow direct reading".to_owned());
    for subject in wanted.subjects.iter().filter(|subject| !has.subjects.contains(subject)) {
        differ(has.mirror.is_none() && has.sources.is_none(), format!("it does not have the subject {subject}"));
    }
    found
}

/// The command with which an administrator creates a stream.
fn add_command(config: &Config) -> String {
    format!("nats stream add {} {} --defaults", config.name, flags(config, true))
}

/// The command with which an administrator changes a stream.
fn change_command(config: &Config) -> String {
    format!("nats stream edit {} {} --force", config.name, flags(config, false))
}

fn flags(config: &Config, is_new: bool) -> String {
    let mut flags = format!("--subjects='{}'", config.subjects.join(","));
    if is_new {
        let _ = write!(flags, " --storage=file --retention=limits --replicas={}", config.num_replicas.max(1));
    }
    let discard = if config.discard == DiscardPolicy::New { "new" } else { "old" };
    let _ = write!(
        flags,
        " --discard={discard} --max-msgs=-1 --max-msgs-per-subject={} --max-bytes={} --max-age={} \
         --max-msg-size={} --dupe-window={}s --allow-direct",
        config.max_messages_per_subject,
        config.max_bytes,
        if config.max_age.is_zero() { "-1".to_owned() } else { format!("{}s", config.max_age.as_secs()) },
        config.max_message_size,
        config.duplicate_window.as_secs()
    );
    if config.allow_rollup {
        flags.push_str(" --allow-rollup");
    }
    if config.deny_delete {
        flags.push_str(" --deny-delete");
    }
    flags
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind_config() -> Config {
        Config {
            name: "SEKIWAKE_SYSLOG".to_owned(),
            subjects: vec!["sekiwake.syslog.*".to_owned()],
            max_message_size: MAX_MESSAGE_BYTES as i32,
            ..common()
        }
    }

    #[test]
    fn subject_of_a_topic_is_parsed_back() {
        for topic in Topic::all() {
            assert_eq!(topic_of(&data_subject(topic)), Some(topic));
        }
        for wrong in
            ["sekiwake.syslog", "sekiwake.syslog.40", "sekiwake.syslog.0a.b", "sekiwake/syslog.0a", "x.syslog.0a"]
        {
            assert_eq!(topic_of(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn whole_kind_is_one_subject() {
        let subjects = |prefix: &str| data_subjects(Kind::Xflow, &[prefix.to_owned()]);
        assert_eq!(subjects(""), ["sekiwake.xflow.*"]);
        assert_eq!(subjects("xflow/0a"), ["sekiwake.xflow.0a"]);
        assert_eq!(subjects("xflow/0").len(), 16);
        assert!(subjects("syslog").is_empty());
    }

    #[test]
    fn broken_promises_of_a_stream_are_named() {
        let wanted = kind_config();
        assert!(differences(&wanted, &wanted).is_empty());
        let generous = Config { max_message_size: -1, max_bytes: 5, ..wanted.clone() };
        assert!(differences(&generous, &wanted).is_empty(), "limits are the site's");
        let broken = Config {
            retention: RetentionPolicy::WorkQueue,
            discard: DiscardPolicy::New,
            max_message_size: 1000,
            duplicate_window: Duration::from_secs(1),
            max_messages_per_subject: 1,
            no_ack: true,
            allow_direct: false,
            subjects: vec!["sekiwake.syslog.00".to_owned()],
            ..wanted.clone()
        };
        assert_eq!(differences(&broken, &wanted).len(), 8);
    }

    #[test]
    fn fewer_copies_are_kept_only_where_servers_are_too_few() {
        let error = |code: u64, description: &str| {
            let json = json!({ "code": 400, "err_code": code, "description": description });
            serde_json::from_value::<async_nats::jetstream::Error>(json).unwrap()
        };
        assert!(has_too_few_servers(&error(10074, "replicas > 1 not supported in non-clustered mode")));
        assert!(has_too_few_servers(&error(10005, TOO_FEW_SERVERS)));
        assert!(!has_too_few_servers(&error(10005, "no suitable peers for placement, insufficient storage")));
        assert!(!has_too_few_servers(&error(10047, "insufficient storage resources available")));
    }

    #[test]
    fn command_has_every_setting_that_matters() {
        let command = add_command(&Config { num_replicas: 3, ..kind_config() });
        assert_eq!(
            command,
            "nats stream add SEKIWAKE_SYSLOG --subjects='sekiwake.syslog.*' --storage=file --retention=limits \
             --replicas=3 --discard=old --max-msgs=-1 --max-msgs-per-subject=-1 --max-bytes=-1 --max-age=-1 \
             --max-msg-size=524288 --dupe-window=120s --allow-direct --defaults"
        );
    }
}
