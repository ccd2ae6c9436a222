//! The simulated members, and a run of a scenario.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use sekiwake_group::{BootTime, Permission, Stream};
use sekiwake_record::{Name, SHARDS, Shard};

use super::{
    check::Ledger,
    random::{Clock, Random},
    servers::{Keys, Servers},
};
use crate::{
    Birth, Entry, Event as Told, Handling, Key, Outcome, Owed, Position, Table, TableSettings, Write,
    mutants::{Mutant, Mutants},
    value::{Assignment, MemberValue, State},
};

/// How long faults happen.
const CHAOS: Duration = Duration::from_secs(24);
/// How long after the faults every shard must have an owner: the silence before a member is
/// declared gone, by the slowest clock, after an outage of one's own, and the writes.
const OWNED_WITHIN: Duration = Duration::from_secs(16);
/// When a run ends.
const END: Duration = Duration::from_secs(60);
/// The most events at one instant.
const MAX_EVENTS_AT_ONCE: u32 = 50_000;
/// The number of shards that have records.
const BUSY: usize = 10;
/// The first of these are silent before the faults end, each from a time of its own: what is
/// evicted of their ends is known from announcements only.
const FALL_SILENT: usize = BUSY / 2;
/// The longest time between the check of a permit and the act, ms. Longer than it takes to send a
/// batch; shorter than what clocks leave of the margin of a lease, which is 0.17 s.
const ACT_WITHIN: u64 = 60;
/// A member takes nothing more while what it has taken needs so long.
const BACKLOG: Duration = Duration::from_millis(1_500);
/// How long a member waits for the outcome of a write.
const TIMEOUT: Duration = Duration::from_millis(900);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scenario {
    /// Members join and leave.
    Graceful,
    /// Members are killed, and stopped and continued.
    Crashes,
    /// The servers lose leaders, answer late, never, or with what was before.
    Servers,
    /// All of that.
    All,
    /// The stored stream evicts batches, and is deleted and created again; members join and leave.
    Evictions,
    /// The same, and members are killed, and stopped and continued.
    EvictionsAndCrashes,
    /// As `All`, in a group with one active member.
    SingleActive,
    /// Another party writes into the keys.
    Foreign,
}

impl Scenario {
    fn crashes(self) -> bool {
        use Scenario::{All, Crashes, EvictionsAndCrashes, SingleActive};
        matches!(self, Crashes | All | EvictionsAndCrashes | SingleActive)
    }

    fn evicts(self) -> bool {
        matches!(self, Scenario::Evictions | Scenario::EvictionsAndCrashes)
    }

