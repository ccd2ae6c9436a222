//! A destination that lacks an exporter's templates gets them before its data.

use std::{net::IpAddr, thread, time::Duration};

use sekiwake_forward::{Destinations, Engine, EngineOptions};
use sekiwake_record::Kind;
use sekiwake_testkit::wait::wait_for;

use crate::rig::*;

fn destinations(text: &str) -> Destinations {
    Destinations::parse(Kind::Xflow, text).unwrap()
}

fn engine(rig: &Rig, text: &str) -> TestEngine {
    Engine::start(Kind::Xflow, &destinations(text), EngineOptions::default(), &rig.scope).unwrap()
}

/// A NetFlow v9 datagram (RFC 3954 §5): this sequence number, source id 7, one FlowSet.
fn netflow9(sequence: u32, flow_set: u16, contents: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend([9u16, 1].map(u16::to_be_bytes).concat());
    bytes.extend([1000, 1_700_000_000, sequence, 7].map(u32::to_be_bytes).concat());
    bytes.extend([flow_set, 4 + contents.len() as u16].map(u16::to_be_bytes).concat());
    bytes.extend(contents);
    bytes
}

/// Template 256: source address, bytes; or, as another layout, bytes only.
fn template(sequence: u32, fields: &[u16]) -> Vec<u8> {
    let fields_of_four: Vec<u16> = fields.iter().flat_map(|field| [*field, 4]).collect();
    let words = [&[256, fields.len() as u16], &fields_of_four[..]].concat();
    netflow9(sequence, 0, &words.into_iter().flat_map(u16::to_be_bytes).collect::<Vec<u8>>())
}

fn data(sequence: u32) -> Vec<u8> {
    netflow9(sequence, 256, &[198, 18, 0, 1, 0, 0, 1, 0])
}

fn sequence(datagram: &[u8]) -> u32 {
    u32::from_be_bytes(*datagram[12..].first_chunk().unwrap())
}

fn is_template(datagram: &[u8]) -> bool {
    datagram[20..22] == [0, 0]
}

fn send(engine: &mut TestEngine, source: IpAddr, payloads: impl IntoIterator<Item = Vec<u8>>) {
    let samples: Vec<Sample> = payloads.into_iter().map(|payload| Sample { source, payload }).collect();
    forward(engine, &samples);
}

const LAYOUT: [u16; 2] = [8, 1];

#[test]
fn later_destination_gets_templates_first_and_no_gap() {
    let rig = Rig::new();
    let (early, early_uri) = loopback_sink();
    let (late, late_uri) = loopback_sink();
    let mut engine = engine(&rig, &early_uri);
    send(&mut engine, device(1), [template(10, &LAYOUT), data(11)]);
    send(&mut engine, device(2), [template(90, &[1, 8]), data(91)]);
    engine.apply(&destinations(&format!("{early_uri} {late_uri}"))).unwrap();
    send(&mut engine, device(1), [data(12), data(13)]);
    send(&mut engine, device(2), [data(92)]);
    assert_eq!(arrived(early, 7).len(), 7, "a destination that has them gets nothing twice");
    // Two exporters with the same id and different layouts: each has its own templates and order.
    let late = arrived(late, 5);
    let of_exporter = |first: u32| late.iter().filter(move |datagram| sequence(datagram) / 50 == first / 50);
    let one: Vec<&Vec<u8>> = of_exporter(10).collect();
    assert_eq!(one, [&template(11, &LAYOUT), &data(12), &data(13)]);
    let other: Vec<&Vec<u8>> = of_exporter(90).collect();
    assert_eq!(other, [&template(91, &[1, 8]), &data(92)]);
    assert_eq!(rig.metric("sekiwake_forward_templates_sent_total", &[&late_uri]), 2.0);
    assert_eq!(rig.metric("sekiwake_forward_templates_sent_total", &[&early_uri]), 0.0);
    assert_eq!(rig.sent(&late_uri), 3, "synthetic ones are in no other count");
    rig.stop();
}

