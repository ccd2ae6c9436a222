//! Keys of a stream that keeps one message per subject: read in one request, written only if nobody
//! has written them meanwhile.

use std::time::{Duration, Instant};

use async_nats::{HeaderMap, StatusCode, client::Request, jetstream::ErrorCode};
use futures_util::StreamExt;
use serde_json::{Value, json};

use super::connection::{Nats, REQUEST_WITHIN};

/// The most values that one request returns (`JSMaxDirectGetBatch` of the server).
const MAX_VALUES: usize = 1024;
/// The most bytes of values that one request returns.
const MAX_BYTES: usize = 64 << 20;

/// The newest value of a subject.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    /// The subject.
    pub(crate) subject: String,
    /// The sequence number in the stream: the revision of the key.
    pub(crate) sequence: u64,
    /// The value.
    pub(crate) value: Vec<u8>,
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Put {
    /// It is stored with this sequence number, the key's new revision.
    Stored(u64),
    /// It is not stored: the key has another revision.
    Conflict,
    /// It may be stored or not: there was no answer in time, or no leader. To be found out by
    /// reading the key.
    Unknown,
    /// It is not stored, and will not be: the server said why.
    Refused,
}

/// Why keys were not read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ReadFailed {
    /// No answer, or not all of it, within the time limit.
    #[error("no answer within {}s", REQUEST_WITHIN.as_secs())]
    Late,
    /// No server answers for the stream: it does not exist, or it has no leader.
    #[error("no server has the stream {0}, or it has no leader")]
    NoLeader(String),
    /// There are more values than one request may return.
    #[error("too many keys")]
    TooMany,
    /// The server rejected the request.
    #[error("{0}")]
    Refused(String),
}

impl Nats {
    /// The newest value of each subject of `stream` that matches one of `filters`, in one request
    /// to any server that has the stream. The values of a server that is behind may be old; those
    /// of one answer are of one moment.
    ///
    /// # Errors
    /// See [`ReadFailed`].
    pub(crate) async fn multi_last(&self, stream: &str, filters: &[String]) -> Result<Vec<Stored>, ReadFailed> {
        let started = Instant::now();
        let subject = format!("$JS.API.DIRECT.GET.{stream}");
        let late = |_| ReadFailed::Late;
        let inbox = self.client.new_inbox();
        let mut answers = self.client.subscribe(inbox.clone()).await.map_err(|_| ReadFailed::Late)?;
        let request = json!({ "multi_last": filters }).to_string();
        self.client.publish_with_reply(subject.clone(), inbox, request.into()).await.map_err(|_| ReadFailed::Late)?;
        let mut values = Vec::new();
        let mut bytes = 0;
        loop {
            let left = REQUEST_WITHIN.saturating_sub(started.elapsed());
            let Some(message) = tokio::time::timeout(left, answers.next()).await.map_err(late)? else {
                return Err(ReadFailed::Late);
            };
            match message.status.map(|status| status.as_u16()) {
                None | Some(200) => {}
                // The end of the answer.
                Some(204) => return Ok(values),
                // Nothing matches.
                Some(404) => return Ok(Vec::new()),
                Some(413) => return Err(ReadFailed::TooMany),
                Some(503) => return Err(ReadFailed::NoLeader(stream.to_owned())),
                Some(code) => {
                    let description = message.description.unwrap_or_default();
                    return Err(ReadFailed::Refused(format!("{code} {description}")));
                }
            }
            bytes += message.payload.len();
            if values.len() >= MAX_VALUES || bytes > MAX_BYTES {
                return Err(ReadFailed::TooMany);
            }
            let header = |name: &str| message.headers.as_ref().and_then(|headers| headers.get(name));
            let sequence = header("Nats-Sequence").and_then(|text| text.as_str().parse().ok());
            let (Some(subject), Some(sequence)) = (header("Nats-Subject"), sequence) else { continue };
            values.push(Stored { subject: subject.to_string(), sequence, value: message.payload.to_vec() });
        }
    }

    /// Writes a key if its revision is still `revision`; 0 for a key that does not exist.
    pub(crate) async fn put_if(&self, subject: &str, value: Vec<u8>, revision: u64) -> Put {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Expected-Last-Subject-Sequence", revision.to_string());
        self.put_with(subject, value, headers).await
    }

    /// Writes a key, whatever its revision is.
    pub(crate) async fn put(&self, subject: &str, value: Vec<u8>) -> Put {
        self.put_with(subject, value, HeaderMap::new()).await
    }

    async fn put_with(&self, subject: &str, value: Vec<u8>, headers: HeaderMap) -> Put {
        let request = Request::new().headers(headers).payload(value.into()).timeout(Some(REQUEST_WITHIN));
        match self.client.send_request(subject.to_owned(), request).await {
            Ok(answer) if answer.status == Some(StatusCode::NO_RESPONDERS) => Put::Unknown,
            Ok(answer) => outcome(&answer.payload),
            Err(_) => Put::Unknown,
        }
    }

    /// Publishes to a core subject or a stream without waiting for an answer. Lost while there is
    /// no connection.
    pub(crate) async fn send(&self, subject: &str, value: Vec<u8>) {
        if self.link.is_connected() {
            let sent = self.client.publish(subject.to_owned(), value.into());
            // The channel to the connection is full only if that is about to end.
            drop(tokio::time::timeout(Duration::from_secs(1), sent).await);
        }
    }
}

/// The answer to a publication: `{"stream": …, "seq": …}` or `{"error": …}`.
pub(crate) fn outcome(answer: &[u8]) -> Put {
    let Ok(answer) = serde_json::from_slice::<Value>(answer) else { return Put::Unknown };
    if let Some(error) = answer.get("error") {
        const CONFLICTS: [ErrorCode; 2] =
            [ErrorCode::STREAM_WRONG_LAST_SEQUENCE, ErrorCode::STREAM_WRONG_LAST_SEQUENCE_CONSTANT];
        let code: Option<ErrorCode> = error.get("err_code").and_then(|code| serde_json::from_value(code.clone()).ok());
        let status = error.get("code").and_then(Value::as_u64).unwrap_or(0);
        return match code {
            Some(code) if CONFLICTS.contains(&code) => Put::Conflict,
            // 503: no leader, no room for the moment, or a repeat that is being stored.
            _ if (400..500).contains(&status) => Put::Refused,
            _ => Put::Unknown,
        };
    }
    answer.get("seq").and_then(Value::as_u64).map_or(Put::Unknown, Put::Stored)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answer_of_a_write_is_stored_conflict_or_unknown() {
        for (answer, expected) in [
            (r#"{"stream":"KV_S","seq":7}"#, Put::Stored(7)),
            (
                r#"{"error":{"code":400,"err_code":10071,"description":"wrong last sequence: 6"},"stream":"S","seq":0}"#,
                Put::Conflict,
            ),
            (r#"{"error":{"code":400,"err_code":10164}}"#, Put::Conflict),
            (r#"{"error":{"code":503,"err_code":10008}}"#, Put::Unknown),
            (r#"{"error":{"code":400,"err_code":10054}}"#, Put::Refused),
            ("", Put::Unknown),
            ("[]", Put::Unknown),
            (r#"{"seq":-1}"#, Put::Unknown),
        ] {
            assert_eq!(outcome(answer.as_bytes()), expected, "{answer}");
        }
    }
}
