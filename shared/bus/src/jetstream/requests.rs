//! Requests of a client that is in no group: templates, from the hand-off state of a group of
//! flows.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use sekiwake_record::Kind;
use sekiwake_runtime::Hangups;
use serde_json::{Value, json};

use super::{
    connection::{Connection, Nats},
    handoff::decode_handoff,
    reader::{Reader, Start},
    settings::JetStreamSettings,
    streams::{GROUPS_PREFIX, GROUPS_STREAM, HANDOFF_PREFIX},
};
use crate::{BusError, HandoffEntry, KnownTemplates, Requests};

/// How long the servers may take to answer at first, and in all.
const ANSWERED_WITHIN: Duration = Duration::from_secs(4);
const READ_WITHIN: Duration = Duration::from_secs(30);
/// The most bytes of a group's state.
const MAX_BYTES: usize = 32 << 20;
/// A pause in which no further message is received is the end of what is stored: the last entries
/// may have been replaced meanwhile. Longer than the silence after which a reader is lost.
const QUIET: Duration = Duration::from_secs(3);
/// The most groups of a kind that are compared.
const MAX_GROUPS: usize = 64;
/// How often the stop is checked.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Requests of a client. Belongs to one thread.
pub(crate) struct JetStreamRequests {
    connection: Connection,
}

impl JetStreamRequests {
    /// # Errors
    /// No descriptor or thread is left, or files cannot be used.
    pub(crate) fn open(to: &Arc<JetStreamSettings>, hangups: &Hangups) -> Result<JetStreamRequests, BusError> {
        Ok(JetStreamRequests { connection: Connection::open(to, hangups, "requests")? })
    }
}

impl Requests for JetStreamRequests {
    fn templates(&mut self, kind: Kind, is_stopped: &dyn Fn() -> bool) -> Result<KnownTemplates, BusError> {
        let nats = self.connection.nats();
        Ok(self.connection.block_on(templates(nats, kind, is_stopped)))
    }
}

async fn templates(nats: &Nats, kind: Kind, is_stopped: &dyn Fn() -> bool) -> KnownTemplates {
    let started_at = Instant::now();
    let streams = loop {
        if is_stopped() {
            return KnownTemplates::Stopped;
        }
        let streams = handoff_streams(nats, kind).await;
        match streams {
            Some(streams) => break streams,
            None if started_at.elapsed() < ANSWERED_WITHIN => tokio::time::sleep(LOOK_EVERY).await,
            None if nats.link.is_connected() => return KnownTemplates::NoAnswer,
            None => return KnownTemplates::NoConnection,
        }
    };
    let Some(stream) = stream_of_group(nats, kind, streams).await else { return KnownTemplates::NoGroup };
    let Ok(mut reader) = Reader::open(nats, &stream, &[], Start::Oldest).await else { return KnownTemplates::NoAnswer };
    if !reader.has_messages() {
        return KnownTemplates::Entries(Vec::new());
    }
    let mut entries: Vec<HandoffEntry> = Vec::new();
    let mut bytes = 0;
    let mut quiet_since = Instant::now();
    loop {
        if is_stopped() {
            return KnownTemplates::Stopped;
        }
        match reader.next(LOOK_EVERY).await {
            Ok(Some(message)) => {
                quiet_since = Instant::now();
                bytes += message.payload.len();
                entries.extend(
                    decode_handoff(&message.subject, &message.payload)
                        .filter(|entry| !entry.value.as_bytes().is_empty()),
                );
                if bytes > MAX_BYTES {
                    return KnownTemplates::TooMany;
                }
                if message.pending == 0 {
                    return KnownTemplates::Entries(entries);
                }
            }
            Ok(None) if quiet_since.elapsed() >= QUIET => return KnownTemplates::Entries(entries),
            Ok(None) if started_at.elapsed() < READ_WITHIN => {}
            Ok(None) | Err(_) => return KnownTemplates::Late,
        }
    }
}

/// The streams with the state of groups of a kind; `None` if there was no answer.
async fn handoff_streams(nats: &Nats, kind: Kind) -> Option<Vec<String>> {
    let request = json!({ "subject": "sekiwake.handoff.>" });
    let answer: Value = nats.jetstream.request("STREAM.NAMES", &request).await.ok()?;
    let names = answer.get("streams").and_then(Value::as_array).cloned().unwrap_or_default();
    let prefix = handoff_prefix(kind);
    Some(names.iter().filter_map(Value::as_str).filter(|name| name.starts_with(&prefix)).map(str::to_owned).collect())
}

/// What the names of these streams begin with.
fn handoff_prefix(kind: Kind) -> String {
    let service = match kind {
        Kind::Syslog => "syslog-forwarder",
        Kind::Xflow => "xflow-forwarder",
        Kind::SnmpTrap => "trap-forwarder",
    };
    format!("{HANDOFF_PREFIX}{service}=")
}

/// The stream of the group with the most entries; groups with members come first, because the state
/// of a group that nobody is in any more becomes old.
async fn stream_of_group(nats: &Nats, kind: Kind, mut streams: Vec<String>) -> Option<String> {
    if streams.len() < 2 {
        return streams.pop();
    }
    let mut best = None;
    for stream in streams.into_iter().take(MAX_GROUPS) {
        let group = stream.trim_start_matches(HANDOFF_PREFIX);
        let members = format!("{GROUPS_PREFIX}{group}.{kind}.m.*");
        let has_members = nats.multi_last(GROUPS_STREAM, &[members]).await.is_ok_and(|members| !members.is_empty());
        let info: Option<Value> = nats.jetstream.request(format!("STREAM.INFO.{stream}"), &json!({})).await.ok();
        let entries = info.and_then(|info| info["state"]["messages"].as_u64()).unwrap_or(0);
        best = best.max(Some((has_members, entries, stream)));
    }
    best.map(|(_, _, stream)| stream)
}
