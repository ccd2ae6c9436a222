//! Batcher and tracker against models that are too simple to be wrong.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;
use sekiwake_bus::{Batcher, Outbound, Tracker};
use sekiwake_record::{Announcement, Batch, Header, MAX_BATCH_BYTES, Topic, TopicPosition};

use crate::support::{payload, record, topics};

fn numbers(topic: Topic, batches: &[Outbound]) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    for (_, batch) in batches.iter().filter(|(of, _)| *of == topic) {
        let header = Header {
            stream_name: "s",
            stream_epoch: 1,
            first_sequence: 0,
            count: batch.count,
            first_captured_at_ns: batch.first_captured_at_ns,
            last_captured_at_ns: batch.last_captured_at_ns,
        };
        let decoded = Batch::decode(&header, &batch.body[..]).unwrap();
        assert!(batch.body.len() <= MAX_BATCH_BYTES || batch.count == 1);
        found.extend(decoded.records().map(|record| record.payload.to_vec()));
    }
    found
}

proptest! {
    #[test]
    fn a_batcher_loses_nothing_keeps_the_order_of_a_topic_and_its_limits(
        steps in prop::collection::vec((0..4usize, prop_oneof![0..300usize, 0..20_000usize, Just(65_527)], 0..20u8), 0..300),
    ) {
        let topics = topics(4);
        let mut batcher = Batcher::default();
        let (mut pushed, mut out) = (HashMap::<Topic, Vec<Vec<u8>>>::new(), Vec::new());
        for (topic, size, action) in steps {
            let topic = topics[topic];
            let of_topic = pushed.entry(topic).or_default();
            let bytes = payload(topic, of_topic.len() as u64, size);
            batcher.push(topic, &record(&bytes));
            of_topic.push(bytes);
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
            prop_assert_eq!(numbers(topic, &out), pushed.remove(&topic).unwrap_or_default());
        }
    }

    #[test]
    fn a_tracker_agrees_with_a_list_of_all_numbers_ever_seen(
        steps in prop::collection::vec((0..2u64, 0..2usize, 0..60u64, 1..15u32, 0..8u8), 0..80),
    ) {
        let topics = topics(2);
        let mut tracker = Tracker::default();
        let mut model = HashMap::<(u64, Topic), Model>::new();
        for (epoch, topic, at, count, action) in steps {
            let topic = topics[topic];
            if action == 0 {
                // An announcement of one topic; the other has had nothing.
                let ended = at % 7 == 0;
                let positions = vec![TopicPosition { topic, oldest_sequence: 0, next_sequence: at }];
                let announcement = Announcement { stream_name: "s".to_owned(), stream_epoch: epoch, ended, positions };
                let missing = tracker.announced(&announcement, |_| true);
                prop_assert_eq!(missing[topic.kind.index()], model.entry((epoch, topic)).or_default().until(at));
                for &other in &topics {
                    model.entry((epoch, other)).or_default().next.get_or_insert(0);
                }
                if ended {
                    model.retain(|(of, _), _| *of != epoch);
                }
            } else {
                let header = Header {
                    stream_name: "s", stream_epoch: epoch, first_sequence: at, count,
                    first_captured_at_ns: 0, last_captured_at_ns: 0,
                };
                let seen = tracker.observe(topic, &header);
                let (missing, repeated) = model.entry((epoch, topic)).or_default().batch(at, u64::from(count));
                prop_assert_eq!((seen.missing, u64::from(seen.repeated)), (missing, repeated));
            }
            let epochs: HashSet<u64> = model.keys().map(|(epoch, _)| *epoch).collect();
            prop_assert_eq!(tracker.streams(), epochs.len());
        }
    }

    #[test]
    fn a_tracker_bears_any_numbers(
        steps in prop::collection::vec((any::<u64>(), any::<u32>(), any::<bool>()), 0..20),
    ) {
        let topic = topics(1)[0];
        let mut tracker = Tracker::default();
        for (at, count, announced) in steps.into_iter().chain([(u64::MAX, 9, true), (u64::MAX, 9, false), (0, 9, true)]) {
            if announced {
                let positions = vec![TopicPosition { topic, oldest_sequence: 0, next_sequence: at }; 3];
                let stream_name = "s".to_owned();
                tracker.announced(&Announcement { stream_name, stream_epoch: 1, ended: false, positions }, |_| true);
            } else {
                let header = Header {
                    stream_name: "s", stream_epoch: 1, first_sequence: at, count, first_captured_at_ns: 0, last_captured_at_ns: 0,
                };
                prop_assert!(tracker.observe(topic, &header).repeated <= count);
            }
        }
    }
}

/// Walks over every number, one at a time.
#[derive(Default)]
struct Model {
    next: Option<u64>,
}

impl Model {
    fn until(&mut self, end: u64) -> u64 {
        let next = self.next.get_or_insert(end);
        let mut missing = 0;
        while *next < end {
            *next += 1;
            missing += 1;
        }
        missing
    }

    fn batch(&mut self, first: u64, count: u64) -> (u64, u64) {
        let missing = self.until(first);
        let mut repeated = 0;
        for sequence in first..first + count {
            if self.next > Some(sequence) { repeated += 1 } else { self.next = Some(sequence + 1) }
        }
        (missing, repeated)
    }
}

#[test]
fn a_tracker_forgets_the_stream_it_has_not_heard_of_for_longest_and_says_so() {
    let mut tracker = Tracker::default();
    let topic = topics(1)[0];
    let mut observe = |epoch: u64, first_sequence: u64| {
        let header = Header {
            stream_name: "s",
            stream_epoch: epoch,
            first_sequence,
            count: 1,
            first_captured_at_ns: 0,
            last_captured_at_ns: 0,
        };
        let missing = tracker.observe(topic, &header).missing;
        (missing, tracker.streams(), tracker.forgotten())
    };
    for epoch in 0..256 {
        assert_eq!(observe(epoch, 0), (0, epoch as usize + 1, 0));
    }
    assert_eq!(observe(0, 1), (0, 256, 0));
    assert_eq!(observe(999, 0), (0, 256, 1));
    // 1 was forgotten, so its jump is none; 0 was not.
    assert_eq!(observe(0, 10), (8, 256, 1));
    assert_eq!(observe(1, 10), (0, 256, 2));
}
