//! What goes into a [`Table`] and what comes out of it.

use std::{sync::Arc, time::Duration};

use sekiwake_group::{BootTime, Permit, Stream};
use sekiwake_record::{Name, Shard};

use super::{Holding, Table};
use crate::{
    beginning::{Beginning, Owed},
    key::Key,
    mutants::Mutants,
    position::Position,
};

/// Settings of a [`Table`].
#[derive(Clone, Debug)]
pub struct TableSettings {
    /// The member's name in logs and status.
    pub label: Name,
    /// One member of the group has all shards, and the others stand by.
    pub single_active: bool,
    pub(crate) mutants: Mutants,
}

impl TableSettings {
    /// Settings of the member of this name.
    pub fn new(label: Name, single_active: bool) -> TableSettings {
        TableSettings { label, single_active, mutants: Mutants::default() }
    }
}

/// A key that was read.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// Its name after the group's prefix.
    pub name: &'a str,
    /// Its revision: higher after each write of any key.
    pub revision: u64,
    /// Its value.
    pub value: &'a [u8],
}

/// A key that is to be written if it has the expected revision.
#[derive(Clone, Debug)]
pub struct Write {
    /// For [`Table::on_outcome`].
    pub id: u64,
    /// The key.
    pub key: Key,
    /// The revision that it must have; 0 if it must not exist. `None` only with a fault that tests
    /// build in.
    pub expected: Option<u64>,
    /// Its new value; `None` to delete the expected revision.
    pub value: Option<Vec<u8>>,
}

/// The outcome of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is stored with this revision.
    Stored(u64),
    /// The key has another revision.
    Conflict,
    /// No answer, or an error: it may be stored, now or later.
    Unknown,
}

/// Where a group begins that nobody has heard of.
#[derive(Clone, Debug)]
pub struct Birth {
    /// Before the first record that it owes, in each shard.
    pub position: Position,
    /// The streams of publishers that exist already.
    pub older: Vec<Stream>,
    /// What they had sent by then, of those that send more, at most [`MAX_BEGINNINGS`].
    ///
    /// [`MAX_BEGINNINGS`]: crate::value::MAX_BEGINNINGS
    pub beginnings: Vec<Beginning>,
}

/// What a member is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Deliver the shard from this position on.
    Own {
        /// The shard.
        shard: Shard,
        /// Its generation.
        generation: u64,
        /// Where to begin.
        position: Position,
    },
    /// Deliver nothing new of the shard. To be answered with [`Table::stopped`].
    Stop {
        /// The shard.
        shard: Shard,
        /// Its generation.
        generation: u64,
    },
    /// Forget what is delivered of the shard.
    Revoked {
        /// The shard.
        shard: Shard,
        /// Its generation.
        generation: u64,
    },
    /// This incarnation is over, and all shards were revoked. To be answered with
    /// [`Table::rejoin`].
    Fenced,
}

/// Counters of a [`Table`].
#[derive(Clone, Copy, Debug, Default)]
pub struct TableCounters {
    /// Renewals that are known to be stored.
    pub renewals: u64,
    /// Renewals that met another revision.
    pub conflicts: u64,
    /// Renewals without an answer.
    pub unknown: u64,
    /// Reads of all keys.
    pub reads: u64,
    /// Keys whose names are not those of a group, each time they are read.
    pub foreign: u64,
    /// Values that cannot be read.
    pub unreadable: u64,
    /// Members that this one has declared gone.
    pub declared_gone: u64,
    /// How often this member began again.
    pub rejoined: u64,
}

impl Table {
    /// The permit that sending threads check.
    pub fn permit(&self) -> Arc<Permit> {
        Arc::clone(&self.permit)
    }

    /// The random number of this run of the member.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// When the lease ends.
    pub fn lease_until(&self) -> BootTime {
        self.permit.until()
    }

    /// How long ago the newest renewal that is stored was sent.
    pub fn lease_age(&self, now: BootTime) -> Option<Duration> {
        self.own.renewed_at.map(|at| now - at)
    }

    /// The shards that the member has, with their generations, those that it is stopping included.
    pub fn owned(&self) -> impl Iterator<Item = (Shard, u64)> {
        Shard::all().filter_map(|shard| {
            let held = &self.shards[shard.index()];
            matches!(held.holding, Holding::Owned | Holding::Stopping).then_some((shard, held.generation))
        })
    }

