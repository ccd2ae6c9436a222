//! The table of a group as one of its members sees it.

mod api;
mod own;
mod plan;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use sekiwake_group::{Agreement, BootTime, LEASE, LEASE_MARGIN, Permit, RENEW_EVERY};
use sekiwake_record::{SHARDS, Shard};

use self::own::{OwnKey, Sent};
use crate::{
    READ_EVERY, READ_SOON,
    key::Key,
    mutants::Mutants,
    position::Position,
    value::{Assigned, Assignment, Claim, MAX_BEGINNINGS, MAX_MEMBERS, MemberValue, Phase, State},
};

pub use api::{Birth, Entry, Event, Outcome, TableCounters, TableSettings, Write};

/// How long the assignment must have been unreadable before it is rebuilt from the keys.
const REBUILD_AFTER: Duration = Duration::from_secs(1);
/// The same for members that have never read one: until then others may have.
const BIRTH_AFTER: Duration = Duration::from_secs(10);
/// The most members remembered as gone.
const MAX_GONE: usize = 4 * MAX_MEMBERS;
/// Keys are read more often for this long after a change of the assignment.
const MOVING_FOR: Duration = Duration::from_secs(5);
/// The pause after a deletion that failed: it is only tidying up.
const DELETE_AGAIN_AFTER: Duration = Duration::from_secs(10);
/// The member's renewals pass while the newest one is not older than this.
const PASSES_WITHIN: Duration = RENEW_EVERY.saturating_mul(3);

/// A member's view of its group: it renews the member's key, claims and releases shards, declares
/// other members gone, and plans who owns what. To be used by one thread.
#[derive(Debug)]
pub struct Table {
    settings: TableSettings,
    incarnation: u64,
    permit: Arc<Permit>,
    own: OwnKey,
    shards: Vec<Held>,
    /// The members' keys, that of this member included.
    members: BTreeMap<u64, Seen>,
    /// The assignment's key.
    assignment: Option<Known>,
    /// It is not there any more.
    has_vanished: bool,
    /// Its newest known revision: older answers are skipped.
    newest_assignment: u64,
    /// The newest assignment that could be read, or else the birth of the group.
    memory: Option<Assignment>,
    /// It has been read, not born.
    has_memory: bool,
    /// Since when the assignment cannot be read.
    unreadable_since: Option<BootTime>,
    /// Since when there is none that can be read, although there is a group.
    missing_since: Option<BootTime>,
    /// Members that were seen as gone, and at which revision: an old answer does not revive them.
    /// One that never had a shard may come back after its key was deleted, at a higher one.
    gone: BTreeMap<u64, u64>,
    /// Owners without a key, and since when.
    absent: BTreeMap<u64, BootTime>,
    /// Of the destinations and settings of this member; 0 if it is not compared.
    digest: u64,
    agreement: Agreement,
    /// Other members are not declared gone for what happened before.
    watch_from: BootTime,
    has_read: bool,
    next_read_at: BootTime,
    assigned_at: BootTime,
    /// A write of another key than the member's own.
    other: Option<Other>,
    /// The last one failed: nothing is written before the keys are read again.
    must_reread: bool,
    /// No key is deleted before.
    delete_from: BootTime,
    next_id: u64,
    events: VecDeque<Event>,
    counters: TableCounters,
    mutants: Mutants,
}

/// A shard at this member.
#[derive(Clone, Debug, Default)]
struct Held {
    holding: Holding,
    position: Position,
    /// The newest generation that this member has had.
    generation: u64,
}

/// What this member may do with a shard, in the generation beside it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Holding {
    #[default]
    None,
    /// It is assigned; the own key does not list it yet.
    Claiming,
    /// It may act on it.
    Owned,
    /// It delivers nothing new; what is delivered may be acted on.
    Stopping,
    /// It never acts on it again; the own key says so, or will.
    Released,
}

/// A member's key.
#[derive(Clone, Debug)]
struct Seen {
    revision: u64,
    /// When it was first seen at this revision.
    since: BootTime,
    /// When it was last seen.
    last: BootTime,
    /// `None` if it cannot be read.
    value: Option<MemberValue>,
}

