//! Two links carry copies of datagrams, in other wrappings and with other losses: each datagram
//! arrives once.

use sekiwake_testkit::{
    netns::{End, Link},
    packets::{Datagram, erspan_2, ethernet, ip_packet, mpls, tagged, vxlan},
};
use sekiwake_tests::{DEVICES_WIRE, WIRE};

use super::*;
use crate::jetstream::server::{BUS, NatsServer};

/// The devices' and the host's end of the second link.
const SECOND_LINK: [&str; 2] = ["dev1", "wire1"];
/// Longer than what lies between two injections on any machine.
const DEDUPLICATE: (&str, &str) = ("SEKIWAKE_DEDUPLICATE", "5s");

/// What both links show of one datagram: the frames on each, or none if it has lost the datagram.
struct Copies {
    payload: Vec<u8>,
    frames: [Vec<Vec<u8>>; 2],
    /// How many links show all of it.
    whole: usize,
}

/// A datagram of one family, with 20 bytes of text or with 3,000.
fn datagram(number: u32, is_v6: bool, is_long: bool) -> Datagram {
    let text = format!("<13>copy {number}{}", " x".repeat(if is_long { 1_500 } else { 4 }));
    let (source, destination) = match is_v6 {
        true => ("[2001:db8:18:1::1]:5140", "[2001:db8:18::2]:514"),
        false => ("198.19.0.1:5140", "198.18.0.2:514"),
    };
    Datagram::new(source, destination, text).identified(number + 1)
}

/// Each wrapping of copies beside the plain datagram, in both families and on both links.
fn wrapped() -> Vec<Copies> {
    let over_udp = |port: u16, payload: Vec<u8>| {
        ethernet(&Datagram::new("203.0.113.1:49152", &format!("203.0.113.2:{port}"), payload).packet())
    };
    let in_gre = |gre: &[u8]| ethernet(&ip_packet("203.0.113.1", "203.0.113.2", 47, gre));
    type Wrap<'a> = &'a dyn Fn(&Datagram) -> Vec<Vec<u8>>;
    let fragments = |message: &Datagram, step: usize| -> Vec<Vec<u8>> {
        message.fragments(step).iter().map(|packet| ethernet(packet)).collect()
    };
    let routed = |message: &Datagram| Datagram { ttl: 60, dscp: 12, ..message.clone() };
    let plain: Wrap<'_> = &|message| vec![ethernet(&message.packet())];
    let short: [Wrap<'_>; 6] = [
        plain,
        &|message| vec![ethernet(&routed(message).packet())],
        &|message| vec![tagged(&ethernet(&message.packet()), &[(0x88a8, 1), (0x8100, 7)])],
        &|message| vec![mpls(&[1, 2], &routed(message).packet())],
        &|message| vec![over_udp(4789, vxlan(1, &ethernet(&message.packet())))],
        &|message| vec![in_gre(&erspan_2(1, &ethernet(&message.packet())))],
    ];
    let long: [Wrap<'_>; 3] = [
        &|message| fragments(message, 1_000),
        &|message| fragments(&routed(message), 1_000).into_iter().rev().collect(),
        &|message| fragments(message, 1_000).iter().map(|frame| tagged(frame, &[(0x8100, 7)])).collect(),
    ];
    let mut copies = Vec::new();
    let mut add = |is_v6: bool, is_long: bool, first: Wrap<'_>, second: Wrap<'_>| {
        let message = datagram(copies.len() as u32, is_v6, is_long);
        let frames = [first(&message), second(&message)];
        copies.push(Copies { payload: message.payload, frames, whole: 2 });
    };
    for is_v6 in [false, true] {
        for wrap in short {
            add(is_v6, false, plain, wrap);
            add(is_v6, false, wrap, plain);
        }
        for wrap in long {
            add(is_v6, true, long[0], wrap);
            add(is_v6, true, wrap, long[0]);
        }
    }
    // The routers of one path make other fragments of it, which only IPv4 allows.
    add(false, true, long[0], &|message| fragments(message, 1_480));
    copies
}

/// Datagrams of which each link has lost others, and fragments of others.
fn with_losses(from: u32) -> Vec<Copies> {
    let lossy = |number: u32| {
        let message = datagram(from + number, number % 2 == 1, number.is_multiple_of(5));
        let frames: Vec<Vec<u8>> = message.fragments(1_000).iter().map(|packet| ethernet(packet)).collect();
        let mut shown = [frames.clone(), frames];
        let lossy = match number % 7 {
            1 | 2 => &mut shown[0],
            3 | 5 => &mut shown[1],
            _ => return Copies { payload: message.payload, frames: shown, whole: 2 },
        };
        // All of it, or its last part.
        lossy.truncate(if number % 7 == 5 { lossy.len() - 1 } else { 0 });
        Copies { payload: message.payload, frames: shown, whole: 1 }
    };
    (0..280).map(lossy).collect()
}

/// Injects all copies on both links at once.
fn inject(site: &TestSite, copies: &[Copies]) {
    let frames = |link: usize| copies.iter().flat_map(|copy| copy.frames[link].clone()).collect::<Vec<_>>();
    std::thread::scope(|scope| {
        for (link, interface) in [DEVICES_WIRE, SECOND_LINK[0]].into_iter().enumerate() {
            scope.spawn(move || site.devices.inject(interface, &frames(link)).unwrap());
        }
    });
}

