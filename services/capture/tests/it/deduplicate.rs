//! Second copies of what one interface shows twice.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::HashMap, sync::Arc, time::Duration};

use proptest::prelude::*;
use sekiwake_capture::{
    decode::{self, DecoderSettings, DropReason, LinkType, Packet},
    deduplicate::{CAPACITY, DeduplicateSettings, Deduplicator, UNIDENTIFIED_WINDOW},
    pipeline::Pipeline,
    ports::Ports,
};
use sekiwake_record::Vlans;
use sekiwake_testkit::{
    netns::{End, Link, Namespace, namespaces_or_skipped},
    packets::{Datagram, Extension, erspan_2, ethernet, ip_packet, mpls, padded, tagged, vxlan},
    process::Process,
    wait::wait_for,
};

use crate::live::{Capture, LONG};

const SETTINGS: DeduplicateSettings = DeduplicateSettings { window: Duration::from_millis(20), seed: 7 };
const MS: u64 = 1_000_000;
const WINDOW_NS: u64 = 20 * MS;
const UNIDENTIFIED_NS: u64 = UNIDENTIFIED_WINDOW.as_nanos() as u64;

/// A datagram of a device, as the state machine sees it.
fn datagram(payload: &[u8], identification: u32) -> decode::Datagram<'_> {
    decode::Datagram {
        captured_at_ns: 0,
        source: "198.51.100.1".parse().unwrap(),
        source_port: 5140,
        destination: "198.51.100.2".parse().unwrap(),
        destination_port: 514,
        payload,
        identification,
        vlans: Vlans::new(),
        dscp: 0,
        ttl: 64,
        reassembled: false,
        decapsulated: false,
    }
}

/// The rule, written down once more: by content, the time of the occurrence that waits for its
/// copy. Without a bound and without hashes.
#[derive(Default)]
struct Model(HashMap<(u8, u32), u64>);

impl Model {
    fn is_copy(&mut self, content: (u8, u32), at_ns: u64) -> bool {
        let window_ns = if content.1 == 0 { UNIDENTIFIED_NS } else { WINDOW_NS };
        if self.0.remove(&content).is_some_and(|before_ns| before_ns.abs_diff(at_ns) <= window_ns) {
            return true;
        }
        self.0.insert(content, at_ns);
        false
    }
}

proptest! {
    #[test]
    fn copies_are_those_of_the_model(
        packets in prop::collection::vec((0_u8..3, 0_u32..4, -2 * MS as i64..12 * MS as i64), 1..200)
    ) {
        let mut deduplicator = Deduplicator::new(SETTINGS);
        let mut model = Model::default();
        let mut now_ns = 1_000 * MS;
        for (text, identification, step_ns) in packets {
            now_ns = now_ns.saturating_add_signed(step_ns);
            let fingerprint = deduplicator.fingerprint(&datagram(&[text], identification));
            prop_assert_eq!(
                deduplicator.is_copy(fingerprint, now_ns),
                model.is_copy((text, identification), now_ns),
            );
        }
        prop_assert_eq!(deduplicator.evicted(), 0);
    }

    /// Whatever a device repeats, with a new identification, with the same or with 0, and however
    /// its copies are interleaved.
    #[test]
    fn as_many_are_delivered_as_the_device_sent(
        sent in prop::collection::vec((0_u8..2, 0_u32..3, 0..3 * MS, 0..=100_u64), 1..100)
    ) {
        let mut seen = Vec::new();
        let mut now_ns = 1_000 * MS;
        let mut expected: HashMap<(u8, u32), usize> = HashMap::new();
        for &(text, identification, pause_ns, delay_percent) in &sent {
            now_ns += pause_ns;
            let window_ns = if identification == 0 { UNIDENTIFIED_NS } else { WINDOW_NS };
            seen.push((now_ns, text, identification));
            seen.push((now_ns + window_ns * delay_percent / 100, text, identification));
            *expected.entry((text, identification)).or_default() += 1;
        }
        seen.sort_unstable();
        let mut deduplicator = Deduplicator::new(SETTINGS);
        let mut delivered: HashMap<(u8, u32), usize> = HashMap::new();
        for (at_ns, text, identification) in seen {
            let fingerprint = deduplicator.fingerprint(&datagram(&[text], identification));
            if !deduplicator.is_copy(fingerprint, at_ns) {
                *delivered.entry((text, identification)).or_default() += 1;
            }
        }
        prop_assert_eq!(delivered, expected);
    }

    #[test]
    fn repetition_with_a_new_identification_always_arrives(pauses_ns in prop::collection::vec(0..MS, 1..500)) {
        let mut deduplicator = Deduplicator::new(SETTINGS);
        let mut now_ns = 0;
        for (number, pause_ns) in pauses_ns.iter().enumerate() {
            now_ns += pause_ns;
            let fingerprint = deduplicator.fingerprint(&datagram(b"<13>again", number as u32 + 1));
            prop_assert!(!deduplicator.is_copy(fingerprint, now_ns));
        }
    }
}

