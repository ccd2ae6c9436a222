//! The body of a fuzz target.

use std::time::Duration;

use sekiwake_record::{Kind, Name, Topic};

use crate::{
    BootTime, Coordinator, CoordinatorSettings, HandoffKeeper, HandoffKeeperSettings, HandoffStore,
    HandoffStoreSettings, Peer, RecentAnswers, RecentDesk, RecentReader, RecentReaderSettings, Retained, Retention,
    STATUS_PREFIX, ShardPhase, ShardStatus, StatusBoard, Stream, TemplateReader,
    wire::{
        Answer, GetHandoff, MAX_HANDOFF_BYTES, MAX_STATUS_PART, Message, PutHandoff, RecentAnswer, is_handoff,
        is_recent, is_status,
    },
};

/// Feeds arbitrary bytes to a coordinator and the store of hand-off state beside it, as messages of
/// a few peers with time passing between them. A keeper gets every message of hand-off state as if
/// it came from its coordinator, and its messages go to the store.
///
/// Messages of status go to a board beside it. A reader of templates gets every message, too, and
/// its requests go to the store. Messages about recent records go to a desk, and to a publisher and
/// a reader whose own messages go to the desk.
///
/// Checks that nothing panics, that every output can be decoded, that a decoded message is encoded
/// to an equal one, that a shard has one holder, that hand-off state stays within its budgets, and
/// that only members leave any.
///
/// ```text
/// input   [peer and pause 1 | length 2 | message] …
/// ```
pub fn fuzz(input: &[u8]) {
    let mut now = BootTime::ZERO;
    let mut coordinator = Coordinator::new(CoordinatorSettings::default(), 1, now);
    // Small, so that entries are evicted.
    let settings = HandoffStoreSettings { bytes: 6_000, bytes_per_group: 3_000, ..HandoffStoreSettings::default() };
    let mut store = HandoffStore::new(settings, 1, now);
    let Ok(group) = Name::new("g") else { return };
    let mut keeper = HandoffKeeper::new(HandoffKeeperSettings::new(group), 7);
    let owned = [3, 4].map(|shard| ShardStatus { shard, generation: 1, state: ShardPhase::Owned });
    let Some(keeper_peer) = Peer::new(&[0]) else { return };
    let mut reader = TemplateReader::new(Kind::Xflow, now);
    let mut board = StatusBoard::new(1, now);
    board.set_wanted(true);
    let mut recent = Recents::new(now);
    let mut rest = input;
    while let [who, high, low, after @ ..] = rest {
        let length = usize::from(u16::from_be_bytes([*high, *low])).min(after.len());
        let (frame, after) = after.split_at(length);
        rest = after;
        now += u32::from(who >> 2) * Duration::from_millis(50);
        let Some(peer) = Peer::new(&[who & 3]) else { return };
        let message = Message::decode(frame).ok();
        if let Some(message) = &message {
            assert_eq!(Message::decode(&message.encode()).as_ref(), Ok(message));
        }
        if is_handoff(frame) {
            let is_reader = matches!(&message, Some(Message::GetTemplates(_)));
            let is_member = match &message {
                Some(Message::PutHandoff(PutHandoff { group, incarnation, .. }))
                | Some(Message::GetHandoff(GetHandoff { group, incarnation, .. })) => {
                    coordinator.leased_kind(now, &peer, group, *incarnation).is_some()
                }
                _ => false,
            };
            let before = store.view();
            store.on_message(now, &peer, frame, &coordinator);
            let after = store.view();
            assert!(is_member || before.groups == after.groups);
            assert!(is_member || is_reader || before.rejections != after.rejections);
            keeper.on_message(now, frame);
            reader.on_message(now, frame);
        } else if is_status(frame) {
            board.on_message(now, &peer, frame);
        } else if is_recent(frame) {
            recent.on_message(now, &peer, frame);
        } else {
            coordinator.on_message(now, &peer, frame);
        }
        keeper.follow(now, 1, true, owned);
        if keeper.next_deadline() <= now {
            keeper.on_tick(now);
        }
        while let Some(frame) = keeper.poll_output() {
            assert!(frame.len() <= MAX_HANDOFF_BYTES && is_handoff(&frame) && Message::decode(&frame).is_ok());
            store.on_message(now, &keeper_peer, &frame, &coordinator);
        }
        reader.on_tick(now);
        while let Some(frame) = reader.poll_output() {
            store.on_message(now, &keeper_peer, &frame, &coordinator);
        }
        if coordinator.next_deadline() <= now {
            coordinator.on_tick(now);
        }
        if store.next_deadline() <= now {
            store.on_tick(now, &coordinator);
        }
        store.check();
        recent.step(now, &coordinator);
        board.on_tick(now);
        board.check();
        while let Some((_, frame)) = board.poll_output() {
            assert!(is_status(&frame) && Message::decode(&frame).is_ok());
        }
        while let Some(publication) = board.poll_publication() {
            assert!(publication.topic.starts_with(STATUS_PREFIX) && publication.text.len() <= MAX_STATUS_PART);
        }
        while coordinator.poll_event().is_some() {}
        while let Some((_, frame)) = coordinator.poll_output() {
            // An answer is passed on unchanged, and only its beginning was checked.
            let is_answer = matches!(Answer::peek(&frame), Ok(Some(_)));
            assert!(is_answer || Message::decode(&frame).is_ok(), "its own messages can be decoded");
        }
        while let Some((_, frame)) = store.poll_output() {
            assert!(frame.len() <= MAX_HANDOFF_BYTES && is_handoff(&frame) && Message::decode(&frame).is_ok());
            keeper.on_message(now, &frame);
            reader.on_message(now, &frame);
        }
        while let Some(entry) = keeper.take() {
            let _ = keeper.put(entry.shard, entry.key.as_bytes(), entry.value.as_bytes(), entry.at_ns.wrapping_add(1));
        }
        coordinator.check_clients();
        for group in coordinator.groups(now) {
            let owned: usize = group.members.iter().map(|member| member.shards.len()).sum();
            assert_eq!(owned + group.unowned.len(), sekiwake_record::SHARDS, "a shard has one holder");
        }
    }
}

