//! Reassembly: order, loss, contradictions, time and memory.

use std::net::SocketAddr;

use proptest::prelude::*;
use sekiwake_capture::decode::{DecoderSettings, DropReason, LinkType, Outcome, ReassemblyLimits};
use sekiwake_testkit::packets::{Datagram, Extension, ethernet, tagged};

use super::{Bench, both_versions, ipv4_datagram, ipv6_datagram};

const SECOND_NS: u64 = 1_000_000_000;

/// A datagram large enough for many fragments, whose bytes depend on their position.
fn large(datagram: Datagram) -> Datagram {
    let payload = (0..6000_u32).map(|index| (index * 7 + index / 251) as u8).collect();
    Datagram { payload, ..datagram.identified(0x1234) }
}

fn with_limits(reassembly: ReassemblyLimits) -> Bench {
    Bench::new(DecoderSettings { reassembly, ..DecoderSettings::default() })
}

fn feed(bench: &mut Bench, packets: &[Vec<u8>]) -> Vec<Outcome> {
    packets.iter().map(|packet| bench.packet(LinkType::Raw, SECOND_NS, packet)).collect()
}

#[test]
fn fragments_are_reassembled_in_order_and_reversed() {
    for datagram in both_versions().map(large) {
        let fragments = datagram.fragments(1448);
        let reversed: Vec<Vec<u8>> = fragments.iter().rev().cloned().collect();
        for packets in [fragments, reversed] {
            let mut bench = Bench::new(DecoderSettings::default());
            let outcomes = feed(&mut bench, &packets);
            assert_eq!(outcomes.last(), Some(&Outcome::Delivered));
            assert!(outcomes[..outcomes.len() - 1].iter().all(|outcome| *outcome == Outcome::Pending));
            let found = &bench.found[0];
            assert_eq!(found.payload, datagram.payload);
            assert_eq!((found.source, found.destination), (datagram.source, datagram.destination));
            assert!(found.reassembled);
            assert_eq!(bench.counters().fragments_reassembled, packets.len() as u64 - 1);
            assert_eq!(bench.decoder.reassembly_bytes(), 0);
        }
    }
}

#[test]
fn longest_datagram_is_reassembled() {
    for (datagram, length) in both_versions().into_iter().zip([65_507, 65_519]) {
        let datagram = Datagram { payload: vec![0x5a; length], ..datagram };
        let mut bench = Bench::new(DecoderSettings::default());
        feed(&mut bench, &datagram.fragments(1480));
        assert_eq!(bench.found[0].payload, datagram.payload);
    }
}

#[test]
fn ttl_and_dscp_are_those_of_the_first_fragment() {
    for datagram in both_versions().map(large) {
        let first = datagram.fragments(3008).remove(0);
        let second = Datagram { ttl: 3, dscp: 0, ..datagram.clone() }.fragments(3008).remove(1);
        let mut bench = Bench::new(DecoderSettings::default());
        feed(&mut bench, &[second, first]);
        assert_eq!((bench.found[0].ttl, bench.found[0].dscp), (datagram.ttl, datagram.dscp));
    }
}

#[test]
fn duplicate_fragment_counts_once() {
    for datagram in both_versions().map(large) {
        let fragments = datagram.fragments(1448);
        let mut bench = Bench::new(DecoderSettings::default());
        let twice: Vec<Vec<u8>> = fragments[..4].iter().flat_map(|packet| [packet.clone(), packet.clone()]).collect();
        feed(&mut bench, &twice);
        assert_eq!(bench.dropped(DropReason::FragmentDuplicate), 4);
        feed(&mut bench, &fragments[4..]);
        assert_eq!(bench.found[0].payload, datagram.payload);
    }
}