#[test]
fn returning_collector_gets_templates() {
    let rig = Rig::new();
    let (first, uri) = loopback_sink();
    let address = first.addresses()[0];
    let mut engine = engine(&rig, &uri);
    let mut number = 0;
    send(&mut engine, device(1), [template(number, &LAYOUT)]);
    first.wait_for(1, PATIENCE).unwrap();
    drop(first);
    let mut go_on = |engine: &mut TestEngine| {
        number += 1;
        send(engine, device(1), [data(number)]);
        thread::sleep(Duration::from_millis(20));
    };
    let up = |rig: &Rig| rig.metric("sekiwake_forward_up", &[&uri]);
    wait_for("the collector to be down", PATIENCE, || {
        go_on(&mut engine);
        up(&rig) == 0.0
    })
    .unwrap();
    let (second, _) = sink_on(address);
    let sent = |rig: &Rig| rig.metric("sekiwake_forward_templates_sent_total", &[&uri]);
    let before = sent(&rig);
    // One may have been sent just before the second collector was there.
    wait_for("templates", PATIENCE, || {
        go_on(&mut engine);
        sent(&rig) >= before + 2.0
    })
    .unwrap();
    let arrived = second.finish().payloads;
    assert!(arrived.iter().any(|datagram| is_template(&datagram.payload)), "no template in {}", arrived.len());
    rig.stop();
}

#[test]
fn templates_are_resent_at_the_refresh_interval() {
    let rig = Rig::new();
    let (sink, uri) = loopback_sink();
    let mut engine = engine(&rig, &format!("{uri}?template_refresh=200ms"));
    send(&mut engine, device(1), [template(0, &LAYOUT), data(1)]);
    thread::sleep(Duration::from_millis(250));
    send(&mut engine, device(1), [data(2), data(3)]);
    let templates: Vec<bool> = arrived(sink, 5).iter().map(|datagram| is_template(datagram)).collect();
    assert_eq!(templates, [true, false, true, false, false]);
    rig.stop();
}

#[test]
fn pool_member_gets_templates_of_sources_that_move_to_it() {
    let rig = Rig::new();
    let (one, one_uri) = loopback_sink();
    let (other, other_uri) = loopback_sink();
    // One destination at first, then a pool: the templates of a source move with it.
    let mut engine = engine(&rig, &one_uri);
    for number in 1..=40 {
        send(&mut engine, device(number), [template(0, &LAYOUT), data(1)]);
    }
    engine.apply(&destinations(&format!("{one_uri},{}", other_uri.trim_start_matches("udp://")))).unwrap();
    for number in 1..=40 {
        send(&mut engine, device(number), [data(2)]);
    }
    wait_for("all to be sent", PATIENCE, || rig.sent(&one_uri) + rig.sent(&other_uri) == 120).unwrap();
    let moved = rig.sent(&other_uri);
    assert!((8..=32).contains(&moved), "{moved}");
    let arrived = arrived(other, 2 * moved as usize);
    assert_eq!(arrived.iter().filter(|datagram| is_template(datagram)).count() as u64, moved);
    drop(one);
    rig.stop();
}

#[test]
fn missing_units_of_exporters_are_counted() {
    let rig = Rig::new();
    let (_sink, uri) = loopback_sink();
    let mut engine = engine(&rig, &uri);
    send(&mut engine, device(1), [template(0, &LAYOUT), data(1), data(5), data(3)]);
    send(&mut engine, device(1), (6..20).map(data));
    let count = |name: &str| rig.metric(name, &["netflow9"]);
    assert_eq!(count("sekiwake_exporter_missing_total"), 3.0);
    assert_eq!(count("sekiwake_exporter_gaps_total"), 1.0);
    assert_eq!(count("sekiwake_exporter_late_total"), 1.0);
    // Records counted as datagrams: the header says that there is one record, the numbers say two.
    let two_records = |number: u32| {
        let mut datagram = data(2 * number);
        datagram[3] = 2;
        datagram
    };
    send(&mut engine, device(2), (0..20).map(two_records));
    assert_eq!(count("sekiwake_exporter_missing_total"), 3.0);
    assert_eq!(count("sekiwake_exporter_uncountable_datagrams_total"), 16.0);
    send(&mut engine, device(1), [b"\x00\x09too short".to_vec()]);
    assert_eq!(count("sekiwake_exporter_malformed_datagrams_total"), 0.0, "it is not identified as NetFlow v9");
    rig.stop();
}
