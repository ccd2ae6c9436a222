//! Finding the message at which a peer ends its connections, so that it cannot hold up the others.
//! Logic without I/O.
//!
//! ```text
//!            the peer ends two connections in a row that are not trusted yet, with messages on them
//!   normal ───────────────────────────────────────────────────────────────────────▶ careful
//!     ◀──────────────────────────────────────────────────────────────────────────────
//!                     a connection is trusted, and nothing is suspect
//!
//!   careful: a connection is idle for a moment first, then gets one part at a time
//!            part acknowledged, connection lasts ─▶ its messages are sent
//!            connection ends with several messages ─▶ the next one gets half of them
//!            connection ends with a single message ─▶ tried again, at last rejected
//! ```
//! A connection that ends while it is idle says nothing about messages: the peer may be a balancer
//! without a backend.

/// How many connections a peer has to end at a message before that is dropped.
pub(super) const TRIES: u32 = 3;

/// The largest part, as a power of two, while nothing is suspect. Its bytes are bounded anyway.
const MAX_GROWTH: u32 = 16;

/// The suspects of one lane: of the live stream, or of the spool.
#[derive(Debug, Default)]
pub(super) struct Suspects {
    /// How many of the oldest messages are suspect: at one of them the peer ended a connection.
    count: u64,
    /// How often it has ended one at the oldest message alone.
    tries: u32,
    /// How many parts in a row were sent without an end.
    survivals: u32,
}

impl Suspects {
    /// Whether there is any.
    pub(super) fn any(&self) -> bool {
        self.count > 0
    }

    /// The most messages of the next part.
    pub(super) fn limit(&self) -> u64 {
        if self.count > 0 { self.count.div_ceil(2) } else { 1 << self.survivals.min(MAX_GROWTH) }
    }

    /// The peer has ended the connection with this many messages, the oldest, not known to be sent.
    pub(super) fn ended(&mut self, messages: u64) {
        match messages {
            0 => return,
            1 => self.tries += 1,
            _ => self.tries = 0,
        }
        self.count = messages;
        self.survivals = 0;
    }

    /// The oldest messages, this many, are sent.
    pub(super) fn survived(&mut self, messages: u64) {
        self.removed(messages);
        if messages > 0 && self.count == 0 {
            self.survivals = self.survivals.saturating_add(1);
        }
    }

    /// The oldest messages, this many, are no longer here.
    pub(super) fn removed(&mut self, messages: u64) {
        if messages > 0 {
            self.count = self.count.saturating_sub(messages);
            self.tries = 0;
        }
    }

    /// Whether the oldest message has to be rejected.
    pub(super) fn convicts_oldest(&self) -> bool {
        self.tries >= TRIES
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Gives parts of `total` messages to a peer that ends the connection at each of `bad`. Returns
    /// the rejected messages, and how many connections were needed.
    fn deliver(total: u64, bad: &[u64], first: u64) -> (Vec<u64>, u64) {
        let mut suspects = Suspects::default();
        let mut next = 0;
        let mut rejected = Vec::new();
        let mut ends = 0;
        let mut limit = first;
        while next < total {
            let part = limit.min(total - next);
            if bad.iter().any(|bad| (next..next + part).contains(bad)) {
                ends += 1;
                suspects.ended(part);
                if suspects.convicts_oldest() {
                    rejected.push(next);
                    suspects.removed(1);
                    next += 1;
                }
            } else {
                suspects.survived(part);
                next += part;
            }
            limit = suspects.limit();
        }
        (rejected, ends)
    }

    proptest! {
        #[test]
        fn exactly_the_bad_messages_are_rejected(
            total in 1..5_000u64,
            bad in prop::collection::btree_set(0..5_000u64, 0..20),
            first in 1..5_000u64,
        ) {
            let bad: Vec<u64> = bad.into_iter().filter(|bad| *bad < total).collect();
            let (rejected, ends) = deliver(total, &bad, first);
            prop_assert_eq!(&rejected, &bad);
            // Halving 5,000 takes 13 steps; a part that has grown again holds fewer.
            prop_assert!(ends <= (13 + u64::from(TRIES)) * bad.len() as u64, "{} connections", ends);
        }
    }

    #[test]
    fn parts_grow_while_nothing_is_suspect() {
        let mut suspects = Suspects::default();
        let limits: Vec<u64> = (0..4)
            .map(|_| {
                let limit = suspects.limit();
                suspects.survived(limit);
                limit
            })
            .collect();
        assert_eq!(limits, [1, 2, 4, 8]);
        suspects.ended(0);
        assert_eq!((suspects.any(), suspects.limit()), (false, 16), "an idle connection says nothing");
        suspects.ended(16);
        assert_eq!((suspects.any(), suspects.limit()), (true, 8));
    }

    #[test]
    fn tries_are_those_of_one_message() {
        let mut suspects = Suspects::default();
        for _ in 1..TRIES {
            suspects.ended(1);
        }
        suspects.removed(1);
        suspects.ended(1);
        assert!(!suspects.convicts_oldest(), "this is another message");
    }
}