/// Runs captures with these settings, and a member that deduplicates, over both links.
fn check(captures: &[&[(&str, &str)]]) {
    let Some(site) = site() else { return };
    let [left, right] = SECOND_LINK;
    Link::new(End::new(&site.devices, left), End::new(&site.host, right)).create().unwrap();
    let sink = site.sink(&[at(collector(0), 514)], Options::counts().payloads());
    let mut proxy = site.start_one(PROXY, &[]);
    let mut captures: Vec<Service<'_>> = captures.iter().map(|settings| site.start_one(CAPTURE, settings)).collect();
    let mut members = Members::with(&site, &[DEDUPLICATE]);
    members.start("default", 0, 1);
    members.wait_until_even();
    captures.iter().for_each(|capture| capture.wait_until_ready().unwrap());
    let mut copies = wrapped();
    copies.extend(with_losses(copies.len() as u32));
    inject(&site, &copies);
    let shown_twice = copies.iter().filter(|copy| copy.whole == 2).count() as u64;
    let _ = sink.wait_for(copies.len() as u64, LONG);
    let removed = || members.sum("sekiwake_deduplicate_duplicate_records_total");
    let all_removed = wait_for("all copies", LONG, || removed() >= shown_twice);
    let _ = sink.wait_for_silence(Duration::from_millis(500), LONG);
    let (removed, log) = (removed(), members.log());
    members.stop();
    captures.iter_mut().for_each(|capture| capture.stop().unwrap());
    proxy.stop().unwrap();
    let sent = copies.iter().map(|copy| copy.payload.clone()).collect();
    assert_same_set("datagrams", in_order(sink.finish()), sent);
    assert!(all_removed.is_ok() && removed == shown_twice, "{removed} of {shown_twice} removed: {log}");
}

#[test]
fn two_interfaces_of_one_capture_show_each_datagram_once() {
    check(&[&[("SEKIWAKE_CAPTURE_INTERFACES", &format!("{WIRE},{}", SECOND_LINK[1]))]]);
}

#[test]
fn two_captures_of_two_links_show_each_datagram_once() {
    let first = [("SEKIWAKE_PUBLISHER", "tap-a")];
    let second = [
        ("SEKIWAKE_PUBLISHER", "tap-b"),
        ("SEKIWAKE_CAPTURE_INTERFACES", SECOND_LINK[1]),
        ("SEKIWAKE_ADMIN", "127.0.0.1:9691"),
    ];
    check(&[&first, &second]);
}

/// A capture whose link is idle is a view that shows nothing: what the other one has shown is
/// forgotten nevertheless.
fn check_idle(site: &TestSite, spine: Vec<Service<'_>>, bus: &[(&str, &str)]) {
    let [left, right] = SECOND_LINK;
    Link::new(End::new(&site.devices, left), End::new(&site.host, right)).create().unwrap();
    site.disable_ipv6_on_the_wire();
    let sink = site.sink(&[at(collector(0), 514)], Options::counts());
    let idle = [("SEKIWAKE_CAPTURE_INTERFACES", right), ("SEKIWAKE_ADMIN", "127.0.0.1:9691")];
    let captures: Vec<Service<'_>> = [("tap-a", &[][..]), ("tap-b", &idle)]
        .map(|(name, settings)| site.start_one(CAPTURE, &[settings, bus, &[("SEKIWAKE_PUBLISHER", name)]].concat()))
        .into();
    let mut members = Members::with(site, &[&[("SEKIWAKE_DEDUPLICATE", "200ms")], bus].concat());
    members.start("default", 0, 1);
    members.wait_until_even();
    captures.iter().for_each(|capture| capture.wait_until_ready().unwrap());
    let sent = site.send(&format!("--to {MIRRORED} --from 198.19.0.0/16 --sources 16 --rate 2000 --count 4000"));
    sink.wait_for(sent, LONG).unwrap();
    let [only, entries] = ["only_view_records_total", "entries"].map(|name| format!("sekiwake_deduplicate_{name}"));
    let is_forgotten = || members.sum(&only) == sent && members.sum(&entries) == 0;
    wait_for("everything to be forgotten", LONG, is_forgotten)
        .unwrap_or_else(|late| panic!("{late}: {}", members.members[0].page("/status").unwrap()));
    wait_for("both captures to be ready", LONG, || captures.iter().all(Service::is_ready)).unwrap();
    assert_eq!(members.sum("sekiwake_deduplicate_evicted_records_total"), 0);
    members.stop();
    Services(captures).stop().unwrap();
    Services(spine).stop().unwrap();
    sink.finish();
}

#[test]
fn idle_capture_does_not_keep_memory_full() {
    let Some(site) = site() else { return };
    let proxy = site.start_one(PROXY, &[]);
    check_idle(&site, vec![proxy], &[]);
}

#[test]
fn jetstream_idle_capture_does_not_keep_memory_full() {
    let Some(site) = site() else { return };
    if NatsServer::is_installed() {
        let _server = NatsServer::start(&site.host, "");
        check_idle(&site, Vec::new(), &[BUS]);
    }
}
