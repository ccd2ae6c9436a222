//! The sources that fill a publisher's memory, counted from the retained batches when `/status` is
//! requested, so that it costs nothing otherwise.

use std::{collections::HashMap, net::IpAddr};

use sekiwake_group::Retained;
use sekiwake_record::{Batch, Topic};
use serde_json::{Value, json};

use super::shared::{Body, StreamShared};

/// Maximum number of records examined, the newest of each topic first.
const MAX_RECORDS: u64 = 500_000;
/// How many sources are listed.
const TOP: usize = 20;

/// A source's part of the memory.
#[derive(Clone, Copy, Default)]
struct Share {
    records: u64,
    payload_bytes: u64,
}

/// The sources with the most retained records.
pub(crate) fn top_sources(shared: &StreamShared) -> Value {
    let mut shares: HashMap<IpAddr, Share> = HashMap::new();
    let mut examined = 0;
    for topic in Topic::all() {
        let mut left = MAX_RECORDS / Topic::COUNT as u64;
        // The lock is held only while the pointers are copied.
        let retention = shared.retention();
        let wanted = retention.batches(topic).take_while(|batch| {
            let wanted = left > 0;
            left = left.saturating_sub(u64::from(batch.count));
            wanted
        });
        let batches: Vec<Retained<Body>> = wanted.cloned().collect();
        drop(retention);
        for batch in batches {
            examined += count(&batch, &mut shares);
        }
    }
    let sources = shares.len();
    let mut top: Vec<(IpAddr, Share)> = shares.into_iter().collect();
    top.sort_unstable_by_key(|(source, share)| (std::cmp::Reverse(share.records), *source));
    let listed = top.into_iter().take(TOP).map(|(source, Share { records, payload_bytes })| {
        json!({ "source": source.to_string(), "records": records, "payload_bytes": payload_bytes })
    });
    json!({ "examined_records": examined, "sources": sources, "top": listed.collect::<Vec<_>>() })
}

fn count(batch: &Retained<Body>, shares: &mut HashMap<IpAddr, Share>) -> u64 {
    let Ok(decoded) = Batch::decode(&*batch.body, batch.count) else { return 0 };
    for record in decoded.records() {
        let share = shares.entry(record.source).or_default();
        share.records += 1;
        share.payload_bytes += record.payload.len() as u64;
    }
    decoded.len() as u64
}