/// A desk, a publisher and a reader of recent records.
struct Recents {
    desk: RecentDesk,
    answers: RecentAnswers,
    retention: Retention<Vec<u8>>,
    reader: RecentReader<()>,
    reader_peer: Peer,
}

impl Recents {
    fn new(now: BootTime) -> Recents {
        let topics: Vec<Topic> = Topic::all().take(3).collect();
        let mut retention = Retention::new([2_000; Kind::ALL.len()]);
        for batch in 0..6 {
            let (first_sequence, captured_at_ns) = (batch * 4, batch * 100);
            retention.store(
                topics[0],
                Retained {
                    first_sequence,
                    count: 4,
                    first_captured_at_ns: captured_at_ns,
                    last_captured_at_ns: captured_at_ns,
                    published_at: now,
                    body: vec![0; 400],
                },
            );
        }
        Recents {
            desk: RecentDesk::new(1, now),
            answers: RecentAnswers::new(Stream { name: "tap".into(), epoch: 5 }, now),
            retention,
            reader: RecentReader::new(RecentReaderSettings::new(topics, 200, 1_000), now),
            reader_peer: Peer::default(),
        }
    }

    fn on_message(&mut self, now: BootTime, peer: &Peer, frame: &[u8]) {
        let before = self.desk.rejections();
        self.desk.on_message(now, peer, frame);
        let is_request = matches!(Message::decode(frame), Ok(Message::GetStreams(_) | Message::GetRecent(_)));
        let is_answer = matches!(RecentAnswer::peek(frame), Ok(Some(_)));
        assert!(is_request || is_answer || before != self.desk.rejections());
        self.answers.on_message(frame, &self.retention);
        self.reader.on_message(now, frame);
    }

    fn step(&mut self, now: BootTime, coordinator: &Coordinator) {
        self.answers.on_tick(now, &self.retention);
        while let Some(frame) = self.answers.poll_output() {
            assert!(is_recent(&frame) && Message::decode(&frame).is_ok());
            self.desk.on_message(now, &self.reader_peer, &frame);
            self.reader.on_message(now, &frame);
        }
        self.reader.on_tick(now);
        while let Some(frame) = self.reader.poll_output() {
            assert!(is_recent(&frame) && Message::decode(&frame).is_ok());
            self.desk.on_message(now, &self.reader_peer, &frame);
        }
        while self.reader.poll_delivery().is_some() || self.reader.poll_missing().is_some() {}
        if self.desk.next_deadline() <= now {
            self.desk.on_tick(now, coordinator);
        }
        self.desk.check();
        while let Some((_, frame)) = self.desk.poll_output() {
            let is_answer = matches!(RecentAnswer::peek(&frame), Ok(Some(_)));
            assert!(is_answer || Message::decode(&frame).is_ok(), "its own messages can be decoded");
            self.answers.on_message(&frame, &self.retention);
            self.reader.on_message(now, &frame);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    #[test]
    fn seeds_of_the_fuzz_target_hold() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds/coordinator");
        let seeds: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(seeds.iter().any(|path| path.ends_with("recent")), "{seeds:?}");
        seeds.iter().for_each(|path| super::fuzz(&fs::read(path).unwrap()));
    }
}