/// The assignment's key.
#[derive(Debug)]
struct Known {
    revision: u64,
    /// `None` if it cannot be read.
    value: Option<Assignment>,
}

/// A write of another key that has no outcome yet.
#[derive(Debug)]
struct Other {
    id: u64,
    what: What,
}

#[derive(Debug)]
enum What {
    Assign(Assignment),
    Gone(u64, MemberValue),
    Delete(u64),
}

impl Seen {
    fn is_gone(&self) -> bool {
        self.value.as_ref().is_some_and(|value| value.state == State::Gone)
    }

    fn is_live(&self) -> bool {
        self.value.as_ref().is_some_and(|value| value.state == State::Live)
    }
}

impl Table {
    /// A member that is not in the group yet. `incarnation` is a random number.
    pub fn new(settings: TableSettings, incarnation: u64, now: BootTime) -> Table {
        let mutants = settings.mutants;
        Table {
            settings,
            incarnation,
            permit: Arc::new(Permit::new()),
            own: OwnKey::new(now),
            shards: vec![Held::default(); SHARDS],
            members: BTreeMap::new(),
            assignment: None,
            has_vanished: false,
            newest_assignment: 0,
            memory: None,
            has_memory: false,
            unreadable_since: None,
            missing_since: None,
            gone: BTreeMap::new(),
            absent: BTreeMap::new(),
            digest: 0,
            agreement: Agreement::default(),
            watch_from: now,
            has_read: false,
            next_read_at: now,
            assigned_at: now,
            other: None,
            must_reread: false,
            delete_from: now,
            next_id: 0,
            events: VecDeque::new(),
            counters: TableCounters::default(),
            mutants,
        }
    }