    /// The state of a shard, for status: `None` if the member does not have it.
    pub fn shard_state(&self, shard: Shard) -> Option<(&'static str, u64)> {
        let held = &self.shards[shard.index()];
        let state = match held.holding {
            Holding::None => return None,
            Holding::Claiming => "claiming",
            Holding::Owned => "owned",
            Holding::Stopping => "stopping",
            Holding::Released => "released",
        };
        Some((state, held.generation))
    }

    /// What the group is owed of a publisher's stream of which nothing is known in a shard.
    pub fn owed(&self, stream: &Stream, shard: Shard) -> Owed {
        let memory = self.memory.as_ref().filter(|memory| memory.older.contains(stream));
        let Some(memory) = memory else { return Owed::From(0) };
        let beginning = memory.beginnings.iter().find(|beginning| beginning.stream == *stream);
        beginning.map_or(Owed::AsRead, |beginning| beginning.owed(shard))
    }

    /// The number of members that take part, as far as this one knows.
    pub fn live_members(&self) -> usize {
        self.members.values().filter(|seen| seen.is_live()).count()
    }

    /// The number of shards that no member owns; `None` before the assignment was read.
    pub fn free_shards(&self) -> Option<usize> {
        let assignment = self.assignment.as_ref()?.value.as_ref()?;
        Some(assignment.shards.iter().filter(|shard| shard.owner.is_none()).count())
    }

    /// Sets the digest of the destinations, and of settings that all members should have; 0 is not
    /// compared. The next renewal has it.
    pub fn set_digest(&mut self, digest: u64) {
        self.digest = digest;
    }

    /// The labels of members, eight at most, whose digests have differed from this member's for a
    /// minute.
    pub fn differing(&self, now: BootTime) -> Vec<Name> {
        let others = self.others().filter_map(|value| Some((value.digest, value.label.as_ref()?)));
        self.agreement.others(now, self.digest, others)
    }

    /// Whether members have had different digests for a minute.
    pub fn differ(&self, now: BootTime) -> bool {
        self.agreement.is_reported(now)
    }

    /// Whether the member is leaving.
    pub fn is_leaving(&self) -> bool {
        self.own.is_leaving
    }

    /// Whether the member's key says that it has left, or it was never in the group.
    pub fn has_left(&self) -> bool {
        let own = &self.own;
        own.has_left || own.is_leaving && own.is_fenced
    }

    /// The counters.
    pub fn counters(&self) -> TableCounters {
        self.counters
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::{MemberValue, State};

    #[test]
    fn members_with_another_digest_are_named_after_a_minute() {
        let name = |text: &str| Name::new(text).unwrap();
        let at = |seconds| BootTime::ZERO + Duration::from_secs(seconds);
        let mut table = Table::new(TableSettings::new(name("m1"), false), 1, at(0));
        table.set_digest(5);
        let write = table.poll_write(at(0)).unwrap();
        assert_eq!(MemberValue::decode(&write.value.unwrap()).unwrap().digest, 5);
        let mut revision = 0;
        let mut differing = |table: &mut Table, now, members: [(&str, State, u64); 3]| {
            revision += 1;
            let keys = members.iter().zip(2..).map(|((label, state, digest), incarnation)| {
                let label = Some(name(label));
                let value = MemberValue { number: revision, state: *state, label, claims: Vec::new(), digest: *digest };
                (Key::Member(incarnation).to_string(), value.encode())
            });
            let keys: Vec<(String, Vec<u8>)> = keys.collect();
            let entries = keys.iter().map(|(name, value)| Entry { name, revision, value });
            table.on_read(now, entries);
            (table.differ(now), table.differing(now).iter().map(Name::to_string).collect::<Vec<_>>())
        };
        let mut after = |seconds, digests: [u64; 2], state| {
            let members = [("m2", State::Live, digests[0]), ("m3", state, digests[1]), ("earlier", State::Live, 0)];
            differing(&mut table, at(seconds), members)
        };
        let none = || (false, Vec::new());
        assert_eq!(after(1, [5, 5], State::Live), none());
        assert_eq!(after(2, [5, 7], State::Live), none());
        assert_eq!(after(61, [5, 7], State::Live), none());
        assert_eq!(after(62, [5, 7], State::Live), (true, vec!["m3".to_owned()]));
        assert_eq!(after(63, [9, 7], State::Leaving), (true, vec!["m2".to_owned(), "m3".to_owned()]));
        // One that is gone takes no part.
        assert_eq!(after(64, [5, 7], State::Gone), none());
    }
}