    fn loses_leaders(self) -> bool {
        matches!(self, Scenario::Servers | Scenario::All | Scenario::SingleActive)
    }
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sums {
    pub(super) acts: u64,
    pub(super) moves: u64,
    pub(super) gone: u64,
    pub(super) doubled: u64,
    pub(super) lost: u64,
    pub(super) unknown: u64,
    pub(super) unreadable: u64,
    pub(super) rejoined: u64,
}

impl Sums {
    pub(super) fn add(&mut self, other: Sums) {
        let Sums { acts, moves, gone, doubled, lost, unknown, unreadable, rejoined } = other;
        self.acts += acts;
        self.moves += moves;
        self.gone += gone;
        self.doubled += doubled;
        self.lost += lost;
        self.unknown += unknown;
        self.unreadable += unreadable;
        self.rejoined += rejoined;
    }
}

pub(super) struct RunOutcome {
    pub(super) verdict: Result<(), String>,
    pub(super) sums: Sums,
    pub(super) trace: Vec<String>,
}

#[derive(Clone, Debug)]
enum Event {
    Publish,
    Replicate(u64, Keys),
    Chaos,
    Evict,
    Tick(usize),
    ReadArrives(usize),
    ReadFails(usize),
    Answer(usize, Keys),
    WriteArrives(usize, Write, bool),
    Outcome(usize, u64, Outcome),
    Data(usize),
    Work(usize, Delivery),
    Act(usize, Delivery),
}

#[derive(Clone, Debug)]
struct Delivery {
    incarnation: u64,
    shard: Shard,
    generation: u64,
    publisher: usize,
    first: u64,
    to: u64,
}

struct Member {
    table: Table,
    clock: Clock,
    shards: BTreeMap<Shard, Handling>,
    stopping: Vec<Shard>,
    alive: bool,
    leaving: bool,
    stopped_until: BootTime,
    /// It is to be stopped for so long once its next renewal is stored, before it is answered.
    stops_at_renewal: Option<Duration>,
    /// Its requests, and the answers, are lost before.
    cut_until: BootTime,
    /// When it was last stopped or cut off, or had been killed.
    disturbed_at: BootTime,
    waits_for: Vec<u64>,
    reads: bool,
    tick_at: BootTime,
    /// The longest time that a delivery takes while faults happen, ms.
    slowness: u64,
    worked_until: BootTime,
}

struct World {
    time: BootTime,
    at_once: u32,
    order: u64,
    events: BTreeMap<(BootTime, u64), Event>,
    random: Random,
    scenario: Scenario,
    mutant: Option<Mutant>,
    servers: Servers,
    /// Nothing is answered before.
    leader_at: BootTime,
    /// The end of the newest time without a leader.
    outage_end: BootTime,
    lags_until: BootTime,
    /// The revision that the follower has.
    replicated: u64,
    /// When the newest time without a leader began.
    outage_start: BootTime,
    /// Incarnations that others have declared gone.
    declared: BTreeSet<u64>,
    members: Vec<Member>,
    publishers: Vec<Stream>,
    /// When each of the first busy shards falls silent.
    silent_from: Vec<BootTime>,
    /// The stored sequence of the newest batch, by publisher and shard, and the creation time.
    acknowledged: BTreeMap<(usize, usize), (u64, u64)>,
    /// Batches that wait for a leader.
    unsent: Vec<(usize, usize, u64, u32)>,
    ledger: Ledger,
    /// The newest generation that was acted in, by shard, and by which incarnation.
    newest: Vec<(u64, u64)>,
    /// The newest generation in the assignment, by shard.
    assigned: Vec<u64>,
    /// The newest positions in the keys, by shard.
    positions: Vec<Position>,
    crashed: bool,
    failure: Option<String>,
    tracing: bool,
    trace: Vec<String>,
    sums: Sums,
}

macro_rules! trace {
    ($world:expr, $($text:tt)*) => {
        if $world.tracing {
            let line = format!("{:>10.6} {}", ($world.time - BootTime::ZERO).as_secs_f64(), format_args!($($text)*));
            $world.trace.push(line);
        }
    };
}

pub(super) fn run(seed: u64, scenario: Scenario, mutant: Option<Mutant>, tracing: bool) -> RunOutcome {
    let mut world = World::new(seed, scenario, mutant, tracing);
    let verdict = world.run();
    let (doubled, _, _) = world.ledger.sums();
    world.sums.doubled = doubled;
    world.sums.lost = world.ledger.lost;
    for member in &world.members {
        let counters = member.table.counters();
        world.sums.gone += counters.declared_gone;
        world.sums.unknown += counters.unknown;
        world.sums.unreadable += counters.unreadable;
        world.sums.rejoined += counters.rejoined;
    }
    RunOutcome { verdict, sums: world.sums, trace: world.trace }
}

/// Spread over all shards, because the first ones seldom move.
fn busy_shard(index: usize) -> usize {
    (3 + 13 * index) % SHARDS
}

fn at(duration: Duration) -> BootTime {
    BootTime::ZERO + duration
}

impl World {
    fn new(seed: u64, scenario: Scenario, mutant: Option<Mutant>, tracing: bool) -> World {
        let publishers = (0..2).map(|index| Stream::new(&Name::new(&format!("capture-{index}")).unwrap(), 7 + index));
        let mut world = World {
            time: BootTime::ZERO,
            at_once: 0,
            order: 0,
            events: BTreeMap::new(),
            random: Random::new(seed),
            scenario,
            mutant,
            servers: Servers { created: 1, first_sequence: 1, ..Servers::default() },
            leader_at: BootTime::ZERO,
            outage_end: BootTime::ZERO,
            lags_until: BootTime::ZERO,
            replicated: 0,
            outage_start: BootTime::ZERO,
            declared: BTreeSet::new(),
            members: Vec::new(),
            publishers: publishers.collect(),
            silent_from: Vec::new(),
            acknowledged: BTreeMap::new(),
            unsent: Vec::new(),
            ledger: Ledger::default(),
            newest: vec![(0, 0); SHARDS],
            assigned: vec![0; SHARDS],
            positions: vec![Position::default(); SHARDS],
            crashed: false,
            failure: None,
            tracing,
            trace: Vec::new(),
            sums: Sums::default(),
        };
        let chaos = CHAOS.as_millis() as u64;
        world.silent_from = (0..FALL_SILENT).map(|_| at(world.random.millis(chaos / 3..chaos))).collect();
        for _ in 0..world.random.within(1..4) {
            world.join();
        }
        world.push(Duration::from_millis(5), Event::Publish);
        world.push(Duration::from_millis(500), Event::Chaos);
        world
    }

