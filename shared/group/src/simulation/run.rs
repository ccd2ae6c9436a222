//! One run of a scenario.

use super::{
    Mutant,
    world::{Event, MemberNode, Shape, World, trace},
};
use crate::{MILLISECOND, SECOND, wire::Destination};

/// How long things happen.
const CHAOS: u64 = 24 * SECOND;
/// How long it may take to become whole again.
const RECOVERY: u64 = 40 * SECOND;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub(super) enum Scenario {
    /// Members come and go as they should; data is lost on the way, and small runs of control messages.
    Graceful,
    /// Members crash, stall, lose their connections; publishers crash.
    Crashes,
    /// The same, and the proxy is killed and started again.
    Restarts,
    /// The same, and publishers keep little.
    LittleMemory,
    /// Members of several versions come and go as they should.
    Versions,
    /// As with restarts of the proxy, and one member has all shards.
    OneWorks,
    /// Members come and go as they should, and one has all shards.
    OneWorksGraceful,
}

impl Scenario {
    /// Whether nothing crashes and nothing is slow.
    fn is_graceful(self) -> bool {
        matches!(self, Scenario::Graceful | Scenario::Versions | Scenario::OneWorksGraceful)
    }

    fn restarts(self) -> bool {
        matches!(self, Scenario::Restarts | Scenario::LittleMemory | Scenario::OneWorks)
    }

    pub(super) fn test(self) -> &'static str {
        match self {
            Scenario::Graceful => "graceful_changes",
            Scenario::Crashes => "crashes_stalls",
            Scenario::Restarts => "restarts_of_the_proxy",
            Scenario::LittleMemory => "with_little_memory",
            Scenario::Versions => "members_of_several_versions",
            Scenario::OneWorks => "where_one_works_the_others",
            Scenario::OneWorksGraceful => "where_one_works_a_graceful",
        }
    }
}

pub(super) struct Outcome {
    pub(super) verdict: Result<(), String>,
    pub(super) sums: RunSums,
    pub(super) trace: Vec<String>,
}

/// What happened in a run.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RunSums {
    pub(super) acts: u64,
    pub(super) requests: u64,
    pub(super) given_up: u64,
    pub(super) refused_joins: u64,
    pub(super) checked_destinations: u64,
    /// From the end of all disturbances until shards are even and everything is committed, ns.
    pub(super) whole_after: u64,
}

