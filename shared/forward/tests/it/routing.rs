//! Filters, rates, pools, and rewritten payloads.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

use sekiwake_testkit::wait::wait_for;

use crate::rig::*;

fn from(source: &str, payload: &str) -> Sample {
    Sample { source: source.parse().unwrap(), payload: payload.as_bytes().to_vec() }
}

fn texts(payloads: Vec<Vec<u8>>) -> Vec<String> {
    payloads.into_iter().map(|payload| String::from_utf8(payload).unwrap()).collect()
}

/// Sorted, because the order holds per source only.
fn sorted(payloads: Vec<Vec<u8>>) -> Vec<String> {
    let mut texts = texts(payloads);
    texts.sort();
    texts
}

#[test]
fn filters_select_and_unmatched_records_are_counted() {
    let rig = Rig::new();
    let (core, core_uri) = loopback_sink();
    let (alarms, alarms_uri) = loopback_sink();
    let destinations = format!(
        "{core_uri}?source=10.0.0.0/8,2001:db8::/32&exclude_source=10.9.0.0/16 {alarms_uri}?min_severity=err&facility=auth,daemon"
    );
    let mut engine = rig.engine(&destinations);
    let all = [
        from("10.0.0.1", "<189>core, notice"),
        from("10.9.0.1", "<35>excluded, but auth.err"),
        from("::ffff:10.0.0.2", "<27>core and daemon.err"),
        from("2001:db8::1", "no priority at all"),
        from("203.0.113.1", "<11>user.err: unmatched"),
        from("198.51.100.1", "<38>auth.info: unmatched"),
    ];
    forward(&mut engine, &all);
    assert_eq!(sorted(arrived(core, 3)), ["<189>core, notice", "<27>core and daemon.err", "no priority at all"]);
    assert_eq!(sorted(arrived(alarms, 2)), ["<27>core and daemon.err", "<35>excluded, but auth.err"]);
    assert_eq!(rig.metric("sekiwake_forward_unmatched_records_total", &["syslog"]), 2.0);
    assert_eq!(rig.skipped(&core_uri, "source"), 3);
    assert_eq!((rig.skipped(&alarms_uri, "facility"), rig.skipped(&alarms_uri, "severity")), (3, 1));
    rig.assert_ledger(&core_uri);
    rig.assert_ledger(&alarms_uri);
    rig.stop();
}

#[test]
fn nothing_is_unmatched_while_one_destination_takes_everything() {
    let rig = Rig::new();
    let (some, some_uri) = loopback_sink();
    let (all, all_uri) = loopback_sink();
    let mut engine = rig.engine(&format!("{some_uri}?format=rfc5424 {all_uri}"));
    forward(&mut engine, &[from("10.0.0.1", "<13>a"), from("10.0.0.1", "<13>1 2003-10-11T22:14:15Z h a p m - b")]);
    assert_eq!(arrived(all, 2).len(), 2);
    assert_eq!(texts(arrived(some, 1)), ["<13>1 2003-10-11T22:14:15Z h a p m - b"]);
    assert_eq!(rig.metric("sekiwake_forward_unmatched_records_total", &[]), 0.0);
    assert_eq!(rig.skipped(&some_uri, "format"), 1);
    rig.stop();
}

#[test]
fn rate_limits_and_counts_the_rest() {
    let rig = Rig::new();
    let (limited, limited_uri) = loopback_sink();
    let (free, free_uri) = loopback_sink();
    let mut engine = rig.engine(&format!("{limited_uri}?rate=100 {free_uri}"));
    let flood = |engine: &mut TestEngine| {
        forward(engine, &samples((0..1000).map(|number| format!("{number}").into_bytes())));
    };
    let started = Instant::now();
    flood(&mut engine);
    thread::sleep(Duration::from_millis(500));
    flood(&mut engine);
    // The bucket is full at first, and then gets a token per 10 ms.
    let most = 101 + started.elapsed().as_millis() as u64 / 10;
    assert_eq!(arrived(free, 2000).len(), 2000);
    rig.assert_ledger(&limited_uri);
    let sent = rig.sent(&limited_uri);
    assert!((140..=most).contains(&sent), "100 at once and half a second of tokens more: {sent} of {most}");
    assert_eq!(rig.dropped(&limited_uri, "rate"), 2000 - sent);
    assert_eq!(arrived(limited, sent as usize).len() as u64, sent);
    rig.stop();
}

/// Two samples of each of these devices.
fn from_devices(count: u32) -> Vec<Sample> {
    let sample = |number: u32| Sample {
        source: IpAddr::from((0x0a00_0000 + number % count).to_be_bytes()),
        payload: format!("{} {}", number % count, number / count).into_bytes(),
    };
    (0..2 * count).map(sample).collect()
}

fn sources(payloads: &[String]) -> BTreeSet<u32> {
    payloads.iter().map(|text| text.split(' ').next().unwrap().parse().unwrap()).collect()
}

