//! The tracker against a model that is too simple to be wrong.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;
use sekiwake_record::{Announcement, Header, Topic, TopicPosition};

use super::Tracker;

fn topics(count: usize) -> Vec<Topic> {
    Topic::all().take(count).collect()
}

fn header(stream_epoch: u64, first_sequence: u64, count: u32) -> Header<'static> {
    Header { stream_name: "s", stream_epoch, first_sequence, count, first_captured_at_ns: 0, last_captured_at_ns: 0 }
}

proptest! {
    #[test]
    fn tracker_agrees_with_a_list_of_all_sequence_numbers(
        steps in prop::collection::vec((0..2u64, 0..2usize, 0..60u64, 1..15u32, 0..8u8), 0..80),
    ) {
        let topics = topics(2);
        let mut tracker = Tracker::default();
        let mut model = HashMap::<(u64, Topic), Model>::new();
        for (epoch, topic, at, count, action) in steps {
            let topic = topics[topic];
            if action == 0 {
                // An announcement of one topic; the other has no records.
                let ended = at % 7 == 0;
                let positions = vec![TopicPosition { topic, oldest_sequence: 0, next_sequence: at }];
                let announcement = Announcement { stream_name: "s".to_owned(), stream_epoch: epoch, ended, positions, clock_ns: None };
                let missing = tracker.announced(&announcement, |_| true);
                prop_assert_eq!(missing[topic.kind.index()], model.entry((epoch, topic)).or_default().until(at));
                for &other in &topics {
                    model.entry((epoch, other)).or_default().next.get_or_insert(0);
                }
                if ended {
                    model.retain(|(stream, _), _| *stream != epoch);
                }
            } else {
                let seen = tracker.observe(topic, &header(epoch, at, count));
                let (missing, duplicates) = model.entry((epoch, topic)).or_default().batch(at, u64::from(count));
                prop_assert_eq!((seen.missing, u64::from(seen.duplicates)), (missing, duplicates));
            }
            let epochs: HashSet<u64> = model.keys().map(|(epoch, _)| *epoch).collect();
            prop_assert_eq!(tracker.streams(), epochs.len());
        }
    }

    #[test]
    fn tracker_accepts_any_numbers(
        steps in prop::collection::vec((any::<u64>(), any::<u32>(), any::<bool>()), 0..20),
    ) {
        let topic = topics(1)[0];
        let mut tracker = Tracker::default();
        for (at, count, announced) in steps.into_iter().chain([(u64::MAX, 9, true), (u64::MAX, 9, false), (0, 9, true)]) {
            if announced {
                let positions = vec![TopicPosition { topic, oldest_sequence: 0, next_sequence: at }; 3];
                let stream_name = "s".to_owned();
                tracker.announced(&Announcement { stream_name, stream_epoch: 1, ended: false, positions, clock_ns: None }, |_| true);
            } else {
                prop_assert!(tracker.observe(topic, &header(1, at, count)).duplicates <= count);
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
        let mut duplicates = 0;
        for sequence in first..first + count {
            if self.next > Some(sequence) { duplicates += 1 } else { self.next = Some(sequence + 1) }
        }
        (missing, duplicates)
    }
}

#[test]
fn tracker_forgets_the_stream_silent_for_longest() {
    let mut tracker = Tracker::default();
    let topic = topics(1)[0];
    let mut observe = |epoch: u64, first_sequence: u64| {
        let missing = tracker.observe(topic, &header(epoch, first_sequence, 1)).missing;
        (missing, tracker.streams(), tracker.forgotten())
    };
    for epoch in 0..256 {
        assert_eq!(observe(epoch, 0), (0, epoch as usize + 1, 0));
    }
    assert_eq!(observe(0, 1), (0, 256, 0));
    assert_eq!(observe(999, 0), (0, 256, 1));
    // Stream 1 was forgotten, so its jump is not a gap; stream 0 was not forgotten.
    assert_eq!(observe(0, 10), (8, 256, 1));
    assert_eq!(observe(1, 10), (0, 256, 2));
}

#[test]
fn invented_streams_make_the_tracker_forget_no_lasting_one() {
    let mut tracker = Tracker::default();
    let topic = topics(1)[0];
    tracker.observe(topic, &header(0, 0, 1));
    tracker.observe(topic, &header(0, 1, 1));
    for epoch in 1..2000 {
        tracker.observe(topic, &header(epoch, 0, 1));
    }
    assert_eq!(tracker.observe(topic, &header(0, 10, 1)).missing, 8);
}