    fn push(&mut self, after: Duration, event: Event) {
        self.push_at(self.time + after, event);
    }

    fn push_at(&mut self, time: BootTime, event: Event) {
        self.order += 1;
        self.events.insert((time, self.order), event);
    }

    fn fail(&mut self, failure: String) {
        trace!(self, "FAILURE {failure}");
        self.failure.get_or_insert(failure);
    }

    fn run(&mut self) -> Result<(), String> {
        let mut is_owned = false;
        while let Some(((time, _), event)) = self.events.pop_first() {
            self.at_once = if time == self.time { self.at_once + 1 } else { 0 };
            if self.at_once > MAX_EVENTS_AT_ONCE {
                return Err(format!("endless at {time:?}: {event:?}"));
            }
            self.time = time;
            if !is_owned && time >= at(CHAOS + OWNED_WITHIN) {
                is_owned = true;
                self.judge_owners()?;
            }
            if time >= at(END) {
                break;
            }
            self.on_event(event);
            if let Some(failure) = self.failure.take() {
                return Err(failure);
            }
        }
        self.judge_end()
    }

    /// Every shard has an owner that takes part, and as many as the others.
    fn judge_owners(&self) -> Result<(), String> {
        let staying: Vec<&Member> = self.members.iter().filter(|member| member.alive && !member.leaving).collect();
        let counts: Vec<usize> = staying.iter().map(|member| member.table.owned().count()).collect();
        let is_right = if self.scenario == Scenario::SingleActive {
            counts.iter().filter(|count| **count > 0).count() == 1
        } else {
            counts.iter().all(|count| (SHARDS / counts.len()..=SHARDS.div_ceil(counts.len())).contains(count))
        };
        let all = counts.iter().sum::<usize>() == SHARDS;
        if is_right && all { Ok(()) } else { Err(format!("shards are owned by {counts:?}")) }
    }

    fn judge_end(&self) -> Result<(), String> {
        let (doubled, both, missing) = self.ledger.sums();
        if let Some((publisher, shard, sequence)) = missing {
            return Err(format!("record {sequence} of publisher {publisher} in shard {shard} was never handled"));
        }
        if !self.crashed && doubled > 0 {
            return Err(format!("{doubled} records were handled twice"));
        }
        if !self.crashed && both > 0 {
            return Err(format!("{both} records were counted as lost and handled, or lost twice"));
        }
        let is_behind =
            self.members.iter().any(|member| member.alive && member.shards.values().any(|shard| !shard.is_idle()));
        if is_behind { Err("a member is behind".to_owned()) } else { Ok(()) }
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Publish => self.publish(),
            Event::Replicate(revision, keys) => {
                if revision >= self.replicated {
                    self.replicated = revision;
                    self.servers.follower = keys;
                }
            }
            Event::Chaos => self.chaos(),
            Event::Evict => self.evict(),
            Event::WriteArrives(member, write, answers) => self.write_arrives(member, write, answers),
            Event::ReadArrives(member) => {
                if self.time < self.members[member].cut_until {
                    return self.push(TIMEOUT, Event::ReadFails(member));
                }
                // A member stays with one server for some seconds.
                let turn = (self.time - BootTime::ZERO).as_secs() / 4 + member as u64;
                let stale = self.scenario != Scenario::Graceful && turn.is_multiple_of(2);
                let keys = if stale { self.servers.follower.clone() } else { self.servers.keys.clone() };
                let delay = self.delay();
                self.push(delay, Event::Answer(member, keys));
            }
            Event::Tick(index)
            | Event::Answer(index, _)
            | Event::ReadFails(index)
            | Event::Outcome(index, ..)
            | Event::Data(index)
            | Event::Work(index, _)
            | Event::Act(index, _) => {
                let Member { alive, stopped_until, .. } = self.members[index];
                if !alive {
                    return;
                }
                if self.time < stopped_until {
                    let event = match event {
                        Event::Tick(_) => {
                            self.members[index].tick_at = stopped_until;
                            event
                        }
                        // It was stopped before the check: no lease covers a stop after it.
                        Event::Act(_, delivery) => Event::Work(index, delivery),
                        event => event,
                    };
                    return self.push_at(stopped_until, event);
                }
                if let Event::Tick(_) = event {
                    if self.time < self.members[index].tick_at {
                        return;
                    }
                    self.members[index].tick_at = BootTime::NEVER;
                }
                self.member_event(index, event);
            }
        }
    }