#[test]
fn pool_distributes_sources_and_datagrams_arrive_once() {
    let rig = Rig::new();
    let sinks = [loopback_sink(), loopback_sink(), loopback_sink()];
    let members: Vec<&str> = sinks.iter().map(|(_, uri)| uri.trim_start_matches("udp://")).collect();
    let mut engine = rig.engine(&format!("udp://{}", members.join(",")));
    let samples = from_devices(300);
    forward(&mut engine, &samples);
    let labels: Vec<String> = sinks.iter().map(|(_, uri)| uri.clone()).collect();
    wait_for("everything to be sent", PATIENCE, || labels.iter().map(|label| rig.sent(label)).sum::<u64>() == 600)
        .unwrap();
    let arrived: Vec<Vec<String>> = sinks
        .into_iter()
        .zip(&labels)
        .map(|((sink, _), label)| texts(arrived(sink, rig.sent(label) as usize)))
        .collect();
    for (index, payloads) in arrived.iter().enumerate() {
        let own = sources(payloads);
        assert_eq!(payloads.len(), 2 * own.len(), "both datagrams of each source");
        assert!((60..=140).contains(&own.len()), "{}", own.len());
        let elsewhere = arrived.iter().enumerate().filter(|(other, _)| *other != index);
        assert!(elsewhere.flat_map(|(_, payloads)| sources(payloads)).all(|source| !own.contains(&source)));
        rig.assert_ledger(&labels[index]);
    }
    assert_eq!(arrived.iter().map(Vec::len).sum::<usize>(), 600);
    rig.stop();
}

#[test]
fn pool_fails_over_while_a_member_is_down() {
    let rig = Rig::new();
    let (sink, live) = loopback_sink();
    let (gone, dead) = loopback_sink();
    let address = gone.addresses()[0];
    drop(gone);
    let mut engine = rig.engine(&format!("{live},{}", dead.trim_start_matches("udp://")));
    let is = |label: &str, up: f64| rig.metric("sekiwake_forward_up", &[&format!("\"{label}\"")]) == up;
    let samples = from_devices(50);
    wait_for("the dead member to be down", PATIENCE, || {
        forward(&mut engine, &samples);
        is(&dead, 0.0)
    })
    .unwrap();
    // From now on the live member gets everything, and the dead one a copy from time to time.
    wait_for("empty queues", PATIENCE, || rig.queued(&live) + rig.queued(&dead) == 0).unwrap();
    let before = (rig.sent(&live), rig.sent(&dead));
    for _ in 0..10 {
        forward(&mut engine, &samples);
    }
    wait_for("everything to be sent", PATIENCE, || rig.sent(&live) == before.0 + 1000).unwrap();
    assert!(rig.sent(&dead) <= before.1 + 200, "only records queued before it was down, and copies");

    let (returned, _) = sink_on(address);
    wait_for("the dead member to be up", 2 * PATIENCE, || {
        thread::sleep(Duration::from_millis(100));
        forward(&mut engine, &samples);
        is(&dead, 1.0)
    })
    .unwrap();
    wait_for("empty queues", PATIENCE, || rig.queued(&live) + rig.queued(&dead) == 0).unwrap();
    // The report counts all datagrams that have been sent.
    returned.report();
    let at_live = rig.sent(&live);
    let at_returned = returned.received();
    forward(&mut engine, &samples);
    wait_for("the share of the member that returned", PATIENCE, || {
        returned.received() > at_returned && (rig.sent(&live) - at_live) + (returned.received() - at_returned) == 100
    })
    .unwrap();
    rig.assert_ledger(&live);
    rig.assert_ledger(&dead);
    drop(sink);
    rig.stop();
}

#[test]
fn device_address_is_added_on_request() {
    let rig = Rig::new();
    let (plain, plain_uri) = loopback_sink();
    let (with, with_uri) = loopback_sink();
    let mut engine = rig.engine(&format!("{plain_uri} {with_uri}?add_source=true"));
    let message = "<34>1 2003-10-11T22:14:15.003Z host app 1 ID47 - hello";
    forward(&mut engine, &[from("10.0.0.1", message), from("2001:db8::9", "<34>Oct 11 22:14:15 su: hello")]);
    assert_eq!(sorted(arrived(plain, 2)), [message, "<34>Oct 11 22:14:15 su: hello"]);
    let mut with = texts(arrived(with, 2));
    with.sort_by_key(|text| !text.ends_with(" hello") || text.contains("su:"));
    assert_eq!(with[0], message.replace("ID47 -", "ID47 [origin ip=\"10.0.0.1\"]"));
    assert!(with[1].starts_with("<34>1 20"), "{}", with[1]);
    assert!(
        with[1].ends_with(" 2001:db8::9 - - - [origin ip=\"2001:db8::9\"] <34>Oct 11 22:14:15 su: hello"),
        "{}",
        with[1]
    );
    rig.stop();
}
