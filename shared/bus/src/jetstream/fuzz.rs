//! What others may have written to the subjects, for fuzzing.

use sekiwake_record::{Batch, Header};

use super::{
    handoff::decode_handoff,
    keys::outcome,
    state::{At, Own},
    status,
    streams::topic_of,
    subject,
};

/// Parses a message as everything that it may be.
///
/// # Panics
/// What was parsed is parsed differently when it is written again.
pub fn fuzz(subject: &str, payload: &[u8]) {
    if let Some(at) = At::decode(payload) {
        assert_eq!(At::decode(&at.encode()).as_ref(), Some(&at));
    }
    if let Some(own) = Own::decode(payload) {
        assert_eq!(Own::decode(&own.encode()).as_ref(), Some(&own));
    }
    drop(decode_handoff(subject, payload));
    outcome(payload);
    subject::read(payload);
    if let Some(topic) = status::topic_of(subject) {
        assert!(!topic.contains('='), "{topic}");
    }
    if let (Some(_), Some((header, body))) = (topic_of(subject), Header::split(payload))
        && let Ok(header) = Header::decode(header)
    {
        drop(Batch::decode(body, header.count));
    }
}
