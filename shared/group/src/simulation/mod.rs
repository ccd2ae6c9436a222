//! The three machines against each other, in one thread, in a time of its own, from a seed.
//!
//! ```text
//! publishers ──data──▶ proxy ──data──▶ members          each arrow: FIFO, its own delay, loses contiguous runs
//! publishers ◀control▶ proxy ◀control▶ members          a proxy that is down: DEALERs keep what they are given to send
//! ```
//!
//! Joins, leaves, crashes, stalls, lost connections and restarts of the proxy come at random. Each party has a clock with an offset
//! and a rate of its own. What must hold is checked at every act (`check`) and at the end. `TEST_SEKIWAKE_SEEDS=10000` runs
//! so many seeds; `TEST_SEKIWAKE_SEED=17` runs one and prints its trace.

mod catch_up;
mod check;
mod network;
pub(crate) mod random;
mod run;
mod traffic;
mod world;

use run::{RunSums, Scenario, run};

/// Faults that are built in on purpose, to show that the checks find them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutant {
    /// The coordinator gives a shard away before its holder has stopped.
    NoHoldBack,
    /// A member commits what it has delivered, not what is handled.
    CommitBeforeSend,
    /// A member counts its lease from when the grant arrives.
    LeaseFromArrival,
    /// The coordinator shares out what one member is to have.
    Even,
    /// The coordinator gives each shard to the one that works next as soon as it is free.
    ShardByShard,
    /// A publisher acknowledges a list that its capture threads do not filter by yet.
    AcknowledgeUnapplied,
}

pub(crate) fn seeds() -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match (number("TEST_SEKIWAKE_SEED"), number("TEST_SEKIWAKE_SEEDS")) {
        (Some(seed), _) => seed..seed + 1,
        (None, seeds) => 0..seeds.unwrap_or(300),
    }
}

/// Runs a seed; when it fails runs it again for its trace.
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
    again.trace.iter().rev().take(300).rev().for_each(|line| println!("{line}"));
    panic!(
        "{failure}\nscenario {scenario:?}; again with: TEST_SEKIWAKE_SEED={seed} cargo test -p sekiwake-group {}",
        scenario.test()
    );
}

/// Runs all seeds and prints what happened in them.
fn all_must_hold(scenario: Scenario) -> RunSums {
    let (mut all, mut slowest) = (RunSums::default(), 0);
    let seeds = seeds();
    let runs = seeds.end - seeds.start;
    for seed in seeds {
        let sums = must_hold(seed, scenario);
        all.acts += sums.acts;
        all.requests += sums.requests;
        all.given_up += sums.given_up;
        all.refused_joins += sums.refused_joins;
        all.checked_destinations += sums.checked_destinations;
        all.whole_after += sums.whole_after;
        slowest = slowest.max(sums.whole_after);
    }
    println!(
        "{scenario:?}: {runs} seeds, {} acts, {} requests, {} records given up, {} joins refused, {} acts on new destinations; \
         whole again after {:.1} s, at most {:.1} s",
        all.acts,
        all.requests,
        all.given_up,
        all.refused_joins,
        all.checked_destinations,
        all.whole_after as f64 / runs as f64 / 1e9,
        slowest as f64 / 1e9,
    );
    all
}

#[test]
fn graceful_changes_deliver_every_record_exactly_once() {
    all_must_hold(Scenario::Graceful);
}

#[test]
fn crashes_stalls_and_lost_connections_lose_nothing_and_no_two_members_act_on_a_shard() {
    all_must_hold(Scenario::Crashes);
}

#[test]
fn restarts_of_the_proxy_lose_nothing_and_no_two_members_act_on_a_shard() {
    all_must_hold(Scenario::Restarts);
}

#[test]
fn with_little_memory_what_is_lost_is_exactly_what_is_given_up() {
    all_must_hold(Scenario::LittleMemory);
}

#[test]
fn members_of_several_versions_run_the_lowest_of_their_highest_and_one_that_shares_none_is_refused() {
    let sums = all_must_hold(Scenario::Versions);
    assert!(seeds().count() == 1 || sums.refused_joins > 0);
}

#[test]
fn where_one_works_the_others_stand_by_and_nothing_is_lost_when_they_take_over() {
    all_must_hold(Scenario::OneWorks);
}

#[test]
fn where_one_works_a_graceful_change_delivers_every_record_exactly_once() {
    all_must_hold(Scenario::OneWorksGraceful);
}

/// The seeds among the first 200 in which a mutant is found, and what is said of the first.
fn found(mutant: Mutant, scenario: Scenario) -> (usize, Option<String>) {
    let failures: Vec<String> =
        (0..200).filter_map(|seed| run(seed, scenario, Some(mutant), false).verdict.err()).collect();
    (failures.len(), failures.into_iter().next())
}

#[test]
fn a_hand_over_without_hold_back_is_found() {
    let (seeds, first) = found(Mutant::NoHoldBack, Scenario::Graceful);
    assert!(
        seeds > 0 && first.as_ref().is_some_and(|first| first.contains("two members") || first.contains("twice")),
        "{seeds} {first:?}"
    );
}

#[test]
fn shards_that_are_shared_out_where_one_is_to_work_are_found() {
    let (seeds, first) = found(Mutant::Even, Scenario::OneWorksGraceful);
    assert!(seeds > 0 && first.as_ref().is_some_and(|first| first.contains("two members work")), "{seeds} {first:?}");
}

#[test]
fn a_hand_over_shard_by_shard_where_one_is_to_work_is_found() {
    for scenario in [Scenario::OneWorksGraceful, Scenario::OneWorks] {
        let (seeds, first) = found(Mutant::ShardByShard, scenario);
        let says = first.as_ref().is_some_and(|first| first.contains("two members work"));
        assert!(seeds > 0 && says, "{scenario:?} {seeds} {first:?}");
    }
}

#[test]
fn a_commit_before_the_send_is_found() {
    let (seeds, first) = found(Mutant::CommitBeforeSend, Scenario::Crashes);
    assert!(seeds > 0 && first.as_ref().is_some_and(|first| first.contains("never")), "{seeds} {first:?}");
}

#[test]
fn a_lease_counted_from_the_grants_arrival_is_found() {
    let (seeds, first) = found(Mutant::LeaseFromArrival, Scenario::Crashes);
    assert!(seeds > 0 && first.as_ref().is_some_and(|first| first.contains("two members")), "{seeds} {first:?}");
}

#[test]
fn an_acknowledgement_of_a_list_that_is_not_applied_is_found() {
    let (seeds, first) = found(Mutant::AcknowledgeUnapplied, Scenario::Graceful);
    assert!(seeds > 0 && first.as_ref().is_some_and(|first| first.contains("does not know")), "{seeds} {first:?}");
}