    fn delay(&mut self) -> Duration {
        if self.scenario != Scenario::Graceful && self.time < at(CHAOS) && self.random.once_in(60) {
            self.random.millis(100..3_000)
        } else {
            self.random.millis(0..6)
        }
    }

    fn publish(&mut self) {
        if self.time < at(CHAOS + Duration::from_secs(20)) {
            let after = self.random.millis(5..60);
            self.push(after, Event::Publish);
            let index = self.random.index(BUSY);
            let is_silent = self.silent_from.get(index).is_some_and(|from| self.time >= *from);
            let index = if is_silent { FALL_SILENT + index } else { index };
            let (publisher, shard) = (self.random.index(2), busy_shard(index));
            let count = self.random.within(1..20) as u32;
            let first = self.ledger.published(publisher, shard, count);
            self.unsent.push((publisher, shard, first, count));
        }
        if self.time >= self.leader_at {
            for (publisher, shard, first, count) in std::mem::take(&mut self.unsent) {
                let sequence = self.servers.append(shard, publisher, first, count);
                self.acknowledged.insert((publisher, shard), (self.servers.created, sequence));
            }
        } else if self.time >= at(CHAOS + Duration::from_secs(20)) {
            self.push(Duration::from_millis(100), Event::Publish);
        }
    }

    fn join(&mut self) {
        let index = self.members.len();
        let clock = Clock::new(&mut self.random);
        let label = Name::new(&format!("member-{index}")).unwrap();
        let mut settings = TableSettings::new(label, self.scenario == Scenario::SingleActive);
        settings.mutants = Mutants(self.mutant);
        let table = Table::new(settings, self.random.number(), clock.local(self.time));
        trace!(self, "member {index} joins as {:016x}", table.incarnation());
        self.members.push(Member {
            table,
            clock,
            shards: BTreeMap::new(),
            stopping: Vec::new(),
            alive: true,
            leaving: false,
            stopped_until: BootTime::ZERO,
            stops_at_renewal: None,
            cut_until: BootTime::ZERO,
            disturbed_at: BootTime::ZERO,
            waits_for: Vec::new(),
            reads: false,
            tick_at: self.time,
            slowness: [10, 40, 300][self.random.index(3)],
            worked_until: BootTime::ZERO,
        });
        self.push(Duration::ZERO, Event::Tick(index));
        self.push(Duration::ZERO, Event::Data(index));
    }