    /// Takes all keys of the group, as they were read. Old answers do no harm.
    pub fn on_read<'a>(&mut self, now: BootTime, entries: impl IntoIterator<Item = Entry<'a>>) {
        self.has_read = true;
        self.must_reread = false;
        self.counters.reads += 1;
        let mut has_assignment = false;
        let mut has_own = false;
        for Entry { name, revision, value } in entries {
            match Key::parse(name) {
                Some(Key::Assignment) => {
                    has_assignment = true;
                    self.read_assignment(now, revision, value);
                }
                Some(Key::Member(member)) => {
                    has_own |= member == self.incarnation;
                    self.read_member(now, member, revision, value);
                }
                None => self.counters.foreign += 1,
            }
        }
        if !has_own {
            self.own_is_absent(now);
        }
        if !has_assignment && self.assignment.is_some() && self.unreadable_since.is_none() {
            self.unreadable_since = Some(now);
        } else if !has_assignment && self.missing_long_enough(now) {
            // It was deleted. If this answer is only old, the next write fails.
            self.has_vanished = true;
        }
        self.members.retain(|member, seen| {
            seen.last == now || *member == self.incarnation || now - seen.last < LEASE + LEASE_MARGIN
        });
        self.follow_absent(now);
        let digests = self.others().map(|value| value.digest).chain([self.digest]).collect::<Vec<_>>();
        self.agreement.compare(now, digests.into_iter());
        let has_claims = |seen: &Seen| seen.value.as_ref().is_some_and(|value| !value.claims.is_empty());
        let is_group = has_assignment || self.members.values().any(has_claims);
        match &self.assignment {
            Some(Known { value: Some(_), .. }) if !self.has_vanished => self.missing_since = None,
            _ if is_group => {
                self.missing_since.get_or_insert(now);
            }
            _ => {}
        }
        let moves = now - self.assigned_at < MOVING_FOR && self.is_moving();
        let soon = self.own.must_read || moves || self.other.is_some() || self.assignment.is_none();
        self.next_read_at = now + if soon { READ_SOON } else { READ_EVERY };
    }

    /// A read has been sent.
    pub fn read_sent(&mut self) {
        self.next_read_at = BootTime::NEVER;
    }

    /// A read was not answered.
    pub fn read_failed(&mut self, now: BootTime) {
        self.next_read_at = now + READ_SOON;
    }

    /// Whether the keys are to be read.
    pub fn wants_read(&self, now: BootTime) -> bool {
        now >= self.next_read_at
    }

    /// The next write, if one is due.
    pub fn poll_write(&mut self, now: BootTime) -> Option<Write> {
        if let Some(write) = self.poll_own(now) {
            return Some(write);
        }
        if self.other.is_some() || self.must_reread {
            return None;
        }
        let (key, expected, value, what) = self.next_other(now)?;
        let id = self.new_id();
        self.other = Some(Other { id, what });
        let expected =
            if self.mutants.gone_at_any_revision() && key != Key::Assignment { None } else { Some(expected) };
        Some(Write { id, key, expected, value })
    }

    /// A write was stored, refused, or not answered.
    pub fn on_outcome(&mut self, now: BootTime, id: u64, outcome: Outcome) {
        if self.own.in_flight.as_ref().is_some_and(|sent| sent.id == id) {
            return self.own_outcome(now, outcome);
        }
        let Some(Other { what, .. }) = self.other.take_if(|other| other.id == id) else { return };
        self.next_read_at = self.next_read_at.min(now + READ_SOON);
        let Outcome::Stored(revision) = outcome else {
            self.must_reread = true;
            if let What::Delete(_) = what {
                self.delete_from = now + DELETE_AGAIN_AFTER;
            }
            return;
        };
        match what {
            What::Assign(assignment) => self.adopt(now, revision, Some(assignment)),
            What::Gone(member, value) => {
                self.counters.declared_gone += 1;
                self.remember_gone(member, revision);
                self.members.insert(member, Seen { revision, since: now, last: now, value: Some(value) });
            }
            What::Delete(member) => {
                self.members.remove(&member);
            }
        }
    }

    /// What the member is to do.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When something is due.
    pub fn next_deadline(&self) -> BootTime {
        let own = if self.may_write_own() { self.own.next_at } else { BootTime::NEVER };
        own.min(self.next_read_at)
    }

    /// Whether the group needs to be told where it begins, because nobody has heard of it. If there
    /// is a group, its other members are given time to restore the assignment that they remember.
    pub fn wants_birth(&self, now: BootTime) -> bool {
        let is_new = self.missing_since.is_none_or(|since| now - since >= BIRTH_AFTER);
        self.has_read && is_new && self.memory.is_none() && self.own.revision > 0 && self.is_planner()
    }

    /// The group begins here, unless another member says otherwise first.
    pub fn begin(&mut self, birth: Birth) {
        let Birth { position, older, mut beginnings } = birth;
        beginnings.truncate(MAX_BEGINNINGS);
        let assigned = Assigned { position, ..Assigned::default() };
        let planner = self.incarnation;
        self.memory.get_or_insert(Assignment { planner, older, beginnings, shards: vec![assigned; SHARDS] });
    }

    /// What is handled of a shard.
    pub fn commit(&mut self, shard: Shard, generation: u64, position: &Position) {
        let held = &mut self.shards[shard.index()];
        if matches!(held.holding, Holding::Owned | Holding::Stopping) && held.generation == generation {
            held.position.merge(position);
        }
    }

    /// A shard that was to be stopped is: everything that was delivered of it is handled, up to
    /// this position.
    pub fn stopped(&mut self, now: BootTime, shard: Shard, generation: u64, position: &Position) {
        self.commit(shard, generation, position);
        let held = &mut self.shards[shard.index()];
        if held.holding == Holding::Stopping && held.generation == generation {
            // Before the key says so.
            if !self.mutants.releases_unhandled() {
                self.permit.set(shard, 0);
            }
            held.holding = Holding::Released;
            self.own.next_at = self.own.next_at.min(now);
        }
    }

    /// Begins to release all shards, and then to leave.
    pub fn leave(&mut self, now: BootTime) {
        if self.own.is_leaving {
            return;
        }
        self.own.is_leaving = true;
        self.own.has_left = self.own.was_never_written();
        self.own.next_at = self.own.next_at.min(now);
        for shard in Shard::all() {
            self.stop(shard);
        }
    }

    /// Begins again with another incarnation, after [`Event::Fenced`].
    pub fn rejoin(&mut self, now: BootTime, incarnation: u64) {
        if !self.own.is_fenced || self.own.has_left {
            return;
        }
        self.counters.rejoined += 1;
        self.incarnation = incarnation;
        self.own = OwnKey { is_leaving: self.own.is_leaving, ..OwnKey::new(now) };
        self.shards.iter_mut().for_each(|held| *held = Held::default());
        self.watch_from = now;
        // The keys may have been deleted, and their revisions begin again.
        self.newest_assignment = 0;
        self.assignment = None;
        self.gone.clear();
    }

    fn read_assignment(&mut self, now: BootTime, revision: u64, value: &[u8]) {
        self.has_vanished = false;
        if self.newest_assignment >= revision {
            if self.assignment.as_ref().is_some_and(|known| known.value.is_some()) {
                self.unreadable_since = None;
            }
            return;
        }
        let decoded = Assignment::decode(value);
        if decoded.is_err() {
            self.counters.unreadable += 1;
        }
        self.adopt(now, revision, decoded.ok());
    }

    /// Takes a newer assignment.
    fn adopt(&mut self, now: BootTime, revision: u64, value: Option<Assignment>) {
        if self.newest_assignment >= revision {
            return;
        }
        self.newest_assignment = revision;
        self.has_vanished = false;
        match &value {
            Some(value) => {
                self.unreadable_since = None;
                self.memory = Some(value.clone());
                self.has_memory = true;
            }
            None => {
                self.unreadable_since.get_or_insert(now);
            }
        }
        let is_readable = value.is_some();
        self.assignment = Some(Known { revision, value });
        self.assigned_at = now;
        if is_readable && !self.own.is_fenced {
            Shard::all().for_each(|shard| self.follow(now, shard));
        }
    }

    /// Does what the assignment says of a shard.
    fn follow(&mut self, now: BootTime, shard: Shard) {
        let Some(assigned) = self.assigned(shard) else { return };
        let (owner, is_moving, generation) = (assigned.owner, assigned.next.is_some(), assigned.generation);
        let is_mine = owner == Some(self.incarnation);
        let Held { holding, generation: held, .. } = self.shards[shard.index()];
        let is_same = is_mine && generation == held;
        match holding {
            Holding::Claiming | Holding::Owned | Holding::Stopping if !is_same => self.revoke(shard),
            Holding::Claiming | Holding::Owned if is_moving => self.stop(shard),
            Holding::Released if !is_same => self.shards[shard.index()].holding = Holding::None,
            _ => {}
        }
        let held = &self.shards[shard.index()];
        if held.holding == Holding::None && is_mine && generation > held.generation && self.own.revision > 0 {
            self.claim(now, shard);
        }
    }

    fn claim(&mut self, now: BootTime, shard: Shard) {
        let Some(Assigned { generation, position, .. }) = self.assigned(shard).cloned() else { return };
        let holding = if self.own.is_leaving { Holding::Released } else { Holding::Claiming };
        self.shards[shard.index()] = Held { holding, position, generation };
        self.own.next_at = self.own.next_at.min(now);
    }

    /// The own key lists a claimed shard: it may be acted on.
    fn own_shard(&mut self, shard: Shard) {
        let held = &mut self.shards[shard.index()];
        held.holding = Holding::Owned;
        self.permit.set(shard, held.generation);
        let (generation, position) = (held.generation, held.position.clone());
        self.events.push_back(Event::Own { shard, generation, position });
    }

    /// Stops a shard that another member is to get.
    fn stop(&mut self, shard: Shard) {
        let held = &mut self.shards[shard.index()];
        match held.holding {
            Holding::Owned => {
                held.holding = Holding::Stopping;
                let generation = held.generation;
                self.events.push_back(Event::Stop { shard, generation });
            }
            Holding::Claiming => held.holding = Holding::Released,
            Holding::None | Holding::Stopping | Holding::Released => {}
        }
    }

    /// Gives a shard up at once.
    fn revoke(&mut self, shard: Shard) {
        self.permit.set(shard, 0);
        let held = &mut self.shards[shard.index()];
        held.holding = Holding::None;
        let generation = held.generation;
        self.events.push_back(Event::Revoked { shard, generation });
    }

    fn read_member(&mut self, now: BootTime, member: u64, revision: u64, value: &[u8]) {
        if self.members.len() >= MAX_MEMBERS && !self.members.contains_key(&member) && member != self.incarnation {
            self.counters.foreign += 1;
            return;
        }
        if let Some(seen) = self.members.get_mut(&member)
            && seen.revision >= revision
        {
            seen.last = now;
        } else {
            let value = MemberValue::decode(value).ok();
            if value.is_none() {
                self.counters.unreadable += 1;
            }
            if value.as_ref().is_some_and(|value| value.state == State::Gone) {
                self.remember_gone(member, revision);
            } else if self.gone.get(&member).is_some_and(|gone| *gone >= revision) {
                return;
            }
            self.members.insert(member, Seen { revision, since: now, last: now, value });
        }
        if member == self.incarnation {
            self.read_own(now, revision);
        }
    }

    fn remember_gone(&mut self, member: u64, revision: u64) {
        let known = self.gone.entry(member).or_default();
        *known = revision.max(*known);
        if self.gone.len() > MAX_GONE {
            self.gone.pop_first();
        }
    }

    /// Keeps since when owners have no key.
    fn follow_absent(&mut self, now: BootTime) {
        let Some(assignment) = self.assignment.as_ref().and_then(|known| known.value.as_ref()) else { return };
        let named = assignment.shards.iter().flat_map(|shard| [shard.owner, shard.next]).flatten();
        let absent: Vec<u64> = named.filter(|member| !self.members.contains_key(member)).collect();
        self.absent.retain(|member, _| absent.contains(member));
        for member in absent {
            self.absent.entry(member).or_insert(now);
        }
    }

    /// What the keys of other members say that are not gone.
    fn others(&self) -> impl Iterator<Item = &MemberValue> {
        let others = self.members.iter().filter(|(member, _)| **member != self.incarnation);
        others.filter_map(|(_, seen)| seen.value.as_ref()).filter(|value| value.state != State::Gone)
    }

    fn missing_long_enough(&self, now: BootTime) -> bool {
        self.unreadable_since.is_none_or(|since| now - since >= REBUILD_AFTER)
    }

    /// Whether a shard is moving or free.
    fn is_moving(&self) -> bool {
        let assignment = self.assignment.as_ref().and_then(|known| known.value.as_ref());
        assignment.is_none_or(|value| value.shards.iter().any(|shard| shard.owner.is_none() || shard.next.is_some()))
    }

    fn assigned(&self, shard: Shard) -> Option<&Assigned> {
        self.assignment.as_ref()?.value.as_ref()?.shards.get(shard.index())
    }

    fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// What the own key is to say.
    fn own_value(&self) -> MemberValue {
        let claims = Shard::all().filter_map(|shard| {
            let Held { holding, position, generation } = &self.shards[shard.index()];
            let phase = match holding {
                Holding::None => return None,
                Holding::Claiming | Holding::Owned | Holding::Stopping => Phase::Held,
                Holding::Released => Phase::Released,
            };
            Some(Claim { shard, generation: *generation, phase, position: position.clone() })
        });
        let claims: Vec<Claim> = claims.collect();
        let is_released = claims.iter().all(|claim| claim.phase == Phase::Released);
        let state = match (self.own.is_leaving, is_released) {
            (false, _) => State::Live,
            (true, false) => State::Leaving,
            (true, true) => State::Gone,
        };
        let label = Some(self.settings.label.clone());
        MemberValue { number: self.own.number + 1, state, label, claims, digest: self.digest }
    }

    fn poll_own(&mut self, now: BootTime) -> Option<Write> {
        if !self.may_write_own() || now < self.own.next_at {
            return None;
        }
        let value = self.own_value();
        self.own.number = value.number;
        self.own.next_at = now + RENEW_EVERY;
        let id = self.new_id();
        let claims = value.claims.iter().map(|claim| (claim.shard, claim.generation, claim.phase)).collect();
        self.own.in_flight = Some(Sent { id, number: value.number, at: now, claims, state: value.state });
        Some(Write {
            id,
            key: Key::Member(self.incarnation),
            expected: Some(self.own.revision),
            value: Some(value.encode()),
        })
    }
}