pub(super) fn run(seed: u64, scenario: Scenario, mutant: Option<Mutant>, tracing: bool) -> Outcome {
    let shape = Shape {
        retain_bytes: if scenario == Scenario::LittleMemory { 40 << 10 } else { 64 << 20 },
        repair_bytes_per_second: 400 << 10,
        shards: 12,
        records: 1..5,
        bytes: 20..400,
        pause: MILLISECOND..40 * MILLISECOND,
        versions: scenario == Scenario::Versions,
        one_works: matches!(scenario, Scenario::OneWorks | Scenario::OneWorksGraceful),
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
    world.at(SECOND, Event::Chaos);
    while world.run_until(CHAOS) {
        let pause = world.random.within(100..1500) * MILLISECOND;
        world.at(world.time + pause, Event::Chaos);
        match proxy_down_until {
            Some(until) if world.time >= until => {
                world.start_proxy();
                proxy_down_until = None;
            }
            None if scenario.restarts() && world.random.once_in(12) => {
                world.kill_proxy();
                proxy_down_until = Some(world.time + world.random.within(50..3000) * MILLISECOND);
            }
            _ => disturb(&mut world, scenario),
        }
    }
    let whole_after = recover(&mut world, proxy_down_until.is_some());
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
    let sums = RunSums {
        acts: world.acts,
        requests: world.requests,
        given_up: world.ledger.given_up,
        refused_joins: world.proxy.as_ref().map_or(0, |proxy| proxy.refusals().joins),
        checked_destinations: world.checked_destinations,
        whole_after,
    };
    Outcome { verdict, sums, trace: std::mem::take(&mut world.trace) }
}

fn disturb(world: &mut World, scenario: Scenario) {
    let (time, graceful) = (world.time, scenario.is_graceful());
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
    let run = world.random.within(20..1200) * MILLISECOND;
    match world.random.within(0..if graceful { 6 } else { 12 }) {
        0 | 1 if staying.len() < 7 => drop(world.start_member()),
        2 if staying.len() > 1 => world.leave(member),
        3 => {
            trace!(world, "data to member {member} is lost for {} ms", run / MILLISECOND);
            world.members[member].data.loses_until = time + run;
        }
        4 if time > world.members[member].control.0.loses_until + 2 * SECOND => {
            trace!(world, "control to and from member {member} is lost for {} ms", run / MILLISECOND);
            let (up, down) = &mut world.members[member].control;
            (up.loses_until, down.loses_until) = (time + run, time + run);
        }
        5 if time > world.publishers[publisher].control.0.loses_until + 3 * SECOND => {
            trace!(world, "control from publisher {publisher} is lost for {} ms", run / MILLISECOND);
            world.publishers[publisher].control.0.loses_until = time + run;
        }
        6 => world.kill_member(member),
        7 => {
            trace!(world, "member {member} stalls for {} ms", 6 * run / MILLISECOND);
            world.members[member].stalled_until = time + 6 * run;
        }
        8 => {
            trace!(world, "member {member} is cut off for {} ms", 5 * run / MILLISECOND);
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

/// Everything heals, publishers drain, and the system has the time to become whole. Gives how much of it was needed.
fn recover(world: &mut World, proxy_is_down: bool) -> u64 {
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
    let (end, mut whole_since) = (time + RECOVERY, None);
    while world.time < end && world.failure.is_none() {
        world.run_until(world.time + 100 * MILLISECOND);
        let drained = world.publishers.iter().all(|node| !node.alive || node.machine.is_drained());
        if !drained || uneven(world).is_some() || unknown_destination(world).is_some() || is_behind(world) {
            whole_since = None;
        } else if world.time > *whole_since.get_or_insert(world.time) + SECOND && world.time > time + 8 * SECOND {
            break;
        }
    }
    whole_since.unwrap_or(world.time) - time
}

fn judge(world: &World, scenario: Scenario) -> Result<(), String> {
    if let Some((index, _)) =
        world.publishers.iter().enumerate().find(|(_, node)| node.alive && !node.machine.is_drained())
    {
        let (sums, first) = world.ledger.sums(|stream| stream == index);
        return Err(format!("publisher {index} is never drained: {sums:?}, the first not once {first:?}"));
    }
    let (sums, first) = world.ledger.sums(|stream| !world.publishers[stream].crashed);
    if sums.lost_unsaid > 0 {
        return Err(format!(
            "{} records were never sent and never given up: {sums:?}, the first {first:?}",
            sums.lost_unsaid
        ));
    }
    if scenario != Scenario::LittleMemory && sums.lost > 0 {
        return Err(format!(
            "{} records were never sent although they were retained: {sums:?}, the first {first:?}",
            sums.lost
        ));
    }
    if scenario.is_graceful() && sums.repeated > 0 {
        return Err(format!("{} records were sent twice: the first {first:?}", sums.repeated));
    }
    if let Some(counts) = uneven(world) {
        return Err(format!("shards are not evenly owned at the end: {counts:?}"));
    }
    if let Some(unknown) = unknown_destination(world) {
        return Err(unknown);
    }
    if is_behind(world) {
        return Err("some member never has all that was published".to_owned());
    }
    judge_protocol(world)?;
    let repaired: u64 = world.publishers.iter().map(|node| node.machine.repaired_bytes()).sum();
    let most = world.publishers.len() as u64 * (world.time / SECOND + 1) * (world.shape.repair_bytes_per_second + 4096);
    if repaired > most {
        return Err(format!("{repaired} bytes were repaired"));
    }
    Ok(())
}

/// How many shards members own, if that is not even, or not all of one where one is to have them.
fn uneven(world: &World) -> Option<Vec<usize>> {
    let counts: Vec<usize> = staying(world).map(|node| node.machine.owned().count()).collect();
    if counts.is_empty() {
        return Some(counts);
    }
    if world.shape.one_works {
        let is_one = counts.iter().sum::<usize>() == 64 && counts.contains(&64);
        return (!is_one).then_some(counts);
    }
    let (low, high) = (64 / counts.len(), 64_usize.div_ceil(counts.len()));
    let even = counts.iter().sum::<usize>() == 64 && counts.iter().all(|count| (low..=high).contains(count));
    (!even).then_some(counts)
}

/// Whether some member has not received or not done what was published. A publisher that drained while the group was away waits for
/// nobody.
fn is_behind(world: &World) -> bool {
    staying(world).any(|node| {
        let status = node.machine.status(node.clock.local(world.time));
        status.outstanding_bytes > 0 || !node.machine.has_received_all()
    })
}

/// The members that stay and are in the group.
fn staying(world: &World) -> impl Iterator<Item = &MemberNode> {
    let nodes = world.members.iter().enumerate();
    nodes.filter(|(index, node)| node.alive && !node.leaving && world.is_admitted(*index)).map(|(_, node)| node)
}

/// A publisher that does not filter what some member sends to, at a time when nothing has changed for long.
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
