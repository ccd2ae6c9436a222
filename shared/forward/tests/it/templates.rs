//! A destination that has not had an exporter's templates gets them before its data.

use std::{net::IpAddr, thread, time::Duration};

use sekiwake_forward::{Destinations, Engine};
use sekiwake_record::Kind;
use sekiwake_testkit::wait::wait_for;

use crate::rig::*;

fn destinations(text: &str) -> Destinations {
    Destinations::parse(Kind::Xflow, text).unwrap()
}

fn engine(rig: &Rig, text: &str) -> TestEngine {
    Engine::start(Kind::Xflow, &destinations(text), &rig.scope).unwrap()
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
fn a_destination_that_comes_later_gets_the_templates_before_the_data_and_sees_no_gap() {
    let rig = Rig::new();
    let (early, early_uri) = loopback_sink();
    let (late, late_uri) = loopback_sink();
    let mut engine = engine(&rig, &early_uri);
    send(&mut engine, device(1), [template(10, &LAYOUT), data(11)]);
    send(&mut engine, device(2), [template(90, &[1, 8]), data(91)]);
    engine.apply(&destinations(&format!("{early_uri} {late_uri}"))).unwrap();
    send(&mut engine, device(1), [data(12), data(13)]);
    send(&mut engine, device(2), [data(92)]);
    assert_eq!(arrived(early, 7).len(), 7, "the one that has them gets nothing twice");
    // Two exporters with the same id and other layouts: each has its own, and its own order.
    let late = arrived(late, 5);
    let of_exporter = |first: u32| late.iter().filter(move |datagram| sequence(datagram) / 50 == first / 50);
    let one: Vec<&Vec<u8>> = of_exporter(10).collect();
    assert_eq!(one, [&template(11, &LAYOUT), &data(12), &data(13)]);
    let other: Vec<&Vec<u8>> = of_exporter(90).collect();
    assert_eq!(other, [&template(91, &[1, 8]), &data(92)]);
    assert_eq!(rig.metric("sekiwake_forward_templates_sent_total", &[&late_uri]), 2.0);
    assert_eq!(rig.metric("sekiwake_forward_templates_sent_total", &[&early_uri]), 0.0);
    assert_eq!(rig.sent(&late_uri), 3, "our own are in no other count");
    rig.stop();
}

#[test]
fn a_collector_that_comes_back_gets_them_within_a_second_or_so() {
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
    wait_for("the collector to be missed", PATIENCE, || {
        go_on(&mut engine);
        up(&rig) == 0.0
    })
    .unwrap();
    let (second, _) = sink_on(address);
    let started = std::time::Instant::now();
    while started.elapsed() < Duration::from_millis(1500) {
        go_on(&mut engine);
    }
    let arrived = second.finish().payloads;
    assert!(arrived.iter().any(|datagram| is_template(&datagram.payload)), "of {} datagrams none", arrived.len());
    rig.stop();
}

#[test]
fn templates_are_sent_again_after_a_while_where_that_is_asked_for() {
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
fn the_members_of_a_pool_get_them_as_sources_move_to_them() {
    let rig = Rig::new();
    let (one, one_uri) = loopback_sink();
    let (other, other_uri) = loopback_sink();
    // Alone first, then as a pool: every source that moves brings its templates along.
    let mut engine = engine(&rig, &one_uri);
    for number in 1..=40 {
        send(&mut engine, device(number), [template(0, &LAYOUT), data(1)]);
    }
    engine.apply(&destinations(&format!("{one_uri},{}", other_uri.trim_start_matches("udp://")))).unwrap();
    for number in 1..=40 {
        send(&mut engine, device(number), [data(2)]);
    }
    wait_for("all to leave", PATIENCE, || rig.sent(&one_uri) + rig.sent(&other_uri) == 120).unwrap();
    let moved = rig.sent(&other_uri);
    assert!((8..=32).contains(&moved), "{moved}");
    let arrived = arrived(other, 2 * moved as usize);
    assert_eq!(arrived.iter().filter(|datagram| is_template(datagram)).count() as u64, moved);
    drop(one);
    rig.stop();
}

#[test]
fn what_exporters_sent_and_did_not_come_is_counted() {
    let rig = Rig::new();
    let (_sink, uri) = loopback_sink();
    let mut engine = engine(&rig, &uri);
    send(&mut engine, device(1), [template(0, &LAYOUT), data(1), data(5), data(3), data(6)]);
    let count = |name: &str| rig.metric(name, &["netflow9"]);
    assert_eq!(count("sekiwake_exporter_missing_total"), 3.0);
    assert_eq!(count("sekiwake_exporter_gaps_total"), 1.0);
    assert_eq!(count("sekiwake_exporter_late_total"), 1.0);
    send(&mut engine, device(1), [b"\x00\x09too short".to_vec()]);
    assert_eq!(count("sekiwake_exporter_malformed_datagrams_total"), 0.0, "it is not even called NetFlow v9");
    rig.stop();
}
