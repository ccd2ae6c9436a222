//! Status over core NATS: sent only while somebody asks, never stored.
//!
//! ```text
//! sekiwake.status-wanted          once per second from each reader of status
//! sekiwake.status.<name>.<part>   a JSON object
//! ```

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use sekiwake_group::StatusIdentity;
use sekiwake_runtime::StatusFeed;
use sekiwake_sys::clock::wall_now_ns;
use serde_json::Value;

use super::connection::Nats;
use crate::{EVENT_PREFIX, status::texts};

/// The subject with which a reader asks for status.
pub(crate) const STATUS_WANTED: &str = "sekiwake.status-wanted";
/// The beginning of the subjects of status.
pub(crate) const STATUS: &str = "sekiwake.status.";
/// How long a request counts: it is repeated every second.
const WANTED_FOR: Duration = Duration::from_millis(3_500);
const SEND_EVERY: Duration = Duration::from_secs(1);
/// How often parts are asked for while they are being collected.
const COLLECT_EVERY: Duration = Duration::from_millis(50);
/// How often it is looked whether the next status is due, or the role stops.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// The same while nobody asks.
const UNWANTED: Duration = Duration::from_secs(3600);

/// The subject of a topic of status or of events: dots in names are replaced, because a token of a
/// subject has none, and slashes become dots.
pub(crate) fn subject_of(topic: &str) -> String {
    let tokens = topic.trim_end_matches('/').replace('.', "=").replace('/', ".");
    format!("sekiwake.{tokens}")
}

/// The topic of a subject.
pub(crate) fn topic_of(subject: &str) -> Option<String> {
    let tokens = subject.strip_prefix("sekiwake.")?;
    let topic = tokens.replace('.', "/").replace('=', ".");
    Some(if topic.starts_with(EVENT_PREFIX) { format!("{topic}/") } else { topic })
}

/// Sends a role's status while it is wanted, for as long as the connection lasts. A stop is said at
/// once.
pub(crate) async fn report_status(nats: Nats, identity: StatusIdentity, mut feed: StatusFeed) {
    let Ok(mut requests) = nats.client.subscribe(STATUS_WANTED).await else { return };
    let mut wanted_until: Option<Instant> = None;
    let mut send_at = Instant::now();
    let (mut is_stop_said, mut is_ending) = (false, false);
    while !is_ending {
        let is_wanted = wanted_until.is_some_and(|until| Instant::now() < until);
        let pause = match is_wanted {
            true if feed.is_asked() => COLLECT_EVERY,
            true => LOOK_EVERY,
            false => UNWANTED,
        };
        tokio::select! {
            request = requests.next() => {
                if request.is_none() {
                    return;
                }
                wanted_until = Some(Instant::now() + WANTED_FOR);
                if !is_wanted {
                    send_at = Instant::now();
                }
            }
            () = tokio::time::sleep(pause) => {}
            () = nats.link.ending() => is_ending = true,
        }
        if wanted_until.is_none_or(|until| Instant::now() >= until) {
            continue;
        }
        if !is_stop_said && feed.is_stopping() {
            is_stop_said = true;
            let mut process = feed.process();
            process["state"] = "stopping".into();
            send(&nats, &identity, vec![("process".to_owned(), process)]).await;
            drop(tokio::time::timeout(SEND_EVERY, nats.client.flush()).await);
        }
        let now = Instant::now();
        if now >= send_at && !feed.is_asked() {
            feed.ask(now);
            send_at = now + SEND_EVERY;
        }
        if let Some(parts) = feed.take(now) {
            send(&nats, &identity, parts).await;
        }
    }
}

async fn send(nats: &Nats, identity: &StatusIdentity, parts: Vec<(String, Value)>) {
    for (part, text) in texts(identity, wall_now_ns(), parts) {
        let subject = subject_of(&identity.topic(&part));
        if nats.link.is_connected() {
            let sent = nats.client.publish(subject, text.into());
            drop(tokio::time::timeout(SEND_EVERY, sent).await);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topic_is_found_in_its_subject() {
        for (topic, subject) in [
            ("anomaly/watch.1/", "sekiwake.anomaly.watch=1"),
            (
                "status/storer.default.a-b.00ff/group.streams.0",
                "sekiwake.status.storer=default=a-b=00ff.group=streams=0",
            ),
        ] {
            assert_eq!(subject_of(topic), subject);
            assert_eq!(topic_of(subject).as_deref(), Some(topic));
        }
        assert_eq!(topic_of("other"), None);
    }
}
