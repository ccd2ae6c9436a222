//! The proxy's name moves from an address that swallows packets to one that answers.

use std::time::Duration;

use sekiwake_testkit::netns::namespaces_or_skipped;
use sekiwake_tests::outage::OutageSite;

#[test]
fn name_moves_from_an_address_that_swallows_packets() {
    if !namespaces_or_skipped() {
        return;
    }
    // Longer than the connection attempts that the old address leaves open.
    OutageSite::new().unwrap().move_proxy(Duration::from_secs(10), 1_000).unwrap();
}
