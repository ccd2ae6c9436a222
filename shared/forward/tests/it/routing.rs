//! What goes where: filters, rates, pools, and what is changed on the way.

use std::{collections::BTreeSet, net::IpAddr, thread, time::Duration};

use sekiwake_testkit::wait::wait_for;

use crate::rig::*;

fn from(source: &str, payload: &str) -> Sample {
    Sample { source: source.parse().unwrap(), payload: payload.as_bytes().to_vec() }
}

fn texts(payloads: Vec<Vec<u8>>) -> Vec<String> {
    payloads.into_iter().map(|payload| String::from_utf8(payload).unwrap()).collect()
}

#[test]
fn each_destination_gets_what_it_asked_for_and_what_nobody_wants_is_counted() {
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
        from("203.0.113.1", "<11>user.err: nobody wants it"),
        from("198.51.100.1", "<38>auth.info: nobody wants it"),
    ];
    forward(&mut engine, &all);
    assert_eq!(texts(arrived(core, 3)), ["<189>core, notice", "<27>core and daemon.err", "no priority at all"]);
    assert_eq!(texts(arrived(alarms, 2)), ["<35>excluded, but auth.err", "<27>core and daemon.err"]);
    assert_eq!(rig.metric("sekiwake_forward_unmatched_records_total", &["syslog"]), 2.0);
    assert_eq!(rig.skipped(&core_uri, "source"), 3);
    assert_eq!((rig.skipped(&alarms_uri, "facility"), rig.skipped(&alarms_uri, "severity")), (3, 1));
    rig.assert_accounts_close(&core_uri);
    rig.assert_accounts_close(&alarms_uri);
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
fn a_rate_lets_that_many_through_and_counts_the_rest() {
    let rig = Rig::new();
    let (limited, limited_uri) = loopback_sink();
    let (free, free_uri) = loopback_sink();
    let mut engine = rig.engine(&format!("{limited_uri}?rate=100 {free_uri}"));
    let flood = |engine: &mut TestEngine| {
        forward(engine, &samples((0..1000).map(|number| format!("{number}").into_bytes())));
    };
    flood(&mut engine);
    thread::sleep(Duration::from_millis(500));
    flood(&mut engine);
    assert_eq!(arrived(free, 2000).len(), 2000);
    rig.assert_accounts_close(&limited_uri);
    let sent = rig.sent(&limited_uri);
    assert!((140..=180).contains(&sent), "100 at once and half a second's worth more: {sent}");
    assert_eq!(rig.dropped(&limited_uri, "rate"), 2000 - sent);
    assert_eq!(arrived(limited, sent as usize).len() as u64, sent);
    rig.stop();
}

/// Two samples of each of these devices.
fn of_devices(count: u32) -> Vec<Sample> {
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
fn a_pool_shares_sources_out_and_each_datagram_arrives_once() {
    let rig = Rig::new();
    let sinks = [loopback_sink(), loopback_sink(), loopback_sink()];
    let places: Vec<&str> = sinks.iter().map(|(_, uri)| uri.trim_start_matches("udp://")).collect();
    let mut engine = rig.engine(&format!("udp://{}", places.join(",")));
    let samples = of_devices(300);
    forward(&mut engine, &samples);
    let labels: Vec<String> = sinks.iter().map(|(_, uri)| uri.clone()).collect();
    wait_for("everything to leave", PATIENCE, || labels.iter().map(|label| rig.sent(label)).sum::<u64>() == 600)
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
        rig.assert_accounts_close(&labels[index]);
    }
    assert_eq!(arrived.iter().map(Vec::len).sum::<usize>(), 600);
    rig.stop();
}

#[test]
fn a_pool_fails_over_while_a_member_is_down_and_it_returns() {
    let rig = Rig::new();
    let (sink, live) = loopback_sink();
    let (gone, dead) = loopback_sink();
    let address = gone.addresses()[0];
    drop(gone);
    let mut engine = rig.engine(&format!("{live},{}", dead.trim_start_matches("udp://")));
    let is = |label: &str, up: f64| rig.metric("sekiwake_forward_up", &[&format!("\"{label}\"")]) == up;
    let samples = of_devices(50);
    wait_for("the dead one to be noticed", PATIENCE, || {
        forward(&mut engine, &samples);
        is(&dead, 0.0)
    })
    .unwrap();
    // From now on the live one gets all, and the dead one a copy now and then.
    wait_for("empty queues", PATIENCE, || rig.queued(&live) + rig.queued(&dead) == 0).unwrap();
    let before = (rig.sent(&live), rig.sent(&dead));
    for _ in 0..10 {
        forward(&mut engine, &samples);
    }
    wait_for("everything to leave", PATIENCE, || rig.sent(&live) == before.0 + 1000).unwrap();
    assert!(rig.sent(&dead) <= before.1 + 200, "what was queued before it was noticed, and copies");

    let (returned, _) = sink_on(address);
    wait_for("the dead one to be up", 2 * PATIENCE, || {
        thread::sleep(Duration::from_millis(100));
        forward(&mut engine, &samples);
        is(&dead, 1.0)
    })
    .unwrap();
    wait_for("empty queues", PATIENCE, || rig.queued(&live) + rig.queued(&dead) == 0).unwrap();
    thread::sleep(Duration::from_millis(200));
    let (at_live, at_returned) = (rig.sent(&live), returned.received());
    forward(&mut engine, &samples);
    wait_for("the share of the one that returned", PATIENCE, || {
        returned.received() > at_returned && (rig.sent(&live) - at_live) + (returned.received() - at_returned) == 100
    })
    .unwrap();
    rig.assert_accounts_close(&live);
    rig.assert_accounts_close(&dead);
    drop(sink);
    rig.stop();
}

#[test]
fn the_devices_address_is_added_where_that_is_asked_for() {
    let rig = Rig::new();
    let (plain, plain_uri) = loopback_sink();
    let (with, with_uri) = loopback_sink();
    let mut engine = rig.engine(&format!("{plain_uri} {with_uri}?add_source=true"));
    let message = "<34>1 2003-10-11T22:14:15.003Z host app 1 ID47 - hello";
    forward(&mut engine, &[from("10.0.0.1", message), from("2001:db8::9", "<34>Oct 11 22:14:15 su: hello")]);
    assert_eq!(texts(arrived(plain, 2)), [message, "<34>Oct 11 22:14:15 su: hello"]);
    let with = texts(arrived(with, 2));
    assert_eq!(with[0], message.replace("ID47 -", "ID47 [origin ip=\"10.0.0.1\"]"));
    assert!(with[1].starts_with("<34>1 20"), "{}", with[1]);
    assert!(
        with[1].ends_with(" 2001:db8::9 - - - [origin ip=\"2001:db8::9\"] <34>Oct 11 22:14:15 su: hello"),
        "{}",
        with[1]
    );
    rig.stop();
}
