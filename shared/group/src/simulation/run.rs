//! One run of a scenario.

use super::{
    Mutant,
    world::{Event, Shape, World, trace},
};
use crate::{MILLISECOND, SECOND};

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
}

impl Scenario {
    pub(super) fn test(self) -> &'static str {
        match self {
            Scenario::Graceful => "graceful_changes",
            Scenario::Crashes => "crashes_stalls",
            Scenario::Restarts => "restarts_of_the_proxy",
            Scenario::LittleMemory => "with_little_memory",
        }
    }
}

pub(super) struct Outcome {
    pub(super) verdict: Result<(), String>,
    pub(super) trace: Vec<String>,
}

pub(super) fn run(seed: u64, scenario: Scenario, mutant: Option<Mutant>, tracing: bool) -> Outcome {
    let shape = Shape {
        retain_bytes: if scenario == Scenario::LittleMemory { 40 << 10 } else { 64 << 20 },
        repair_bytes_per_second: 400 << 10,
        shards: 12,
        mutant,
        slow_work: scenario != Scenario::Graceful,
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
            None if scenario >= Scenario::Restarts && world.random.once_in(12) => {
                world.kill_proxy();
                proxy_down_until = Some(world.time + world.random.within(50..3000) * MILLISECOND);
            }
            _ => disturb(&mut world, scenario),
        }
    }
    recover(&mut world, proxy_down_until.is_some());
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
    Outcome { verdict, trace: std::mem::take(&mut world.trace) }
}

fn disturb(world: &mut World, scenario: Scenario) {
    let (time, graceful) = (world.time, scenario == Scenario::Graceful);
    let staying: Vec<usize> =
        (0..world.members.len()).filter(|&index| world.members[index].alive && !world.members[index].leaving).collect();
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

/// Everything heals, publishers drain, and the system has the time to become whole.
fn recover(world: &mut World, proxy_is_down: bool) {
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
    let end = time + RECOVERY;
    while world.time < end && world.failure.is_none() {
        world.run_until(world.time + SECOND);
        let drained = world.publishers.iter().all(|node| !node.alive || node.machine.is_drained());
        if drained && world.time > time + 8 * SECOND && uneven(world).is_none() {
            break;
        }
    }
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
    if scenario == Scenario::Graceful && sums.repeated > 0 {
        return Err(format!("{} records were sent twice: the first {first:?}", sums.repeated));
    }
    if let Some(counts) = uneven(world) {
        return Err(format!("shards are not evenly owned at the end: {counts:?}"));
    }
    let repaired: u64 = world.publishers.iter().map(|node| node.machine.repaired_bytes()).sum();
    let most = world.publishers.len() as u64 * (world.time / SECOND + 1) * (world.shape.repair_bytes_per_second + 4096);
    if repaired > most {
        return Err(format!("{repaired} bytes were repaired"));
    }
    Ok(())
}

/// How many shards members own, if that is not even.
fn uneven(world: &World) -> Option<Vec<usize>> {
    let staying = world.members.iter().filter(|node| node.alive && !node.leaving);
    let counts: Vec<usize> = staying.map(|node| node.machine.owned().count()).collect();
    let (low, high) = (64 / counts.len(), 64_usize.div_ceil(counts.len()));
    let even = counts.iter().sum::<usize>() == 64 && counts.iter().all(|count| (low..=high).contains(count));
    (!even).then_some(counts)
}