    fn chaos(&mut self) {
        if self.time >= at(CHAOS) {
            return;
        }
        let after = self.random.millis(100..2_500);
        self.push(after, Event::Chaos);
        let staying: Vec<usize> = (0..self.members.len())
            .filter(|&index| self.members[index].alive && !self.members[index].leaving)
            .collect();
        let any = staying[self.random.index(staying.len())];
        match self.random.within(0..10) {
            0 | 1 if staying.len() < 6 => self.join(),
            2 if staying.len() > 1 => {
                trace!(self, "member {any} leaves");
                let now = self.members[any].clock.local(self.time);
                self.members[any].leaving = true;
                self.members[any].table.leave(now);
                self.members[any].tick_at = self.time;
                self.push(Duration::ZERO, Event::Tick(any));
            }
            3 if self.scenario.crashes() && staying.len() > 1 => {
                trace!(self, "member {any} is killed");
                self.members[any].alive = false;
                self.members[any].disturbed_at = self.time;
                self.crashed = true;
            }
            4 if self.scenario.crashes() => {
                let pause = self.random.millis(200..8_000);
                self.stop(any, pause);
            }
            5 if self.scenario.crashes() => {
                self.members[any].stops_at_renewal = Some(self.random.millis(2_000..8_000));
            }
            6 if self.scenario.loses_leaders() && staying.len() > 1 => {
                let time = self.random.millis(500..8_000);
                self.cut(any, time);
            }
            7 if self.scenario.loses_leaders() && self.time >= self.leader_at => {
                self.outage_start = self.time;
                self.leader_at = self.time + self.random.millis(500..9_000);
                self.outage_end = self.leader_at;
                trace!(self, "the leader is lost until {:?}", self.leader_at - BootTime::ZERO);
            }
            8 if self.scenario != Scenario::Graceful => {
                self.lags_until = self.time + self.random.millis(500..6_000);
                trace!(self, "the follower lags until {:?}", self.lags_until - BootTime::ZERO);
            }
            9 if self.scenario.evicts() => self.evict(),
            5 | 6 if self.scenario.evicts() => {
                // What the member has not read. Others do not declare it gone in so short a time.
                let time = self.random.millis(200..2_000);
                self.cut(any, time);
                self.push(time.mul_f64(0.9), Event::Evict);
            }
            9 if self.scenario == Scenario::Foreign => self.write_foreign(),
            _ => {}
        }
    }

    fn stop(&mut self, index: usize, pause: Duration) {
        trace!(self, "member {index} is stopped for {pause:?}");
        let member = &mut self.members[index];
        member.stopped_until = self.time + pause;
        member.disturbed_at = member.disturbed_at.max(self.time + pause);
        self.crashed = true;
    }

    fn cut(&mut self, index: usize, time: Duration) {
        trace!(self, "member {index} is cut off for {time:?}");
        let member = &mut self.members[index];
        member.cut_until = self.time + time;
        member.disturbed_at = member.disturbed_at.max(self.time + time);
    }

    /// The stored stream loses its beginning, or everything.
    fn evict(&mut self) {
        if self.random.once_in(3) {
            trace!(self, "the stream is created again");
            self.servers.recreate();
        } else {
            // Half the time everything, past the positions of members that are behind.
            let left = if self.random.once_in(2) { 0 } else { self.random.within(1..20) };
            let below = self.servers.last_sequence.saturating_sub(left) + 1;
            trace!(self, "evicted below {below}");
            self.servers.evict(below);
        }
    }

    /// Another party writes something.
    fn write_foreign(&mut self) {
        let garbage: Vec<u8> = (0..self.random.within(0..40)).map(|_| self.random.number() as u8).collect();
        let (name, value) = match self.random.within(0..4) {
            0 => ("a".to_owned(), garbage),
            1 => (format!("m.{:016x}", self.random.number() % 3), garbage),
            2 => (format!("m.{:04x}", self.random.number() % 100), garbage),
            _ => {
                let known = self.servers.keys.get("a").and_then(|(_, value)| Assignment::decode(value).ok());
                let Some(mut assignment) = known else { return };
                let index = self.random.index(SHARDS);
                assignment.shards[index].next = Some(self.random.number());
                ("a".to_owned(), assignment.encode())
            }
        };
        trace!(self, "another party writes {name}");
        self.servers.put(name, value);
        self.replicate();
    }

    fn replicate(&mut self) {
        // While it lags, it stays as it is.
        let lag = (self.lags_until - self.time) + self.random.millis(0..20);
        self.push(lag, Event::Replicate(self.servers.revision, self.servers.keys.clone()));
    }