#[test]
fn overlapping_fragments_discard_the_datagram() {
    for datagram in both_versions().map(large) {
        let fragments = datagram.fragments(1448);
        let overlaps = [
            datagram.fragment(1440, true, &[0; 16]),
            datagram.fragment(0, true, &[0; 1448]),
            datagram.fragment(8, true, &[0; 8]),
            datagram.fragment(0, true, &[0; 1456]),
        ];
        for overlap in overlaps {
            let mut bench = Bench::new(DecoderSettings::default());
            feed(&mut bench, &fragments[..2]);
            feed(&mut bench, &[overlap]);
            assert_eq!(bench.counters().fragments_pending, 0);
            feed(&mut bench, &fragments[2..]);
            assert_eq!(bench.found, []);
            assert_eq!(bench.dropped(DropReason::FragmentOverlap), fragments.len() as u64 + 1);
        }
    }
}

#[test]
fn fragments_with_different_ends_discard_the_datagram() {
    for datagram in both_versions().map(large) {
        let last = datagram.fragment(1448, false, &[1; 100]);
        let contradictions = [
            datagram.fragment(1448, false, &[1; 99]),
            datagram.fragment(2000, false, &[1; 8]),
            datagram.fragment(2000, true, &[1; 8]),
            datagram.fragment(800, false, &[1; 8]),
        ];
        for contradiction in contradictions {
            let mut bench = Bench::new(DecoderSettings::default());
            feed(&mut bench, &[last.clone(), contradiction]);
            assert_eq!(bench.dropped(DropReason::FragmentOverlap), 2);
        }
    }
}

#[test]
fn incomplete_datagram_times_out() {
    for datagram in both_versions().map(large) {
        let fragments = datagram.fragments(1448);
        let limits = ReassemblyLimits { ipv4_timeout_ns: SECOND_NS, ipv6_timeout_ns: SECOND_NS, ..Default::default() };
        let mut bench = with_limits(limits);
        feed(&mut bench, &fragments[..3]);
        bench.decoder.expire(2 * SECOND_NS);
        assert_eq!(bench.counters().fragments_pending, 3);
        bench.decoder.expire(2 * SECOND_NS + 1);
        assert_eq!(bench.counters().fragments_pending, 0);
        assert_eq!(bench.dropped(DropReason::FragmentTimeout), 3);
        assert_eq!(bench.decoder.reassembly_bytes(), 0);
        assert!(bench.counters().add_up());
    }
}

#[test]
fn ipv4_waits_30_seconds_and_ipv6_60_whichever_came_first() {
    let [v4, v6] = both_versions().map(large);
    for first_is_v6 in [false, true] {
        let mut bench = Bench::new(DecoderSettings::default());
        let order = if first_is_v6 { [&v6, &v4] } else { [&v4, &v6] };
        for (datagram, captured_at_ns) in order.into_iter().zip([0, 1]) {
            bench.packet(LinkType::Raw, captured_at_ns, &datagram.fragments(4000)[0]);
        }
        bench.decoder.expire(30 * SECOND_NS);
        assert_eq!(bench.counters().fragments_pending, 2);
        bench.decoder.expire(30 * SECOND_NS + 2);
        assert_eq!(bench.counters().fragments_pending, 1);
        let outcome = bench.packet(LinkType::Raw, 60 * SECOND_NS, &v6.fragments(4000)[1]);
        assert_eq!(outcome, Outcome::Delivered, "IPv6 first: {first_is_v6}");
        bench.packet(LinkType::Raw, 0, &v6.fragments(4000)[0]);
        bench.decoder.expire(60 * SECOND_NS + 1);
        assert_eq!(bench.counters().fragments_pending, 0);
    }
}

#[test]
fn fragment_does_not_join_one_from_another_time() {
    for datagram in both_versions().map(large) {
        let fragments = datagram.fragments(4000);
        for other_time in [0, 200 * SECOND_NS] {
            let mut bench = Bench::new(DecoderSettings::default());
            bench.packet(LinkType::Raw, 100 * SECOND_NS, &fragments[0]);
            let outcome = bench.packet(LinkType::Raw, other_time, &fragments[1]);
            assert_eq!(outcome, Outcome::Pending, "{other_time}");
            assert_eq!(bench.dropped(DropReason::FragmentTimeout), 1);
        }
    }
}

