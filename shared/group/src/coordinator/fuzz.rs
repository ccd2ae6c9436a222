//! What a fuzz target drives.

use sekiwake_record::Name;

use crate::{
    Coordinator, CoordinatorSettings, HoldState, MILLISECOND, NoteKeeper, NoteKeeperSettings, NoteStore,
    NoteStoreSettings, Peer, ShardStatus,
    wire::{Answer, MAX_NOTES_BYTES, Message, Notes, WantNotes, is_about_notes},
};

/// Feeds arbitrary bytes to a coordinator and to the store of notes beside it, as messages of a few peers with time passing between
/// them, and checks what must hold whatever comes: nothing panics, what they make can be read, what can be read is written the same, a
/// shard has one holder, notes stay within their budgets, and whoever is no member leaves none. A keeper of notes hears all that is said of
/// notes, as if it came from its coordinator, and what it says goes to the store.
///
/// ```text
/// input   [peer and pause 1 | length 2 | message] …
/// ```
pub fn fuzz(input: &[u8]) {
    let mut now = 0;
    let mut coordinator = Coordinator::new(CoordinatorSettings::default(), 1, now);
    // Little, so that some have to make room.
    let settings = NoteStoreSettings { bytes: 6_000, bytes_per_group: 3_000, ..NoteStoreSettings::default() };
    let mut store = NoteStore::new(settings, 1, now);
    let Ok(group) = Name::new("g") else { return };
    let mut keeper = NoteKeeper::new(NoteKeeperSettings::new(group), 7);
    let owned = [3, 4].map(|shard| ShardStatus { shard, generation: 1, state: HoldState::Owned });
    let Some(keeper_peer) = Peer::new(&[0]) else { return };
    let mut rest = input;
    while let [who, high, low, after @ ..] = rest {
        let length = usize::from(u16::from_be_bytes([*high, *low])).min(after.len());
        let (frame, after) = after.split_at(length);
        rest = after;
        now += u64::from(who >> 2) * 50 * MILLISECOND;
        let Some(peer) = Peer::new(&[who & 3]) else { return };
        let message = Message::decode(frame).ok();
        if let Some(message) = &message {
            assert_eq!(Message::decode(&message.encode()).as_ref(), Ok(message));
        }
        if is_about_notes(frame) {
            let may_speak = match &message {
                Some(Message::Notes(Notes { group, incarnation, .. }))
                | Some(Message::WantNotes(WantNotes { group, incarnation, .. })) => {
                    coordinator.leased_kind(now, &peer, group, *incarnation).is_some()
                }
                _ => false,
            };
            let before = store.view();
            store.on_message(now, &peer, frame, &coordinator);
            let after = store.view();
            assert!(may_speak || (before.groups == after.groups && before.refusals != after.refusals));
            keeper.on_message(now, frame);
        } else {
            coordinator.on_message(now, &peer, frame);
        }
        keeper.follow(now, 1, true, owned);
        if keeper.next_deadline() <= now {
            keeper.on_tick(now);
        }
        while let Some(frame) = keeper.poll_output() {
            assert!(frame.len() <= MAX_NOTES_BYTES && is_about_notes(&frame) && Message::decode(&frame).is_ok());
            store.on_message(now, &keeper_peer, &frame, &coordinator);
        }
        if coordinator.next_deadline() <= now {
            coordinator.on_tick(now);
        }
        if store.next_deadline() <= now {
            store.on_tick(now, &coordinator);
        }
        store.check();
        while let Some((_, frame)) = coordinator.poll_output() {
            // An answer is passed on as it came, and only its envelope has been read.
            let is_answer = matches!(Answer::peek(&frame), Ok(Some(_)));
            assert!(is_answer || Message::decode(&frame).is_ok(), "what it makes itself can be read");
        }
        while let Some((_, frame)) = store.poll_output() {
            assert!(frame.len() <= MAX_NOTES_BYTES && is_about_notes(&frame) && Message::decode(&frame).is_ok());
            keeper.on_message(now, &frame);
        }
        while let Some(note) = keeper.take() {
            let _ = keeper.put(note.shard, note.key.as_bytes(), note.value.as_bytes(), note.at_ns.wrapping_add(1));
        }
        for group in coordinator.groups(now) {
            let held: usize = group.members.iter().map(|member| member.shards.len()).sum();
            assert_eq!(held + group.unowned.len(), sekiwake_record::SHARDS, "a shard has one holder");
        }
    }
}
