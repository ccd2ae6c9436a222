//! Requests to the servers. Each is a future that ends with an answer.

use sekiwake_lease::{Birth, Position, Write};
use sekiwake_record::{Kind, Name, Shard, Topic};
use serde_json::json;

use super::{
    super::{
        connection::Nats,
        keys::{Put, ReadFailed, Stored},
        reader::{Reader, Start},
        state::AT,
        streams::{
            GROUPS_STREAM, NotUsable, STATE_STREAM, data_config, data_stream, data_subject, data_subjects,
            groups_config, handoff_config, state_config,
        },
    },
    announcements::StreamEnd,
    handoff::{self, Target},
};
use crate::HandoffEntry;

/// The end of a job.
pub(super) enum Answer {
    /// The streams exist, or one cannot be used.
    Prepared(Result<(), NotUsable>),
    /// All keys of the group.
    Read(Result<Vec<Stored>, ReadFailed>),
    /// The outcome of the write with this number.
    Written(u64, Put),
    /// Where the group begins.
    Begun(Result<Birth, String>),
    /// A reader for the member's shards.
    Opened(Result<Box<Opened>, String>),
    /// All announcements.
    Announced(Result<Vec<Stored>, ReadFailed>),
    /// The end of the stream, if it could be read.
    Ended(Option<StreamEnd>),
    /// The outcome of the hand-off entry with this number.
    HandoffPut(u64, Put),
    /// The hand-off state of these shards, or `None` if it could not be read.
    HandoffRead(Vec<Shard>, Option<Vec<HandoffEntry>>),
    /// Nobody waits for the outcome.
    Done,
}

/// A reader, and where it begins.
pub(super) struct Opened {
    pub(super) reader: Reader,
    /// When the stream was created, nanoseconds since 1970.
    pub(super) created: u64,
    /// The sequence number after which each shard is read.
    pub(super) starts: Vec<(Shard, u64)>,
    /// The lowest of them.
    pub(super) after: u64,
}

pub(super) async fn prepare(nats: Nats, kind: Kind, handoff: Option<Name>) -> Answer {
    let prepared = async {
        nats.ensure(&groups_config()).await?;
        nats.ensure(&state_config(&nats.settings)).await?;
        nats.ensure(&data_config(kind, &nats.settings)).await?;
        if let Some(group) = handoff {
            nats.ensure(&handoff_config(&group)).await?;
        }
        Ok(())
    };
    Answer::Prepared(prepared.await)
}

pub(super) fn read(nats: Nats, prefix: &str) -> impl Future<Output = Answer> + use<> {
    let filters = [format!("{prefix}a"), format!("{prefix}m.*")];
    async move { Answer::Read(nats.multi_last(GROUPS_STREAM, &filters).await) }
}

pub(super) async fn write(nats: Nats, subject: String, write: Write) -> Answer {
    let expected = write.expected.unwrap_or(0);
    let put = match write.value {
        Some(value) => nats.put_if(&subject, value, expected).await,
        None => delete(&nats, &subject, expected).await,
    };
    Answer::Written(write.id, put)
}

/// Deletes a revision of a key, and nothing newer.
async fn delete(nats: &Nats, subject: &str, revision: u64) -> Put {
    let request = json!({ "filter": subject, "seq": revision + 1 });
    let answer: Result<serde_json::Value, _> =
        nats.jetstream.request(format!("STREAM.PURGE.{GROUPS_STREAM}"), &request).await;
    match answer {
        Ok(answer) if answer.get("success").and_then(serde_json::Value::as_bool) == Some(true) => Put::Stored(revision),
        _ => Put::Unknown,
    }
}

/// Opens a reader for shards from these positions on.
pub(super) async fn open(nats: Nats, kind: Kind, positions: Vec<(Shard, Position)>) -> Answer {
    let opened = async {
        let info = nats.ensure(&data_config(kind, &nats.settings)).await.map_err(|error| error.to_string())?;
        let created = created_ns(&info);
        let last = info.state.last_sequence;
        let starts = positions.iter().map(|(shard, position)| (*shard, position.read_after(created, last)));
        let starts: Vec<(Shard, u64)> = starts.collect();
        let after = starts.iter().map(|(_, start)| *start).min().unwrap_or(0);
        let subjects = if starts.len() == sekiwake_record::SHARDS {
            data_subjects(kind, &[String::new()])
        } else {
            starts.iter().map(|(shard, _)| data_subject(Topic { kind, shard: *shard })).collect()
        };
        let start = Start::Sequence(after + 1);
        let reader = Reader::open(&nats, data_stream(kind), &subjects, start).await;
        let reader = reader.map_err(|error| error.to_string())?;
        Ok(Box::new(Opened { reader, created, starts, after }))
    };
    Answer::Opened(opened.await)
}

pub(super) async fn announcements(nats: Nats) -> Answer {
    Answer::Announced(nats.multi_last(STATE_STREAM, &[format!("{AT}>")]).await)
}

/// Reads the end of the stream.
pub(super) async fn end(nats: Nats, kind: Kind) -> Answer {
    let info = nats.stream_info(data_stream(kind)).await.ok().flatten();
    Answer::Ended(info.map(|info| StreamEnd { created: created_ns(&info), last_sequence: info.state.last_sequence }))
}

pub(super) async fn put(nats: Nats, subject: String, value: Vec<u8>) -> Answer {
    // It is repeated.
    let _ = nats.put(&subject, value).await;
    Answer::Done
}

pub(super) async fn put_handoff(nats: Nats, number: u64, subject: String, value: Vec<u8>) -> Answer {
    Answer::HandoffPut(number, nats.put(&subject, value).await)
}

pub(super) async fn read_handoff(nats: Nats, target: Target, shards: Vec<Shard>) -> Answer {
    let mut entries = Vec::new();
    for shard in &shards {
        match handoff::read(&nats, &target, *shard).await {
            Some(read) => entries.extend(read),
            None => return Answer::HandoffRead(shards, None),
        }
    }
    Answer::HandoffRead(shards, Some(entries))
}

pub(super) fn created_ns(info: &async_nats::jetstream::stream::Info) -> u64 {
    u64::try_from(info.created.unix_timestamp_nanos()).unwrap_or(0)
}
