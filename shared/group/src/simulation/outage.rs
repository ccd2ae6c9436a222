//! Outages: control and data of any party are cut for up to five minutes, together or apart, with a
//! restart of the proxy and without one.

use std::time::Duration;

use super::{
    run::Scenario,
    world::{World, trace},
};
use crate::{
    BootTime,
    time::{MILLISECOND, SECOND},
};

/// The time until all parties are connected.
const WARM_UP: Duration = Duration::from_secs(8);
/// Between two outages.
const HEALTHY: Duration = Duration::from_secs(10);

/// One or two outages; the last one is over at the end.
pub(super) fn disturb(world: &mut World, scenario: Scenario) {
    world.run_until(BootTime::ZERO + WARM_UP);
    // Shards that have moved are not the same ones that a new coordinator would choose.
    if world.random.once_in(2) {
        world.start_member();
        world.run_until(world.time + WARM_UP);
    }
    for _ in 0..1 + world.random.index(2) {
        let healed_at = cut(world, scenario);
        if scenario.is_of_all() {
            restart_proxy(world, 4 * SECOND);
        } else if world.random.once_in(2) {
            restart_proxy(world, 12 * SECOND);
            crash_and_join(world, healed_at);
        } else {
            // Who had the shards last may be known to nobody.
            crash_and_join(world, healed_at);
            restart_proxy(world, 12 * SECOND);
        }
        world.run_until(healed_at);
        if !scenario.is_of_all() || world.random.once_in(2) {
            let pause = world.random.duration(Duration::ZERO..HEALTHY);
            world.run_until(world.time + pause);
        } else {
            world.run_until(world.time + HEALTHY);
        }
    }
}

/// Cuts the links of some parties. Returns when the last one is healed.
fn cut(world: &mut World, scenario: Scenario) -> BootTime {
    let length = |world: &mut World| match world.random.within(0..6) {
        0 => world.random.duration(60 * SECOND..300 * SECOND),
        1..3 => world.random.duration(10 * SECOND..60 * SECOND),
        _ => world.random.duration(Duration::ZERO..10 * SECOND),
    };
    let time = world.time;
    let all = scenario.is_of_all();
    // While leases run out it is chance who is in time, and some records are sent twice.
    let together = match length(world) {
        length if all && length > SECOND / 2 => length + 6 * SECOND,
        length => length,
    };
    let (cuts_control, cuts_data) = [(true, true), (true, false), (false, true)][world.random.index(3)];
    let mut last = time;
    for party in 0..world.publishers.len() + world.members.len() {
        if !all && world.random.once_in(2) {
            continue;
        }
        let late = world.random.duration(Duration::ZERO..if all { 2 * SECOND } else { 20 * SECOND });
        let until = time + if all || world.random.once_in(2) { together + late } else { length(world) };
        let (cuts_control, cuts_data) =
            if all || world.random.once_in(2) { (cuts_control, cuts_data) } else { (cuts_data, cuts_control) };
        last = last.max(until);
        trace!(world, "party {party} is cut off for {:?}, control {cuts_control}, data {cuts_data}", until - time);
        let (control, data) = match party.checked_sub(world.publishers.len()) {
            None => {
                let node = &mut world.publishers[party];
                (&mut node.control, &mut node.data)
            }
            Some(member) => {
                let node = &mut world.members[member];
                (&mut node.control, &mut node.data)
            }
        };
        if cuts_control {
            (control.0.loses_until, control.1.loses_until) = (until, until);
        }
        if cuts_data {
            data.loses_until = until;
        }
    }
    last
}

/// Half of the time, the proxy is killed within this time.
fn restart_proxy(world: &mut World, within: Duration) {
    if world.random.once_in(2) {
        return;
    }
    let pause = world.random.duration(Duration::ZERO..within);
    world.run_until(world.time + pause);
    world.kill_proxy();
    let pause = world.random.duration(50 * MILLISECOND..5 * SECOND);
    world.run_until(world.time + pause);
    world.start_proxy();
}

/// A member may crash during the outage, and another one may join.
fn crash_and_join(world: &mut World, healed_at: BootTime) {
    if world.random.once_in(3) {
        let pause = world.random.duration(Duration::ZERO..10 * SECOND);
        world.run_until(healed_at.min(world.time + pause));
        let alive: Vec<usize> = (0..world.members.len()).filter(|&index| world.members[index].alive).collect();
        if alive.len() > 1 {
            let member = alive[world.random.index(alive.len())];
            world.kill_member(member);
        }
    }
    if world.random.once_in(3) {
        world.start_member();
    }
}
