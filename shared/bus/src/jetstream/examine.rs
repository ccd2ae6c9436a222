//! Looking at existing streams before a service is started, for `--check`.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_nats::jetstream::stream::Config;
use sekiwake_record::Kind;
use sekiwake_runtime::{Finding, Hangups};

use super::{
    connection::{Connection, Nats},
    settings::JetStreamSettings,
    streams::{data_config, groups_config, handoff_config, state_config},
};
use crate::GroupSettings;

/// How long the servers may take to accept a connection.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);

/// Whether existing streams promise what a capture needs.
pub(crate) fn examine_publisher(servers: &Arc<JetStreamSettings>) -> Vec<Finding> {
    let data = Kind::ALL.into_iter().map(|kind| data_config(kind, servers));
    examine(servers, "publisher", std::iter::once(state_config(servers)).chain(data))
}

/// Whether existing streams promise what a member of a group needs.
pub(crate) fn examine_group(servers: &Arc<JetStreamSettings>, settings: &GroupSettings) -> Vec<Finding> {
    let handoff = settings.handoff.then(|| handoff_config(&settings.group));
    let needed = [groups_config(), state_config(servers), data_config(settings.kind, servers)];
    examine(servers, "group", needed.into_iter().chain(handoff))
}

fn examine(servers: &Arc<JetStreamSettings>, role: &str, streams: impl IntoIterator<Item = Config>) -> Vec<Finding> {
    let connection = match Connection::open(servers, &Hangups::default(), role) {
        Ok(connection) => connection,
        Err(error) => return vec![Finding::Wrong(error.to_string())],
    };
    let nats = connection.nats();
    connection.block_on(async {
        wait_for_connection(nats).await;
        let mut findings = Vec::new();
        for wanted in streams {
            match nats.examine(&wanted).await {
                Ok(()) => {}
                Err(error) if error.is_passing() => {
                    findings.push(Finding::Unknown(error.to_string()));
                    break;
                }
                Err(error) => findings.push(Finding::Wrong(error.to_string())),
            }
        }
        findings
    })
}

async fn wait_for_connection(nats: &Nats) {
    let end = Instant::now() + CONNECT_WITHIN;
    while !nats.link.is_connected() {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        drop(tokio::time::timeout(left.min(Duration::from_millis(100)), nats.link.changed()).await);
    }
}
