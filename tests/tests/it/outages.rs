//! Outages between all parties and the proxy, which is restarted behind them. `make chaos` has the
//! other combinations, at ten times the rate.

use std::time::Duration;

use sekiwake_testkit::netns::namespaces_or_skipped;
use sekiwake_tests::outage::{Account, Outage, OutageSite, Parties, Plane};

const RATE: u64 = 2_000;

/// The account of an outage, or `None` (and the test is skipped) without network namespaces.
fn outage(plane: Plane, seconds: u64, retain: &'static str) -> Option<Account> {
    let duration = Duration::from_secs(seconds);
    let outage = Outage { plane, parties: Parties::All, duration, proxy_restart: true, retain, rate: RATE };
    namespaces_or_skipped().then(|| OutageSite::new().unwrap().run(&outage).unwrap())
}

fn loses_nothing(plane: Plane) {
    let Some(account) = outage(plane, 30, "1GiB") else { return };
    assert_eq!((account.missing, account.counted(), account.unpublished), (0, 0, 0), "{account:?}");
    // What was handled since the last commit that a living party has heard.
    assert!(account.duplicates <= 5 * RATE, "{account:?}");
}

#[test]
fn outage_of_control_loses_nothing() {
    loses_nothing(Plane::Control);
}

#[test]
fn outage_of_data_loses_nothing() {
    loses_nothing(Plane::Data);
}

#[test]
fn outage_of_both_loses_nothing() {
    loses_nothing(Plane::Both);
}

#[test]
fn outage_beyond_the_retention_counts_every_datagram() {
    let Some(account) = outage(Plane::Both, 15, "4MiB") else { return };
    assert!(account.missing > 0, "{account:?}");
    assert_eq!(account.missing, account.counted(), "{account:?}");
}
