//! The three machines against each other, in one thread and in simulated time, from a seed.
//!
//! ```text
//! publishers ──data──▶ proxy ──data──▶ members          each arrow: in order, its own delay, loses contiguous runs
//! publishers ◀control▶ proxy ◀control▶ members          while the proxy is stopped, DEALERs queue what they send
//! ```
//!
//! Joins, leaves, crashes, stalls, lost connections and restarts of the proxy happen at random.
//! Each party has a clock with its own offset and rate. The guarantees are checked at every act
//! (`check`) and at the end. `TEST_SEKIWAKE_SEEDS=10000` runs that many seeds;
//! `TEST_SEKIWAKE_SEED=17` runs one and prints its trace.

mod catch_up;
mod check;
mod network;
mod outage;
pub(crate) mod random;
mod run;
mod traffic;
mod world;

use std::time::Duration;

use self::run::{RunSums, Scenario, run};
use crate::mutants::Mutant;

pub(crate) fn seeds() -> std::ops::Range<u64> {
    seeds_or(300)
}

/// The seeds to run, `default` of them if the environment says nothing.
fn seeds_or(default: u64) -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match (number("TEST_SEKIWAKE_SEED"), number("TEST_SEKIWAKE_SEEDS")) {
        (Some(seed), _) => seed..seed + 1,
        (None, seeds) => 0..seeds.unwrap_or(default),
    }
}

/// Runs a seed. If it fails, runs it again for its trace.
fn must_hold(seed: u64, scenario: Scenario) -> RunSums {
    let tracing = std::env::var("TEST_SEKIWAKE_SEED").is_ok();
    let outcome = run(seed, scenario, None, tracing);
    let Err(failure) = outcome.verdict else {
        if tracing {
            outcome.trace.iter().for_each(|line| println!("{line}"));
        }
        return outcome.sums;
    };
    let again = run(seed, scenario, None, true);
    let lines = if tracing { usize::MAX } else { 300 };
    again.trace.iter().rev().take(lines).rev().for_each(|line| println!("{line}"));
    panic!(
        "{failure}\nscenario {scenario:?}; again with: TEST_SEKIWAKE_SEED={seed} cargo test -p sekiwake-group {}",
        scenario.test()
    );
}

/// Runs all seeds, and prints sums.
fn all_must_hold(scenario: Scenario) -> RunSums {
    let mut all = RunSums::default();
    let mut slowest = Duration::ZERO;
    // Outages are long.
    let seeds = if scenario.is_outage() { seeds_or(16) } else { seeds() };
    let runs = seeds.end - seeds.start;
    for seed in seeds {
        let sums = must_hold(seed, scenario);
        all.acts += sums.acts;
        all.requests += sums.requests;
        all.given_up += sums.given_up;
        all.unknown += sums.unknown;
        all.unknown_wrongly += sums.unknown_wrongly;
        all.duplicates += sums.duplicates;
        all.rejected_joins += sums.rejected_joins;
        all.checked_destinations += sums.checked_destinations;
        all.recovered_after += sums.recovered_after;
        slowest = slowest.max(sums.recovered_after);
    }
    println!(
        "{scenario:?}: {runs} seeds, {} acts, {} requests, {} records given up, {} of them unknown, of which {} sent or counted before, {} sent twice, {} joins rejected, {} acts on new destinations; \
         recovered after {:.1} s, at most {:.1} s",
        all.acts,
        all.requests,
        all.given_up,
        all.unknown,
        all.unknown_wrongly,
        all.duplicates,
        all.rejected_joins,
        all.checked_destinations,
        all.recovered_after.as_secs_f64() / runs as f64,
        slowest.as_secs_f64(),
    );
    all
}

#[test]
fn graceful_changes_deliver_every_record_exactly_once() {
    all_must_hold(Scenario::Graceful);
}

#[test]
fn crashes_and_stalls_lose_nothing_and_shards_have_one_owner() {
    all_must_hold(Scenario::Crashes);
}

#[test]
fn proxy_restarts_lose_nothing_and_shards_have_one_owner() {
    all_must_hold(Scenario::Restarts);
}

#[test]
fn little_memory_loses_exactly_what_is_given_up() {
    all_must_hold(Scenario::LittleMemory);
}

#[test]
fn mixed_versions_run_their_lowest_highest_protocol() {
    let sums = all_must_hold(Scenario::Versions);
    assert!(seeds().count() == 1 || sums.rejected_joins > 0);
}

#[test]
fn single_active_takeover_loses_nothing() {
    all_must_hold(Scenario::SingleActive);
}

#[test]
fn single_active_graceful_changes_deliver_exactly_once() {
    all_must_hold(Scenario::SingleActiveGraceful);
}