#[test]
fn more_than_the_table_holds_is_delivered_and_counted() {
    let mut deduplicator = Deduplicator::new(SETTINGS);
    let count = 4 * CAPACITY as u64;
    for number in 0..count {
        let fingerprint = deduplicator.fingerprint(&datagram(&number.to_be_bytes(), 1));
        assert!(!deduplicator.is_copy(fingerprint, MS), "{number}");
    }
    let kept = count - deduplicator.evicted();
    assert!(kept <= CAPACITY as u64, "{kept}");
    let newest = deduplicator.fingerprint(&datagram(&(count - 1).to_be_bytes(), 1));
    assert!(deduplicator.is_copy(newest, MS));
}

#[test]
fn stale_occurrences_give_way_after_the_clock_is_set_back() {
    const LAG: u64 = 15;
    const HOUR_NS: u64 = 3_600_000 * MS;
    let mut deduplicator = Deduplicator::new(SETTINGS);
    let count = 4 * CAPACITY as u64;
    let mut is_copy = |number: u64, at_ns: u64| {
        let fingerprint = deduplicator.fingerprint(&datagram(&number.to_be_bytes(), 1));
        deduplicator.is_copy(fingerprint, at_ns)
    };
    // Without copies: they fill the table.
    for number in 0..count {
        assert!(!is_copy(number, 2 * HOUR_NS + number * MS));
    }
    for number in count..2 * count {
        let now_ns = HOUR_NS + (number - count) * MS;
        assert!(!is_copy(number, now_ns));
        assert!(number < count + LAG || is_copy(number - LAG, now_ns), "{number}");
    }
}

/// A pipeline without an interface.
struct Bench(Pipeline);

impl Bench {
    fn new() -> Bench {
        let decoder = DecoderSettings { deduplicate: Some(SETTINGS), ..DecoderSettings::default() };
        Bench(Pipeline::new(decoder, Arc::new(Ports::default())))
    }

    fn frame(&mut self, at_ns: u64, data: &[u8]) {
        let original_length = data.len() as u32;
        self.0.packet(&Packet { captured_at_ns: at_ns, link: LinkType::Ethernet, data, original_length });
        assert!(self.0.counters().add_up());
        let tally = self.0.tally();
        assert_eq!(self.0.counters().datagrams, tally.claimed_total() + tally.duplicate);
    }

    /// Published datagrams, and copies.
    fn counts(&self) -> (u64, u64) {
        (self.0.tally().claimed_total(), self.0.tally().duplicate)
    }

    fn dropped(&self, reason: DropReason) -> u64 {
        self.0.counters().dropped.get(reason)
    }
}

fn message() -> Datagram {
    Datagram::new("198.51.100.1:5140", "198.51.100.2:514", "<13>text").identified(77)
}

fn message6() -> Datagram {
    Datagram::new("[2001:db8::1]:5140", "[2001:db8::2]:514", "<13>text")
}

