//! Faults of a cluster of three servers, of members and of the capture. `make chaos` has more of
//! them, at ten times the rate.

use std::time::Duration;

use sekiwake_testkit::netns::namespaces_or_skipped;
use sekiwake_tests::{
    nats::nats_or_skipped,
    servers::{Fault, FaultAccount, ServersSite},
};

const RATE: u64 = 2_000;
/// What a member has handled since its last commit may be handled twice: what arrives while its
/// lease lasts.
const COMMITTED_WITHIN: Duration = Duration::from_secs(3);

/// Lets a fault happen, and checks that nothing is missing and the order of each source is kept.
/// Returns `None` (and the test is skipped) without servers or network namespaces.
fn survive(fault: Fault, seconds: u64) -> Option<FaultAccount> {
    if !namespaces_or_skipped() || !nats_or_skipped() {
        return None;
    }
    let account = ServersSite::new().unwrap().run(fault, Duration::from_secs(seconds), RATE).unwrap();
    println!("{account:?}");
    let FaultAccount { missing, lost, unpublished, out_of_order, .. } = account;
    assert_eq!((missing, lost, unpublished, out_of_order), (0, 0, 0, 0), "{account:?}");
    Some(account)
}

#[test]
fn jetstream_killed_leader_loses_and_doubles_nothing() {
    let Some(account) = survive(Fault::LeaderKilled, 1) else { return };
    assert_eq!(account.duplicates, 0, "{account:?}");
}

#[test]
fn jetstream_suspended_member_of_three_groups_loses_nothing() {
    let Some(account) = survive(Fault::MemberSuspended, 5) else { return };
    assert!(account.duplicates <= RATE * COMMITTED_WITHIN.as_secs(), "{account:?}");
}

#[test]
fn jetstream_capture_cut_off_loses_and_doubles_nothing() {
    let Some(account) = survive(Fault::CaptureCutOff, 5) else { return };
    assert_eq!(account.duplicates, 0, "{account:?}");
}

#[test]
fn jetstream_servers_restarted_in_turn_lose_and_double_nothing() {
    let Some(account) = survive(Fault::RollingRestart, 0) else { return };
    assert_eq!(account.duplicates, 0, "{account:?}");
}
