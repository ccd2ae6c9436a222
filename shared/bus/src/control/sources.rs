//! Which sources fill a publisher's memory: counted from what is retained, when somebody asks, so that it costs nothing otherwise.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use sekiwake_group::Retained;
use sekiwake_record::{Batch, Header, Topic};
use serde_json::{Value, json};

use crate::control::{Body, Common};

/// The most records that are looked at, the newest of each topic first.
const MAX_RECORDS: u64 = 500_000;
/// Sources that are told.
const TOP: usize = 20;

/// What one source has in the memory.
#[derive(Clone, Copy, Default)]
struct Share {
    records: u64,
    payload_bytes: u64,
}

/// The sources with the most records among those that are retained.
pub(crate) fn top_sources(common: &Arc<Common>) -> Value {
    let mut shares: HashMap<IpAddr, Share> = HashMap::new();
    let mut looked_at = 0;
    for topic in Topic::all() {
        let mut left = MAX_RECORDS / Topic::COUNT as u64;
        // The lock is held for the pointers only.
        let retention = common.retention();
        let wanted = retention.batches(topic).take_while(|batch| {
            let wanted = left > 0;
            left = left.saturating_sub(u64::from(batch.count));
            wanted
        });
        let batches: Vec<Retained<Body>> = wanted.cloned().collect();
        drop(retention);
        for batch in batches {
            looked_at += count(&batch, &mut shares);
        }
    }
    let sources = shares.len();
    let mut top: Vec<(IpAddr, Share)> = shares.into_iter().collect();
    top.sort_unstable_by_key(|(source, share)| (std::cmp::Reverse(share.records), *source));
    let told = top.into_iter().take(TOP).map(|(source, Share { records, payload_bytes })| {
        json!({ "source": source.to_string(), "records": records, "payload_bytes": payload_bytes })
    });
    json!({ "looked_at_records": looked_at, "sources": sources, "top": told.collect::<Vec<_>>() })
}

fn count(batch: &Retained<Body>, shares: &mut HashMap<IpAddr, Share>) -> u64 {
    let header = Header {
        stream_name: "own",
        stream_epoch: 0,
        first_sequence: batch.first_sequence,
        count: batch.count,
        first_captured_at_ns: batch.first_captured_at_ns,
        last_captured_at_ns: batch.last_captured_at_ns,
    };
    let Ok(decoded) = Batch::decode(&header, &*batch.body) else { return 0 };
    for record in decoded.records() {
        let share = shares.entry(record.source).or_default();
        share.records += 1;
        share.payload_bytes += record.payload.len() as u64;
    }
    decoded.len() as u64
}
