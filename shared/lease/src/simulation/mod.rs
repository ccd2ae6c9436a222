//! Members of a group against simulated servers, in one thread and in simulated time, from a seed.
//!
//! ```text
//! publishers ──▶ stored stream ──▶ members      keys ◀── compare-and-set, reads ── members
//!                evicts, is deleted and recreated     a leader that is lost; a follower that lags
//! ```
//!
//! Answers come late or never; a write without an answer may be stored, then or later. Reads come
//! from the leader or from a follower that lags by seconds. Members join, leave, are cut off and
//! killed, and stopped and continued, also between a renewal and its answer. Each has a clock with
//! its own offset and rate, and its own speed; it acts some time after the check of its permit. (A
//! member that is stopped between the two still acts when it continues: no lease prevents that.)
//! What must hold is checked at every act, at every stored write, and at the end.
//! `TEST_SEKIWAKE_SEEDS=10000` runs that many seeds; `TEST_SEKIWAKE_SEED=17` runs one and prints
//! its trace.

mod check;
mod random;
mod servers;
mod world;

use self::world::{Scenario, Sums, run};
use crate::mutants::Mutant;

fn seeds() -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match (number("TEST_SEKIWAKE_SEED"), number("TEST_SEKIWAKE_SEEDS")) {
        (Some(seed), _) => seed..seed + 1,
        (None, seeds) => 0..seeds.unwrap_or(2),
    }
}

/// Runs all seeds, and prints sums. Runs a seed that fails again for its trace.
fn all_must_hold(scenario: Scenario) -> Sums {
    let mut all = Sums::default();
    let tracing = std::env::var("TEST_SEKIWAKE_SEED").is_ok();
    for seed in seeds() {
        let run_of = |tracing| run(seed, scenario, None, tracing);
        let mut outcome = run_of(tracing);
        if let Err(failure) = outcome.verdict {
            outcome = run_of(true);
            let lines = if tracing { usize::MAX } else { 200 };
            outcome.trace.iter().rev().take(lines).rev().for_each(|line| println!("{line}"));
            panic!("{failure}\nscenario {scenario:?}, TEST_SEKIWAKE_SEED={seed}");
        }
        outcome.trace.iter().for_each(|line| println!("{line}"));
        all.add(outcome.sums);
    }
    println!("{scenario:?}: {} seeds, {all:?}", seeds().count());
    all
}

#[test]
fn joins_and_leaves_handle_every_record_exactly_once() {
    let sums = all_must_hold(Scenario::Graceful);
    assert!(seeds().count() == 1 || sums.moves > 0 && sums.doubled == 0);
}

#[test]
fn kills_and_stops_lose_nothing_and_shards_have_one_owner() {
    let sums = all_must_hold(Scenario::Crashes);
    assert!(seeds().count() == 1 || sums.gone > 0);
}

#[test]
fn lost_leaders_and_old_answers_move_no_shard_of_a_running_member() {
    let sums = all_must_hold(Scenario::Servers);
    assert!(seeds().count() == 1 || sums.unknown > 0);
}

#[test]
fn faults_of_members_and_servers_together_lose_nothing() {
    all_must_hold(Scenario::All);
}

#[test]
fn evicted_and_recreated_streams_are_counted_exactly() {
    let sums = all_must_hold(Scenario::Evictions);
    assert!(seeds().count() == 1 || sums.lost > 0);
}

#[test]
fn evictions_while_members_are_killed_lose_nothing_uncounted() {
    let sums = all_must_hold(Scenario::EvictionsAndCrashes);
    assert!(seeds().count() == 1 || sums.lost > 0);
}

#[test]
fn single_active_members_take_over_everything_at_once() {
    all_must_hold(Scenario::SingleActive);
}

#[test]
fn foreign_values_are_skipped_and_no_shard_stops() {
    let sums = all_must_hold(Scenario::Foreign);
    assert!(seeds().count() == 1 || sums.unreadable > 0);
}

/// Seeds tried per mutant.
fn mutant_seeds() -> u64 {
    std::env::var("TEST_SEKIWAKE_MUTANT_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(40)
}

/// Every rule is needed: without it the simulation finds a fault. With
/// `TEST_SEKIWAKE_MUTANT_RATES=1` all seeds are run, and the number that finds each mutant is
/// printed.
#[test]
fn mutants_of_the_rules_are_found() {
    let cases: [(Mutant, Scenario); 14] = [
        (Mutant::LeaseFromArrival, Scenario::Crashes),
        (Mutant::GoneAtAnyRevision, Scenario::All),
        (Mutant::GoneTooSoon, Scenario::All),
        (Mutant::NoFreshWatch, Scenario::Servers),
        (Mutant::TakeUnreleased, Scenario::Graceful),
        (Mutant::IgnoreGone, Scenario::Crashes),
        (Mutant::ReleaseUnhandled, Scenario::Graceful),
        (Mutant::CommitDelivered, Scenario::Crashes),
        (Mutant::UnknownIsFailed, Scenario::Servers),
        (Mutant::ForgetPositions, Scenario::Crashes),
        (Mutant::DeleteUnabsorbed, Scenario::Crashes),
        (Mutant::IgnoreCreated, Scenario::Evictions),
        (Mutant::ShardByShard, Scenario::SingleActive),
        (Mutant::CountNoEviction, Scenario::Evictions),
    ];
    let all_seeds = std::env::var("TEST_SEKIWAKE_MUTANT_RATES").is_ok();
    let mut missed = Vec::new();
    for (mutant, scenario) in cases {
        let mut found = (0..mutant_seeds()).filter_map(|seed| {
            let failure = run(seed, scenario, Some(mutant), false).verdict.err()?;
            Some((seed, failure))
        });
        let first = found.next();
        println!("{mutant:?} in {scenario:?}: {first:?}");
        if all_seeds {
            println!("  found by {} of {} seeds", found.count() + usize::from(first.is_some()), mutant_seeds());
        }
        if first.is_none() {
            missed.push(mutant);
        }
    }
    assert!(missed.is_empty(), "{missed:?}");
}
