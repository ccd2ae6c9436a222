//! One run of a scenario.

use std::time::Duration;

use super::{
    outage,
    world::{Event, MemberNode, Shape, World, trace},
};

use crate::{
    BootTime, Stream,
    mutants::Mutant,
    time::{MILLISECOND, SECOND},
    wire::Destination,
};

/// How long disturbances happen.
const CHAOS: Duration = Duration::from_secs(24);
/// How long recovery may take.
const RECOVERY: Duration = Duration::from_secs(90);
/// How long it may take until the last doubt is over.
const DOUBT: Duration = Duration::from_secs(610);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub(super) enum Scenario {
    /// Members join and leave gracefully. Data is lost, and short runs of control messages.
    Graceful,
    /// Members crash, stall and lose their connections; publishers crash.
    Crashes,
    /// The same, and the proxy is killed and started again.
    Restarts,
    /// The same, and publishers retain little.
    LittleMemory,
    /// Members of several versions join and leave gracefully.
    Versions,
    /// As with restarts of the proxy, with a single active member.
    SingleActive,
    /// Members join and leave gracefully, with a single active member.
    SingleActiveGraceful,
    /// All parties are cut off for up to five minutes and return within two seconds of each other.
    Outage,
    /// Some parties are cut off and return in any order, and members crash meanwhile.
    PartialOutage,
    /// An outage of all parties, and publishers retain little.
    OutageLittleMemory,
    /// The same of some parties, and members crash meanwhile.
    PartialOutageLittleMemory,
}

impl Scenario {
    /// Whether nothing crashes or is slow.
    fn is_graceful(self) -> bool {
        matches!(self, Scenario::Graceful | Scenario::Versions | Scenario::SingleActiveGraceful)
    }

    fn restarts(self) -> bool {
        matches!(self, Scenario::Restarts | Scenario::LittleMemory | Scenario::SingleActive)
    }

    pub(super) fn is_outage(self) -> bool {
        use Scenario::{Outage, OutageLittleMemory, PartialOutage, PartialOutageLittleMemory};
        matches!(self, Outage | PartialOutage | OutageLittleMemory | PartialOutageLittleMemory)
    }

    /// Whether an outage cuts off all parties together, and nothing crashes.
    pub(super) fn is_of_all(self) -> bool {
        matches!(self, Scenario::Outage | Scenario::OutageLittleMemory)
    }

    fn has_little_memory(self) -> bool {
        use Scenario::{LittleMemory, OutageLittleMemory, PartialOutageLittleMemory};
        matches!(self, LittleMemory | OutageLittleMemory | PartialOutageLittleMemory)
    }

    pub(super) fn test(self) -> &'static str {
        match self {
            Scenario::Graceful => "graceful_changes",
            Scenario::Crashes => "crashes_and_stalls",
            Scenario::Restarts => "proxy_restarts",
            Scenario::LittleMemory => "little_memory",
            Scenario::Versions => "mixed_versions",
            Scenario::SingleActive => "single_active_takeover",
            Scenario::SingleActiveGraceful => "single_active_graceful",
            Scenario::Outage => "outage_of_all",
            Scenario::PartialOutage => "partial_outage",
            Scenario::OutageLittleMemory => "outage_with_little_memory",
            Scenario::PartialOutageLittleMemory => "partial_outage_little_memory",
        }
    }
}

pub(super) struct Outcome {
    pub(super) verdict: Result<(), String>,
    pub(super) sums: RunSums,
    pub(super) trace: Vec<String>,
}

/// The statistics of a run.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RunSums {
    pub(super) acts: u64,
    pub(super) requests: u64,
    pub(super) given_up: u64,
    pub(super) unknown: u64,
    /// Of these, sent or counted before.
    pub(super) unknown_wrongly: u64,
    pub(super) duplicates: u64,
    pub(super) rejected_joins: u64,
    pub(super) checked_destinations: u64,
    /// From the end of all disturbances until shards are evenly owned and everything is committed.
    pub(super) recovered_after: Duration,
}