    fn write_arrives(&mut self, index: usize, write: Write, answers: bool) {
        if self.time < self.members[index].cut_until {
            return;
        }
        if self.time < self.leader_at {
            // It waits for the next leader, or is dropped.
            if self.random.once_in(2) {
                let late = self.leader_at + self.random.millis(0..200);
                self.push_at(late, Event::WriteArrives(index, write, answers));
            }
            return;
        }
        let before = write.key;
        let outcome = self.servers.write(&write);
        if let Outcome::Stored(_) = outcome {
            trace!(self, "{before} of member {index} is stored: {outcome:?}, expected {:?}", write.expected);
            self.replicate();
            self.check_written(index, &write);
            if write.key == Key::Member(self.members[index].table.incarnation())
                && let Some(pause) = self.members[index].stops_at_renewal.take()
                && self.time < at(CHAOS)
            {
                self.stop(index, pause);
            }
        }
        if answers {
            let delay = self.delay();
            self.push(delay, Event::Outcome(index, write.id, outcome));
        }
    }

    /// What must hold of a value that is stored.
    fn check_written(&mut self, index: usize, write: &Write) {
        let Some(value) = &write.value else { return };
        match write.key {
            Key::Assignment => {
                let Ok(assignment) = Assignment::decode(value) else { return };
                for (shard, assigned) in assignment.shards.iter().enumerate() {
                    if assigned.generation > self.assigned[shard] {
                        self.assigned[shard] = assigned.generation;
                        self.check_position(shard, &assigned.position);
                    }
                    let (newest, owner) = self.newest[shard];
                    if assigned.generation > newest && assigned.owner.is_some_and(|assigned| assigned != owner) {
                        self.sums.moves += 1;
                    }
                }
            }
            Key::Member(member) => {
                let Ok(value) = MemberValue::decode(value) else { return };
                for claim in &value.claims {
                    self.positions[claim.shard.index()].merge(&claim.position);
                }
                let declared = self.members.iter().position(|other| other.table.incarnation() == member);
                let Some(declared) = declared.filter(|declared| *declared != index && value.state == State::Gone)
                else {
                    return;
                };
                self.declared.insert(member);
                self.crashed = true;
                if self.random.once_in(2) {
                    // The member may read that it is gone long before it reads the consequences.
                    self.lags_until = self.time + self.random.millis(500..6_000);
                }
                self.check_declared(declared);
            }
        }
    }

    /// A new owner does not begin behind what the keys said.
    fn check_position(&mut self, shard: usize, position: &Position) {
        let known = &self.positions[shard];
        if (position.created, position.sequence) < (known.created, known.sequence) {
            let known = (known.created, known.sequence);
            let now = (position.created, position.sequence);
            self.fail(format!("the position of shard {shard} went back from {known:?} to {now:?}"));
        }
    }

    /// A member is declared gone only if it was disturbed, or its renewals were not stored.
    fn check_declared(&mut self, declared: usize) {
        let member = &self.members[declared];
        let recent = |time: BootTime| time > BootTime::ZERO && self.time - time < Duration::from_secs(5);
        // The write may have waited for a leader, and so may have the renewals.
        let waited = self.time < self.outage_end + Duration::from_secs(3)
            && member.disturbed_at + Duration::from_secs(5) >= self.outage_start;
        let is_disturbed = !member.alive || recent(member.disturbed_at) || self.time < member.stopped_until || waited;
        // Its renewals may have been slow.
        let slow = member.table.lease_until() <= member.clock.local(self.time);
        let was_long = self.outage_end - self.outage_start >= Duration::from_secs(4);
        let had_outage = was_long && self.time < self.outage_end + Duration::from_secs(3);
        if !is_disturbed && (!slow || had_outage) && !member.leaving {
            self.fail(format!("member {declared} was declared gone although it was undisturbed"));
        }
    }

    fn member_event(&mut self, index: usize, event: Event) {
        let now = self.members[index].clock.local(self.time);
        match event {
            Event::Answer(_, keys) => {
                if !self.members[index].reads {
                    return;
                }
                self.members[index].reads = false;
                let entries = keys.iter().map(|(name, (revision, value))| Entry { name, revision: *revision, value });
                self.members[index].table.on_read(now, entries);
            }
            Event::Outcome(_, id, outcome) => {
                let waits = &mut self.members[index].waits_for;
                let Some(waiting) = waits.iter().position(|waiting| *waiting == id) else { return };
                waits.swap_remove(waiting);
                self.members[index].table.on_outcome(now, id, outcome);
            }
            Event::ReadFails(_) => {
                self.members[index].reads = false;
                self.members[index].table.read_failed(now);
            }
            Event::Data(_) => self.read_data(index),
            Event::Work(_, delivery) => self.work(index, delivery),
            Event::Act(_, delivery) => self.act(index, delivery),
            _ => {}
        }
        self.settle(index);
    }