#[test]
fn datagrams_incomplete_at_the_end_of_a_file_are_counted() {
    let mut bench = Bench::new(DecoderSettings::default());
    feed(&mut bench, &large(ipv4_datagram()).fragments(1448)[1..]);
    feed(&mut bench, &large(ipv6_datagram()).fragments(1448)[..2]);
    bench.finish();
    assert_eq!(bench.dropped(DropReason::FragmentTimeout), 6);
}

#[test]
fn interleaved_datagrams_are_kept_apart() {
    let mut datagrams = Vec::new();
    for (index, datagram) in both_versions().map(large).into_iter().enumerate() {
        for host in 1..=3 {
            for identification in [7, 8] {
                let address = if index == 0 { format!("203.0.113.{host}:9") } else { format!("[2001:db8::{host}]:9") };
                let source: SocketAddr = address.parse().unwrap();
                let mut datagram = Datagram { source, identification, ..datagram.clone() };
                datagram.payload[0] = datagrams.len() as u8;
                datagrams.push(datagram);
            }
        }
    }
    let fragments: Vec<Vec<Vec<u8>>> = datagrams.iter().map(|datagram| datagram.fragments(1448)).collect();
    let mut bench = Bench::new(DecoderSettings::default());
    for round in 0..fragments[0].len() {
        for datagram_fragments in &fragments {
            feed(&mut bench, &datagram_fragments[round..=round]);
        }
    }
    let payloads: Vec<&[u8]> = bench.found.iter().map(|found| &found.payload[..]).collect();
    assert_eq!(payloads, datagrams.iter().map(|datagram| &datagram.payload[..]).collect::<Vec<_>>());
}

#[test]
fn fragments_of_different_vlans_are_kept_apart() {
    let datagram = large(ipv4_datagram());
    let fragments = datagram.fragments(4000);
    let mut bench = Bench::new(DecoderSettings::default());
    for (vlan, fragment) in [(1, 0), (2, 1), (2, 0), (1, 1)] {
        bench.packet(LinkType::Ethernet, 0, &tagged(&ethernet(&fragments[fragment]), &[(0x8100, vlan)]));
    }
    assert_eq!(bench.found.iter().map(|found| found.vlans.clone()).collect::<Vec<_>>(), [[2], [1]]);
}

#[test]
fn memory_is_bounded_and_the_oldest_datagram_is_evicted() {
    for datagram in both_versions().map(large) {
        let limits = ReassemblyLimits { bytes: 100_000, ..ReassemblyLimits::default() };
        let mut bench = with_limits(limits);
        let fragments: Vec<Vec<Vec<u8>>> =
            (0..1000).map(|identification| datagram.clone().identified(identification).fragments(4096)).collect();
        for datagram_fragments in &fragments {
            feed(&mut bench, &datagram_fragments[..1]);
            assert!(bench.decoder.reassembly_bytes() <= limits.bytes);
        }
        let pending = bench.counters().fragments_pending;
        assert!((1..=limits.bytes as u64 / 4096).contains(&pending), "{pending}");
        assert_eq!(bench.dropped(DropReason::FragmentMemory), 1000 - pending);
        // The newest datagram is still there, the oldest is not.
        assert_eq!(feed(&mut bench, &fragments[999][1..]), [Outcome::Delivered]);
        assert_eq!(feed(&mut bench, &fragments[0][1..]), [Outcome::Pending]);
    }
}

#[test]
fn datagram_larger_than_the_memory_is_discarded() {
    let mut bench = with_limits(ReassemblyLimits { bytes: 4096, ..ReassemblyLimits::default() });
    let fragments = large(ipv4_datagram()).fragments(1448);
    feed(&mut bench, &fragments);
    assert_eq!(bench.found, []);
    assert!(bench.dropped(DropReason::FragmentMemory) >= 2);
    bench.finish();
}