pub(super) fn run(seed: u64, scenario: Scenario, mutant: Option<Mutant>, tracing: bool) -> Outcome {
    let shape = Shape {
        retain_bytes: match scenario {
            Scenario::LittleMemory => 40 << 10,
            // Longer than a lease, shorter than most outages.
            Scenario::OutageLittleMemory | Scenario::PartialOutageLittleMemory => 120 << 10,
            _ => 64 << 20,
        },
        repair_bytes_per_second: 400 << 10,
        shards: 12,
        records: 1..5,
        bytes: 20..400,
        pause: if scenario.is_outage() { MILLISECOND..120 * MILLISECOND } else { MILLISECOND..40 * MILLISECOND },
        start_age: if scenario.is_outage() { 10 * SECOND } else { 600 * SECOND },
        versions: scenario == Scenario::Versions,
        single_active: matches!(scenario, Scenario::SingleActive | Scenario::SingleActiveGraceful),
        roomy: false,
        mutant,
        slow_work: !scenario.is_graceful(),
        tracing,
        traced_shard: 1,
    };
    let mut world = World::new(seed, shape);
    world.start_proxy();
    for _ in 0..1 + world.random.index(3) {
        world.start_publisher();
    }
    for _ in 0..1 + world.random.index(4) {
        world.start_member();
    }
    let mut proxy_down_until = None;
    if scenario.is_outage() {
        outage::disturb(&mut world, scenario);
    } else {
        world.at(BootTime::ZERO + SECOND, Event::Chaos);
    }
    while !scenario.is_outage() && world.run_until(BootTime::ZERO + CHAOS) {
        let pause = world.random.millis(100..1500);
        world.at(world.time + pause, Event::Chaos);
        match proxy_down_until {
            Some(until) if world.time >= until => {
                world.start_proxy();
                proxy_down_until = None;
            }
            None if scenario.restarts() && world.random.once_in(12) => {
                world.kill_proxy();
                proxy_down_until = Some(world.time + world.random.millis(50..3000));
            }
            _ => disturb(&mut world, scenario),
        }
    }
    let recovered_after = recover(&mut world, proxy_down_until.is_some());
    let verdict = match world.failure.take() {
        Some(failure) => Err(format!("seed {seed}: {failure}")),
        None => judge(&world, scenario).map_err(|failure| format!("seed {seed}: {failure}")),
    };
    if let Err(failure) = &verdict {
        for (index, node) in world.members.iter().enumerate().filter(|(_, node)| node.alive) {
            let line = format!("member {index} leaving {} {:?}", node.leaving, node.machine);
            world.trace.extend(tracing.then_some(line));
        }
        if let Some(proxy) = &world.proxy {
            world.trace.push(format!("{:?}", proxy.groups(world.time)));
        }
        trace!(world, "{failure}");
    }
    let counted = world.ledger.sums(|_| true).0;
    let sums = RunSums {
        acts: world.acts,
        requests: world.requests,
        given_up: world.ledger.given_up,
        unknown: counted.unknown,
        unknown_wrongly: counted.unknown_wrongly,
        duplicates: counted.duplicates,
        rejected_joins: world.proxy.as_ref().map_or(0, |proxy| proxy.rejections().joins),
        checked_destinations: world.checked_destinations,
        recovered_after,
    };
    Outcome { verdict, sums, trace: std::mem::take(&mut world.trace) }
}