    /// Does what the table wants.
    fn settle(&mut self, index: usize) {
        let now = self.members[index].clock.local(self.time);
        while let Some(told) = self.members[index].table.poll_event() {
            trace!(self, "member {index}: {told:?}");
            let member = &mut self.members[index];
            match told {
                Told::Own { shard, generation, position } => {
                    let mut handling = Handling::new(generation, position);
                    handling.mutants = Mutants(self.mutant);
                    member.shards.insert(shard, handling);
                }
                Told::Stop { shard, .. } => member.stopping.push(shard),
                Told::Revoked { shard, .. } => {
                    member.shards.remove(&shard);
                    member.stopping.retain(|stopping| *stopping != shard);
                }
                Told::Fenced => {
                    let incarnation = self.random.number();
                    let was_declared = self.declared.contains(&member.table.incarnation());
                    member.table.rejoin(now, incarnation);
                    if !was_declared && self.scenario != Scenario::Foreign {
                        self.fail(format!("member {index} began again although nobody declared it gone"));
                    }
                }
            }
        }
        self.stop_shards(index, now);
        let member = &mut self.members[index];
        if member.table.wants_birth(now) {
            let position = Position { created: self.servers.created, ..Position::default() };
            member.table.begin(Birth { position, older: Vec::new(), beginnings: Vec::new() });
        }
        while let Some(write) = self.members[index].table.poll_write(now) {
            self.members[index].waits_for.push(write.id);
            let answers = !(self.scenario.loses_leaders() && self.random.once_in(100));
            self.push(TIMEOUT, Event::Outcome(index, write.id, Outcome::Unknown));
            let delay = self.delay();
            self.push(delay, Event::WriteArrives(index, write, answers));
        }
        let member = &mut self.members[index];
        if member.table.wants_read(now) {
            member.table.read_sent();
            member.reads = true;
            let delay = self.delay();
            self.push(delay, Event::ReadArrives(index));
        }
        let member = &self.members[index];
        if member.leaving && member.table.has_left() {
            trace!(self, "member {index} has left");
            self.members[index].alive = false;
            return;
        }
        let deadline = member.clock.time(member.table.next_deadline()).max(self.time);
        if deadline < member.tick_at {
            self.members[index].tick_at = deadline;
            self.push_at(deadline, Event::Tick(index));
        }
    }

    /// Commits, and releases what is to be stopped and is handled.
    fn stop_shards(&mut self, index: usize, now: BootTime) {
        let Member { table, shards, stopping, .. } = &mut self.members[index];
        for (shard, handling) in shards.iter() {
            table.commit(*shard, handling.generation(), handling.committed());
        }
        let (idle, busy): (Vec<Shard>, Vec<Shard>) =
            stopping.iter().partition(|shard| shards.get(shard).is_none_or(Handling::is_idle));
        *stopping = busy;
        for shard in idle {
            if let Some(handling) = shards.remove(&shard) {
                table.stopped(now, shard, handling.generation(), handling.committed());
            }
        }
    }

