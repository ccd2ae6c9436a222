//! Destinations change while datagrams flow.

use sekiwake_forward::Destinations;
use sekiwake_record::Kind;
use sekiwake_testkit::wait::wait_for;

use crate::rig::*;

fn destinations(text: &str) -> Destinations {
    Destinations::parse(Kind::Syslog, text).unwrap()
}

fn numbered(range: std::ops::Range<u32>) -> Vec<Vec<u8>> {
    range.map(|number| number.to_string().into_bytes()).collect()
}

#[test]
fn reload_loses_nothing_of_any_destination() {
    let rig = Rig::new();
    let (stays, stays_uri) = loopback_sink();
    let (goes, goes_uri) = loopback_sink();
    let (comes, comes_uri) = loopback_sink();
    let mut engine = rig.engine(&format!("{stays_uri} {goes_uri}"));
    forward(&mut engine, &samples(numbered(0..5000)));
    engine.apply(&destinations(&format!("{comes_uri} {stays_uri}"))).unwrap();
    forward(&mut engine, &samples(numbered(5000..10_000)));
    assert!(arrived(stays, 10_000) == numbered(0..10_000));
    assert!(arrived(goes, 5000) == numbered(0..5000));
    assert!(arrived(comes, 5000) == numbered(5000..10_000));
    rig.assert_ledger(&stays_uri);
    rig.stop();
}

#[test]
fn counters_continue_when_options_change() {
    let rig = Rig::new();
    let (sink, uri) = loopback_sink();
    let mut engine = rig.engine(&uri);
    forward(&mut engine, &samples(numbered(0..10)));
    for number in 0..200 {
        engine.apply(&destinations(&format!("{uri}?rate={}", 1000 + number))).unwrap();
    }
    forward(&mut engine, &samples(numbered(10..20)));
    wait_for("both parts", PATIENCE, || rig.sent(&uri) == 20).unwrap();
    assert_eq!(arrived(sink, 20).len(), 20);
    engine.apply(&Destinations::default()).unwrap();
    forward(&mut engine, &samples(numbered(0..7)));
    assert_eq!(rig.metric("sekiwake_forward_unmatched_records_total", &[]), 7.0);
    rig.stop();
}