#[test]
fn number_of_incomplete_datagrams_is_bounded() {
    let mut bench = with_limits(ReassemblyLimits { datagrams: 10, ..ReassemblyLimits::default() });
    for identification in 0..50 {
        feed(&mut bench, &large(ipv6_datagram()).identified(identification).fragments(4096)[..1]);
    }
    assert_eq!(bench.counters().fragments_pending, 10);
    assert_eq!(bench.dropped(DropReason::FragmentMemory), 40);
    let mut none = with_limits(ReassemblyLimits { datagrams: 0, ..ReassemblyLimits::default() });
    assert_eq!(
        feed(&mut none, &large(ipv4_datagram()).fragments(4096)[..1]),
        [Outcome::Dropped(DropReason::FragmentMemory)]
    );
}

#[test]
fn truncated_fragment_never_completes_a_datagram() {
    for datagram in both_versions().map(large) {
        let fragments = datagram.fragments(1448);
        let mut bench = Bench::new(DecoderSettings::default());
        feed(&mut bench, &fragments[1..]);
        for kept in 0..fragments[0].len() {
            let outcome = bench.cut_packet(LinkType::Raw, SECOND_NS, &fragments[0][..kept], fragments[0].len());
            assert_eq!(outcome, Outcome::Dropped(DropReason::Truncated));
        }
        assert_eq!(feed(&mut bench, &fragments[..1]), [Outcome::Delivered]);
    }
}

#[test]
fn impossible_fragments_are_dropped() {
    for datagram in both_versions() {
        let mut bench = Bench::new(DecoderSettings::default());
        let impossible = [
            datagram.fragment(0, true, &[]),
            datagram.fragment(8, false, &[]),
            datagram.fragment(0, true, &[1; 13]),
            datagram.fragment(65_528, false, &[1; 8]),
        ];
        for outcome in feed(&mut bench, &impossible) {
            assert_eq!(outcome, Outcome::Dropped(DropReason::FragmentInvalid));
        }
    }
    // A fragment header inside a reassembled payload.
    let nested = Datagram {
        extensions: vec![Extension::fragment(0, true, 1), Extension::fragment(0, true, 2)],
        payload: vec![0; 8],
        ..ipv6_datagram()
    };
    let mut bench = Bench::new(DecoderSettings::default());
    feed(&mut bench, &[nested.packet()]);
    let rest = Datagram { identification: 1, ..ipv6_datagram() }.fragment(24, false, &[0; 8]);
    assert_eq!(feed(&mut bench, &[rest]), [Outcome::Dropped(DropReason::FragmentInvalid)]);
}

#[test]
fn reassembled_packet_without_udp_is_counted_once() {
    let mut packets = large(ipv4_datagram()).fragments(4000);
    for packet in &mut packets {
        packet[9] = 6;
    }
    let mut bench = Bench::new(DecoderSettings::default());
    assert_eq!(feed(&mut bench, &packets), [Outcome::Pending, Outcome::Dropped(DropReason::NotUdp)]);
}

proptest! {
    #[test]
    fn any_fragmentation_in_any_order_gives_the_same_datagram(
        length in 0_usize..4000,
        step in 8_usize..2000,
        is_ipv6: bool,
        order in prop::collection::vec(any::<u32>(), 600),
    ) {
        let base = if is_ipv6 { ipv6_datagram() } else { ipv4_datagram() };
        let datagram = Datagram { payload: (0..length).map(|index| index as u8).collect(), ..base };
        let mut packets: Vec<(u32, Vec<u8>)> = order.into_iter().zip(datagram.fragments(step)).collect();
        packets.sort();
        let packets: Vec<Vec<u8>> = packets.into_iter().map(|(_, packet)| packet).collect();
        let mut bench = Bench::new(DecoderSettings::default());
        feed(&mut bench, &packets);
        prop_assert_eq!(bench.found.len(), 1);
        prop_assert_eq!(&bench.found[0].payload, &datagram.payload);
        prop_assert_eq!(bench.found[0].reassembled, packets.len() > 1);
    }
}