#[test]
fn outage_of_all_parties_loses_nothing_and_doubles_nothing() {
    all_must_hold(Scenario::Outage);
}

#[test]
fn partial_outage_loses_nothing_in_any_order_of_return() {
    all_must_hold(Scenario::PartialOutage);
}

#[test]
fn outage_with_little_memory_loses_exactly_what_is_given_up() {
    all_must_hold(Scenario::OutageLittleMemory);
}

#[test]
fn partial_outage_little_memory_loses_exactly_what_is_given_up() {
    all_must_hold(Scenario::PartialOutageLittleMemory);
}

/// How many of the first 200 seeds find a mutant, and the failure of the first.
fn found(mutant: Mutant, scenario: Scenario) -> (usize, Option<String>) {
    let failures: Vec<String> =
        (0..200).filter_map(|seed| run(seed, scenario, Some(mutant), false).verdict.err()).collect();
    (failures.len(), failures.into_iter().next())
}

#[test]
fn grant_before_the_release_is_found() {
    let (seeds, first) = found(Mutant::NoHoldBack, Scenario::Graceful);
    assert!(
        seeds > 0 && first.as_ref().is_some_and(|first| first.contains("two members") || first.contains("twice")),
        "{seeds} {first:?}"
    );
}

#[test]
fn distributed_shards_of_a_single_active_group_are_found() {
    let (seeds, first) = found(Mutant::Even, Scenario::SingleActiveGraceful);
    assert!(
        seeds > 0 && first.as_ref().is_some_and(|first| first.contains("two members are active")),
        "{seeds} {first:?}"
    );
}

#[test]
fn single_active_handover_shard_by_shard_is_found() {
    for scenario in [Scenario::SingleActiveGraceful, Scenario::SingleActive] {
        let (seeds, first) = found(Mutant::ShardByShard, scenario);
        let is_found = first.as_ref().is_some_and(|first| first.contains("two members are active"));
        assert!(seeds > 0 && is_found, "{scenario:?} {seeds} {first:?}");
    }
}

#[test]
fn commit_before_the_send_is_found() {
    let (seeds, first) = found(Mutant::CommitBeforeSend, Scenario::Crashes);
    assert!(seeds > 0 && first.as_ref().is_some_and(|first| first.contains("never")), "{seeds} {first:?}");
}

#[test]
fn lease_counted_from_the_arrival_of_the_grant_is_found() {
    let (seeds, first) = found(Mutant::LeaseFromArrival, Scenario::Crashes);
    assert!(seeds > 0 && first.as_ref().is_some_and(|first| first.contains("two members")), "{seeds} {first:?}");
}

#[test]
fn acknowledgement_of_an_unapplied_list_is_found() {
    let (seeds, first) = found(Mutant::AcknowledgeUnapplied, Scenario::Graceful);
    assert!(seeds > 0 && first.as_ref().is_some_and(|first| first.contains("does not know")), "{seeds} {first:?}");
}

/// The failure of the first seed that finds a mutant.
fn first_found(mutant: Mutant, scenario: Scenario) -> Option<String> {
    (0..300).find_map(|seed| run(seed, scenario, Some(mutant), false).verdict.err())
}

#[test]
fn refusal_of_late_positions_is_found() {
    let first = first_found(Mutant::RefuseLate, Scenario::Outage);
    assert!(first.as_ref().is_some_and(|first| first.contains("twice") || first.contains("never")), "{first:?}");
}

#[test]
fn settling_by_the_clock_of_the_coordinator_is_found() {
    let first = first_found(Mutant::SettleByClock, Scenario::Outage);
    assert!(first.as_ref().is_some_and(|first| first.contains("twice")), "{first:?}");
}

#[test]
fn newest_range_instead_of_the_union_is_found() {
    let first = first_found(Mutant::Newest, Scenario::PartialOutage);
    assert!(first.as_ref().is_some_and(|first| first.contains("never")), "{first:?}");
}

#[test]
fn guessed_start_taken_for_known_is_found() {
    let first = first_found(Mutant::GuessIsKnown, Scenario::PartialOutage);
    assert!(first.as_ref().is_some_and(|first| first.contains("never")), "{first:?}");
}

#[test]
fn loss_counted_in_spite_of_a_former_owner_is_found() {
    for scenario in [Scenario::LittleMemory, Scenario::PartialOutageLittleMemory] {
        let first = first_found(Mutant::NoDoubts, scenario);
        assert!(first.as_ref().is_some_and(|first| first.contains("counted as lost and sent")), "{first:?}");
    }
}

#[test]
fn position_clamped_to_a_stale_announcement_is_found() {
    let first = first_found(Mutant::Clamp, Scenario::Graceful);
    assert!(first.as_ref().is_some_and(|first| first.contains("twice")), "{first:?}");
}