    /// Takes stored batches of the member's shards.
    fn read_data(&mut self, index: usize) {
        self.push(Duration::from_millis(20), Event::Data(index));
        if self.time < self.members[index].cut_until {
            return;
        }
        let slowness = if self.time < at(CHAOS) { self.members[index].slowness } else { 10 };
        let Member { table, shards, stopping, worked_until, .. } = &mut self.members[index];
        let (servers, ledger) = (&self.servers, &mut self.ledger);
        let mut worked = (*worked_until).max(self.time);
        let mut work = Vec::new();
        let mut lost_wrongly = false;
        for (shard, handling) in shards.iter_mut().filter(|(shard, _)| !stopping.contains(shard)) {
            let index = shard.index();
            let mut after = handling.read_after(servers.created, servers.last_sequence);
            while worked < self.time + BACKLOG
                && let Some(stored) = servers.next(index, after)
            {
                after = stored.sequence;
                let stream = &self.publishers[stored.publisher];
                let taken = handling.take(servers.created, after, stream, stored.first, stored.count, Owed::From(0));
                if taken.missing > 0 {
                    let from = taken.missing_from;
                    lost_wrongly |= servers.retains(index, stored.publisher, from, from + taken.missing);
                    ledger.lost(stored.publisher, index, from, from + taken.missing);
                }
                if taken.new > 0 {
                    let first = stored.first + u64::from(taken.skip);
                    worked += self.random.millis(0..slowness);
                    let delivery = Delivery {
                        incarnation: table.incarnation(),
                        shard: *shard,
                        generation: handling.generation(),
                        publisher: stored.publisher,
                        first,
                        to: stored.first + u64::from(stored.count),
                    };
                    work.push((worked, delivery));
                }
            }
            for (publisher, stream) in self.publishers.iter().enumerate() {
                let Some(&(created, sequence)) = self.acknowledged.get(&(publisher, index)) else { continue };
                let is_past = created < servers.created || sequence < servers.first_sequence || sequence <= after;
                let waits = self.unsent.iter().any(|unsent| (unsent.0, unsent.1) == (publisher, index));
                if is_past && !waits {
                    let next = ledger.next(publisher, index);
                    let taken = handling.announced(stream, next, Owed::From(0));
                    if taken.missing > 0 {
                        let from = taken.missing_from;
                        lost_wrongly |= servers.retains(index, publisher, from, from + taken.missing);
                        ledger.lost(publisher, index, taken.missing_from, taken.missing_from + taken.missing);
                    }
                }
            }
        }
        if lost_wrongly {
            self.failure.get_or_insert("records were counted as lost although they are retained".to_owned());
        }
        *worked_until = worked;
        for (time, delivery) in work {
            self.push_at(time, Event::Work(index, delivery));
        }
    }

    /// Checks whether the permit allows it to act on a delivery.
    fn work(&mut self, index: usize, delivery: Delivery) {
        let member = &self.members[index];
        if member.table.incarnation() != delivery.incarnation {
            return;
        }
        let Delivery { shard, generation, .. } = delivery;
        match member.table.permit().may_act(shard, generation, member.clock.local(self.time)) {
            Permission::Lapsed => return self.push(Duration::from_millis(50), Event::Work(index, delivery)),
            Permission::Revoked => return,
            Permission::Granted => {}
        }
        let after = self.random.millis(0..ACT_WITHIN);
        self.push(after, Event::Act(index, delivery));
    }

    /// Acts on a delivery, after the check.
    fn act(&mut self, index: usize, delivery: Delivery) {
        let Delivery { incarnation, shard, generation, publisher, first, to } = delivery;
        let acting = (generation, incarnation);
        let handling = self.members[index].shards.get_mut(&shard);
        if let Some(handling) = handling.filter(|handling| handling.generation() == generation) {
            handling.handled(&self.publishers[publisher], first);
        }
        self.ledger.acted(publisher, shard.index(), first, to);
        self.sums.acts += 1;
        let (newest, owner) = self.newest[shard.index()];
        if generation < newest || generation == newest && owner != acting.1 && newest > 0 {
            self.fail(format!("shard {shard:?} has two owners: member {index} acts in {generation}, after {newest}"));
        }
        self.newest[shard.index()] = acting;
        if self.scenario == Scenario::SingleActive {
            self.check_single(index);
        }
    }

    /// While a member of a single-active group acts, no other one may.
    fn check_single(&mut self, index: usize) {
        let others = self.members.iter().enumerate().filter(|(other, member)| *other != index && member.alive);
        let active = others.filter(|(_, member)| {
            let now = member.clock.local(self.time);
            let is_stopped = self.time < member.stopped_until;
            !is_stopped && now < member.table.lease_until() && member.table.owned().next().is_some()
        });
        let active: Vec<usize> = active.map(|(other, _)| other).collect();
        if !active.is_empty() {
            self.fail(format!("two members are active: {index} and {active:?}"));
        }
    }
}