fn disturb(world: &mut World, scenario: Scenario) {
    let time = world.time;
    let graceful = scenario.is_graceful();
    let staying: Vec<usize> =
        (0..world.members.len()).filter(|&index| world.members[index].alive && !world.members[index].leaving).collect();
    if let Some(&member) = staying.first()
        && world.random.once_in(8)
    {
        return world.change_destinations(member);
    }
    let Some(&member) = staying.get(world.random.index(staying.len().max(1))) else {
        world.start_member();
        return;
    };
    let publisher = world.random.index(world.publishers.len());
    let run = world.random.millis(20..1200);
    match world.random.within(0..if graceful { 6 } else { 12 }) {
        0 | 1 if staying.len() < 7 => drop(world.start_member()),
        2 if staying.len() > 1 => world.leave(member),
        3 => {
            trace!(world, "data to member {member} is lost for {} ms", run.as_millis());
            world.members[member].data.loses_until = time + run;
        }
        4 if time > world.members[member].control.0.loses_until + 2 * SECOND => {
            trace!(world, "control to and from member {member} is lost for {} ms", run.as_millis());
            let (up, down) = &mut world.members[member].control;
            (up.loses_until, down.loses_until) = (time + run, time + run);
        }
        5 if time > world.publishers[publisher].control.0.loses_until + 3 * SECOND => {
            trace!(world, "control from publisher {publisher} is lost for {} ms", run.as_millis());
            world.publishers[publisher].control.0.loses_until = time + run;
        }
        6 => world.kill_member(member),
        7 => {
            trace!(world, "member {member} stalls for {} ms", 6 * run.as_millis());
            world.members[member].stalled_until = time + 6 * run;
        }
        8 => {
            trace!(world, "member {member} is cut off for {} ms", 5 * run.as_millis());
            let (up, down) = &mut world.members[member].control;
            up.loses_until = time + 5 * run;
            down.loses_until = time + 5 * run;
        }
        9 => {
            trace!(world, "control to member {member} is slow, and then from it lost");
            let (up, down) = &mut world.members[member].control;
            down.slow_until = time + 5 * run;
            up.loses_until = time + 5 * run;
        }
        10 => {
            trace!(world, "grants to member {member} are slow");
            world.members[member].control.1.slow_until = time + 5 * run;
        }
        11 if world.publishers.len() < 6 && world.random.once_in(3) => {
            trace!(world, "publisher {publisher} is killed");
            let node = &mut world.publishers[publisher];
            (node.alive, node.crashed) = (false, true);
            world.start_publisher();
        }
        _ => {}
    }
}

/// Ends all disturbances and drains the publishers. Returns how long recovery took.
fn recover(world: &mut World, proxy_is_down: bool) -> Duration {
    if proxy_is_down {
        world.start_proxy();
    }
    if !world.members.iter().any(|node| node.alive && !node.leaving) {
        world.start_member();
    }
    let time = world.time;
    for node in &mut world.members {
        node.stalled_until = node.stalled_until.min(time);
    }
    for index in 0..world.publishers.len() {
        if world.publishers[index].alive {
            world.drain(index);
        }
    }
    let mut end = time + RECOVERY;
    let mut recovered_since = None;
    while world.time < end && world.failure.is_none() {
        world.run_until(world.time + 100 * MILLISECOND);
        while world.time < time + DOUBT && has_doubts(world) {
            world.run_until(world.time + 2 * SECOND);
            end = world.time + RECOVERY;
        }
        let drained = world.publishers.iter().all(|node| !node.alive || node.machine.is_drained());
        if !drained
            || uneven(world).is_some()
            || unknown_destination(world).is_some()
            || is_behind(world)
            || has_doubts(world)
        {
            recovered_since = None;
        } else if world.time > *recovered_since.get_or_insert(world.time) + SECOND && world.time > time + 8 * SECOND {
            break;
        }
    }
    recovered_since.unwrap_or(world.time) - time
}