#[test]
fn copy_differs_in_link_layer_tags_tunnel_ttl_and_checksums_only() {
    for message in [message(), message6()] {
        let is_v4 = message.source.is_ipv4();
        let packet = message.packet();
        let routed = Datagram { ttl: message.ttl - 1, ..message.clone() }.packet();
        let mut other_checksum = ethernet(&packet);
        let checksum = other_checksum.len() - message.payload.len() - 2;
        other_checksum[checksum] ^= 0xff;
        let plain = ethernet(&packet);
        let over_udp = |port: u16, payload: Vec<u8>| {
            ethernet(&Datagram::new("203.0.113.1:49152", &format!("203.0.113.2:{port}"), payload).packet())
        };
        let copies = [
            plain.clone(),
            ethernet(&routed),
            tagged(&plain, &[(0x8100, 7)]),
            tagged(&plain, &[(0x88a8, 1), (0x8100, 2)]),
            padded(&plain),
            mpls(&[1, 2], &packet),
            over_udp(4789, vxlan(1, &plain)),
            ethernet(&ip_packet("203.0.113.1", "203.0.113.2", 47, &erspan_2(1, &plain))),
            other_checksum,
        ];
        for (index, copy) in copies.iter().enumerate() {
            for (first, second) in [(&plain, copy), (copy, &plain)] {
                let mut bench = Bench::new();
                bench.frame(MS, first);
                bench.frame(MS + MS / 2, second);
                assert_eq!(bench.counts(), (1, 1), "copy {index}");
            }
        }
        let to = |destination: &str| Datagram { destination: destination.parse().unwrap(), ..message.clone() };
        let from = |source: &str| Datagram { source: source.parse().unwrap(), ..message.clone() };
        let others = [
            Datagram { payload: b"<13>texT".to_vec(), ..message.clone() },
            Datagram { payload: b"<13>text ".to_vec(), ..message.clone() },
            if is_v4 { from("198.51.100.1:5141") } else { from("[2001:db8::1]:5141") },
            if is_v4 { from("198.51.100.9:5140") } else { from("[2001:db8::9]:5140") },
            if is_v4 { to("198.51.100.2:162") } else { to("[2001:db8::2]:162") },
            if is_v4 { to("198.51.100.9:514") } else { to("[2001:db8::9]:514") },
        ];
        for (index, other) in others.iter().enumerate() {
            let mut bench = Bench::new();
            bench.frame(MS, &plain);
            bench.frame(MS, &ethernet(&other.packet()));
            assert_eq!(bench.counts(), (2, 0), "other {index}");
        }
    }
}

#[test]
fn window_is_one_millisecond_without_an_identification() {
    let atomic = |identification| {
        let extensions = vec![Extension::fragment(0, false, identification)];
        Datagram { extensions, ..message6() }
    };
    for (message, window_ns) in [
        (message(), WINDOW_NS),
        (message().identified(0), UNIDENTIFIED_NS),
        (message6(), UNIDENTIFIED_NS),
        (atomic(77), WINDOW_NS),
    ] {
        let frame = ethernet(&message.packet());
        for (apart_ns, counts) in [(window_ns, (1, 1)), (window_ns + 1, (2, 0))] {
            let mut bench = Bench::new();
            bench.frame(MS, &frame);
            bench.frame(MS + apart_ns, &frame);
            assert_eq!(bench.counts(), counts, "{message:?}, {apart_ns} ns apart");
        }
    }
    let mut bench = Bench::new();
    bench.frame(MS, &ethernet(&message().packet()));
    bench.frame(MS, &ethernet(&message().identified(78).packet()));
    assert_eq!(bench.counts(), (2, 0), "another identification");
}

#[test]
fn copies_of_fragments_leave_nothing_pending() {
    let long = |message: Datagram| Datagram { payload: vec![b'x'; 3_000], ..message };
    for message in [long(message()), long(message6()).identified(77)] {
        let frames: Vec<Vec<u8>> = message.fragments(1_000).iter().map(|packet| ethernet(packet)).collect();
        let in_vlan = |frame: &Vec<u8>| tagged(frame, &[(0x8100, 7)]);
        let interleaved: Vec<Vec<u8>> = frames.iter().flat_map(|frame| [frame.clone(), frame.clone()]).collect();
        let in_a_row = [frames.clone(), frames.clone()].concat();
        let tagged_first: Vec<Vec<u8>> = frames.iter().flat_map(|frame| [in_vlan(frame), frame.clone()]).collect();
        // The copies overtake each other.
        let mut mixed = frames.clone();
        mixed.extend(frames.iter().map(in_vlan));
        mixed.rotate_left(2);
        let refragmented = [frames.clone(), message.fragments(1_480).iter().map(|packet| ethernet(packet)).collect()];
        for (index, order) in [interleaved, in_a_row, tagged_first, mixed, refragmented.concat()].iter().enumerate() {
            let mut bench = Bench::new();
            for (number, frame) in order.iter().enumerate() {
                bench.frame(MS + number as u64 * 1_000, frame);
            }
            assert_eq!(bench.0.counters().fragments_pending, 0, "order {index}");
            bench.0.finish();
            assert_eq!(bench.counts().0, 1, "order {index}");
            assert_eq!(bench.dropped(DropReason::FragmentTimeout), 0, "order {index}");
            assert_eq!(bench.dropped(DropReason::FragmentOverlap), 0, "order {index}");
        }
    }
}

