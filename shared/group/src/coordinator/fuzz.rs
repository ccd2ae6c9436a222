//! What a fuzz target drives.

use crate::{
    Coordinator, CoordinatorSettings, MILLISECOND, Peer,
    wire::{Answer, Message},
};

/// Feeds arbitrary bytes to a coordinator, as messages of a few peers with time passing between them, and checks what must hold
/// whatever comes: nothing panics, what it makes can be read, what can be read is written the same, and a shard has one holder.
///
/// ```text
/// input   [peer and pause 1 | length 2 | message] …
/// ```
pub fn fuzz(input: &[u8]) {
    let mut now = 0;
    let mut coordinator = Coordinator::new(CoordinatorSettings::default(), 1, now);
    let mut rest = input;
    while let [who, high, low, after @ ..] = rest {
        let length = usize::from(u16::from_be_bytes([*high, *low])).min(after.len());
        let (frame, after) = after.split_at(length);
        rest = after;
        now += u64::from(who >> 2) * 50 * MILLISECOND;
        let Some(peer) = Peer::new(&[who & 3]) else { return };
        if let Ok(message) = Message::decode(frame) {
            assert_eq!(Message::decode(&message.encode()), Ok(message));
        }
        coordinator.on_message(now, &peer, frame);
        if coordinator.next_deadline() <= now {
            coordinator.on_tick(now);
        }
        while let Some((_, frame)) = coordinator.poll_output() {
            // An answer is passed on as it came, and only its envelope has been read.
            let is_answer = matches!(Answer::peek(&frame), Ok(Some(_)));
            assert!(is_answer || Message::decode(&frame).is_ok(), "what it makes itself can be read");
        }
        for group in coordinator.groups(now) {
            let held: usize = group.members.iter().map(|member| member.shards.len()).sum();
            assert_eq!(held + group.unowned.len(), sekiwake_record::SHARDS, "a shard has one holder");
        }
    }
}
