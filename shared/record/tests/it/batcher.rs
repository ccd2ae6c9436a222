//! The batcher compared with a simple model.

use std::collections::HashMap;

use proptest::prelude::*;
use sekiwake_record::{Batch, Batcher, MAX_BATCH_BYTES, Outbound, Record, Topic};

use crate::record;

fn payloads(topic: Topic, batches: &[Outbound]) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    for Outbound { batch, .. } in batches.iter().filter(|outbound| outbound.topic == topic) {
        let decoded = Batch::decode(&batch.body[..], batch.count).unwrap();
        assert!(batch.body.len() <= MAX_BATCH_BYTES || batch.count == 1);
        found.extend(decoded.records().map(|record| record.payload.to_vec()));
    }
    found
}

/// A payload with its topic and number.
fn payload(topic: Topic, number: usize, size: usize) -> Vec<u8> {
    let mut payload = format!("{topic} {number} ").into_bytes();
    payload.resize(size.max(payload.len()), b'x');
    payload
}

proptest! {
    #[test]
    fn batcher_keeps_every_record_in_order_within_its_limits(
        steps in prop::collection::vec((0..4usize, prop_oneof![0..300usize, 0..20_000usize, Just(65_527)], 0..20u8), 0..300),
    ) {
        let topics = Topic::all().take(4).collect::<Vec<_>>();
        let mut batcher = Batcher::default();
        let mut pushed = HashMap::<Topic, Vec<Vec<u8>>>::new();
        let mut out = Vec::new();
        for (topic, size, action) in steps {
            let topic = topics[topic];
            let topic_payloads = pushed.entry(topic).or_default();
            let bytes = payload(topic, topic_payloads.len(), size);
            batcher.push(topic, &Record { payload: &bytes, ..record() });
            topic_payloads.push(bytes);
            prop_assert!(!batcher.is_empty());
            match action {
                0 => { out.extend(batcher.take_all()); prop_assert!(batcher.is_empty()); }
                1..4 => out.extend(batcher.take_full()),
                4 => batcher.recycle(vec![7; size]),
                _ => {}
            }
        }
        out.extend(batcher.take_all());
        prop_assert!(batcher.is_empty() && batcher.take_all().is_empty());
        for topic in topics {
            prop_assert_eq!(payloads(topic, &out), pushed.remove(&topic).unwrap_or_default());
        }
    }
}