#[test]
fn fragment_that_one_copy_lacks_is_taken_from_the_other() {
    let message = Datagram { payload: vec![b'x'; 3_000], ..message() };
    let frames: Vec<Vec<u8>> = message.fragments(1_000).iter().map(|packet| ethernet(packet)).collect();
    let mut bench = Bench::new();
    for frame in frames.iter().skip(1).chain(&frames) {
        bench.frame(MS, frame);
    }
    assert_eq!(bench.counts(), (1, 0));
    assert_eq!(bench.0.counters().fragments_pending, 0);
}

/// Sends each frame from `left0`, and `copies` times more at once; with a pause afterwards, in
/// milliseconds.
fn send_frames(namespace: &Namespace, frames: &[(Vec<u8>, Vec<u8>)], pause_ms: u64) {
    let script = "
import os, socket, sys, time
try:
    # Nothing else runs between a frame and its copy.
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
except OSError:
    pass
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(('left0', 0))
for pair in sys.argv[2:]:
    frames = [bytes.fromhex(frame) for frame in pair.split('-') if frame]
    for frame in frames:
        s.send(frame)
    time.sleep(int(sys.argv[1]) / 1000)
";
    let hex = |frame: &[u8]| frame.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let mut command = namespace.command("python3");
    command.args(["-c", script, &pause_ms.to_string()]);
    command.args(frames.iter().map(|(frame, copy)| format!("{}-{}", hex(frame), hex(copy))));
    assert!(Process::spawn(command).unwrap().wait(LONG).unwrap().success());
}

#[test]
fn interface_that_shows_each_frame_twice_publishes_it_once() {
    if !namespaces_or_skipped() {
        return;
    }
    let devices = Namespace::new("skw-dup").unwrap();
    let host = Namespace::new("skw-dup").unwrap();
    Link::new(End::new(&devices, "left0"), End::new(&host, "right0")).create().unwrap();
    let twice = |number: u32, text: String| {
        let message = Datagram::new("198.51.100.1:5140", "198.51.100.2:514", text).identified(number);
        let routed = Datagram { ttl: message.ttl - 1, ..message.clone() };
        (ethernet(&message.packet()), tagged(&ethernet(&routed.packet()), &[(0x8100, 7)]))
    };
    let mut frames: Vec<(Vec<u8>, Vec<u8>)> =
        (1..=50).map(|number| twice(number, format!("<13>message {number}"))).collect();
    frames.extend((1_001..=1_010).map(|number| twice(number, "<13>the device repeats itself".to_owned())));
    let once = (ethernet(&message().identified(0).packet()), Vec::new());
    let duplicates = "sekiwake_capture_unclaimed_datagrams_total";
    for (setting, published, copies) in [("100ms", 60, 60), ("", 120, 0)] {
        let capture = Capture::start(&host, "right0", 1, &[("SEKIWAKE_CAPTURE_DEDUPLICATE", setting)]);
        send_frames(&devices, &frames, 0);
        // Without an identification, and more than a millisecond apart.
        send_frames(&devices, &vec![once.clone(); 5], 5);
        capture.wait_for_claimed(published + 5, "");
        wait_for("the copies to be counted", LONG, || capture.sum(duplicates, "reason=\"duplicate\"") == copies)
            .unwrap();
        assert_eq!(capture.sum("sekiwake_capture_evicted_occurrences_total", ""), 0);
        capture.stop();
    }
}