fn judge(world: &World, scenario: Scenario) -> Result<(), String> {
    if let Some((index, _)) =
        world.publishers.iter().enumerate().find(|(_, node)| node.alive && !node.machine.is_drained())
    {
        let (sums, first) = world.ledger.sums(|stream| stream == index);
        return Err(format!("publisher {index} is never drained: {sums:?}, the worst record {first:?}"));
    }
    let (sums, first) = world.ledger.sums(|stream| !world.publishers[stream].crashed);
    if sums.lost_silently > 0 {
        return Err(format!(
            "{} records were never sent and never given up: {sums:?}, the first {first:?}",
            sums.lost_silently
        ));
    }
    if sums.given_up_wrongly > 0 {
        return Err(format!(
            "{} records were counted as lost and sent: {sums:?}, e.g. {first:?}",
            sums.given_up_wrongly
        ));
    }
    if sums.given_up_twice > 0 {
        return Err(format!("{} records were counted as lost twice: {sums:?}, e.g. {first:?}", sums.given_up_twice));
    }
    // What a member handled or counted that was killed before anybody heard of it, or that had a
    // shard before the proxy was killed, is not known to anybody.
    let is_known = world.kills == 0 && world.proxy_run == 1;
    if is_known && sums.unknown > 0 {
        return Err(format!("{} records were counted as unknown: {sums:?}, e.g. {first:?}", sums.unknown));
    }
    if !scenario.has_little_memory() && sums.lost > 0 {
        return Err(format!(
            "{} records were never sent although they were retained: {sums:?}, the first {first:?}",
            sums.lost
        ));
    }
    if (scenario.is_graceful() || scenario.is_of_all()) && sums.duplicates > 0 {
        return Err(format!("{} records were sent twice: the first {first:?}", sums.duplicates));
    }
    if let Some(counts) = uneven(world) {
        return Err(format!("shards are not evenly owned at the end: {counts:?}"));
    }
    if let Some(unknown) = unknown_destination(world) {
        return Err(unknown);
    }
    if has_doubts(world) {
        return Err(format!("records are in doubt forever: {sums:?}, the worst record {first:?}"));
    }
    if is_behind(world) {
        return Err(format!("a member never receives everything: {sums:?}, the worst record {first:?}"));
    }
    judge_protocol(world)?;
    let repaired: u64 = world.publishers.iter().map(|node| node.machine.retransmitted_bytes()).sum();
    let most = world.publishers.len() as u64
        * ((world.time - BootTime::ZERO).as_secs() + 1)
        * (world.shape.repair_bytes_per_second + 4096);
    if repaired > most {
        return Err(format!("{repaired} bytes were retransmitted"));
    }
    Ok(())
}

/// How many shards the members own, if they are not distributed as they should.
fn uneven(world: &World) -> Option<Vec<usize>> {
    let counts: Vec<usize> = staying(world).map(|node| node.machine.owned().count()).collect();
    if counts.is_empty() {
        return Some(counts);
    }
    if world.shape.single_active {
        let is_one = counts.iter().sum::<usize>() == 64 && counts.contains(&64);
        return (!is_one).then_some(counts);
    }
    let low = 64 / counts.len();
    let high = 64_usize.div_ceil(counts.len());
    let even = counts.iter().sum::<usize>() == 64 && counts.iter().all(|count| (low..=high).contains(count));
    (!even).then_some(counts)
}

/// Whether a member has not received or handled everything. A publisher may also count as drained
/// because the group was unavailable.
fn is_behind(world: &World) -> bool {
    staying(world).any(|node| {
        let status = node.machine.status(node.clock.local(world.time));
        let crashed = |stream: &Stream| world.publishers.iter().any(|node| node.crashed && node.stream == *stream);
        let mut lags = status.streams.iter().filter(|status| !crashed(&status.stream));
        status.outstanding_bytes > 0 || lags.any(|status| status.lag > 0) || !node.machine.has_received_all()
    })
}

/// Whether a member does not count records because a former owner may have handled them.
fn has_doubts(world: &World) -> bool {
    staying(world).any(|node| node.machine.status(node.clock.local(world.time)).in_doubt > 0)
}

/// The members that are in the group and stay.
fn staying(world: &World) -> impl Iterator<Item = &MemberNode> {
    let nodes = world.members.iter().enumerate();
    nodes.filter(|(index, node)| node.alive && !node.leaving && world.is_admitted(*index)).map(|(_, node)| node)
}

/// A publisher that does not filter a destination of a member, long after the last change.
fn unknown_destination(world: &World) -> Option<String> {
    for node in world.publishers.iter().filter(|node| node.alive && node.machine.may_publish()) {
        let unknown = |destination: &&Destination| !node.filter.1.contains(destination);
        if let Some(destination) = staying(world).flat_map(|member| &member.destinations).find(unknown) {
            return Some(format!("{} does not know of {destination:?}", node.stream));
        }
    }
    None
}

/// The group runs the lowest of its members' highest protocols, and each of them speaks it.
fn judge_protocol(world: &World) -> Result<(), String> {
    let highest = staying(world).map(|node| node.protocols.1).min();
    for node in staying(world) {
        let protocol = node.machine.status(node.clock.local(world.time)).protocol;
        if Some(protocol) != highest || protocol < node.protocols.0 {
            return Err(format!("a member that speaks {:?} is in a group of protocol {protocol}", node.protocols));
        }
    }
    Ok(())
}
