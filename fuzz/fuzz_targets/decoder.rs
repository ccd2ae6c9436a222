//! Sequences of packets: the counters add up, memory stays within its bounds, and a datagram has no
//! bytes that were not in a packet.
//!
//! ```text
//! input   limits 1 | packet, packet, ...
//! packet  link, time 1 | length 2 | missing 1 | data
//! ```

#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use sekiwake_capture::{
    decode::{Decoder, DecoderSettings, LinkType, Outcome, Packet, ReassemblyLimits},
    deduplicate::DeduplicateSettings,
};
use sekiwake_record::MAX_PAYLOAD;

const LINKS: [LinkType; 5] =
    [LinkType::Ethernet, LinkType::Raw, LinkType::Null, LinkType::LinuxCookedV1, LinkType::LinuxCookedV2];

fuzz_target!(|input: &[u8]| {
    let Some((&limits, mut rest)) = input.split_first() else {
        return;
    };
    let reassembly = ReassemblyLimits {
        bytes: if limits & 1 == 0 { 1 << 20 } else { 2000 },
        datagrams: if limits & 2 == 0 { 100 } else { 2 },
        ipv4_timeout_ns: 10,
        ipv6_timeout_ns: 20,
    };
    let mtu = (limits & 4 != 0).then_some(100);
    let mut decoder = Decoder::new(DecoderSettings {
        reassembly,
        mtu,
        tunnels: limits & 8 == 0,
        deduplicate: (limits & 16 != 0).then_some(DeduplicateSettings { window: Duration::from_millis(20), seed: 0 }),
    });
    let mut captured_at_ns = 0_u64;
    let mut fed_bytes = 0;
    let mut delivered = 0;
    while let Some((&[link_and_time, high, low, missing], after)) = rest.split_first_chunk() {
        let length = usize::from(u16::from_be_bytes([high, low])).min(after.len());
        let (data, next) = after.split_at(length);
        rest = next;
        captured_at_ns = captured_at_ns.wrapping_add_signed(i64::from(link_and_time as i8 / 8));
        fed_bytes += data.len();
        let packet = Packet {
            captured_at_ns,
            link: LINKS[usize::from(link_and_time) % LINKS.len()],
            data,
            original_length: data.len() as u32 + u32::from(missing),
        };
        let mut calls = 0;
        let outcome = decoder.decode(&packet, &mut |datagram| {
            calls += 1;
            assert!(datagram.payload.len() <= MAX_PAYLOAD);
            assert!(datagram.dscp < 64 && datagram.vlans.iter().all(|vlan| *vlan < 4096));
            assert_eq!(datagram.source.is_ipv4(), datagram.destination.is_ipv4());
            assert_eq!(datagram.captured_at_ns, captured_at_ns);
            // The UDP header is in the eight bytes before the payload, and has its length.
            if datagram.reassembled {
                assert!(datagram.payload.len() < fed_bytes);
            } else {
                let place = datagram.payload.as_ptr() as usize - data.as_ptr() as usize;
                assert!(place + datagram.payload.len() <= data.len());
                let length = u16::from_be_bytes([data[place - 4], data[place - 3]]);
                assert_eq!(usize::from(length), datagram.payload.len() + 8);
                let port = u16::from_be_bytes([data[place - 6], data[place - 5]]);
                assert_eq!(port, datagram.destination_port);
            }
        });
        assert_eq!(calls, u32::from(outcome == Outcome::Delivered));
        delivered += u64::from(calls);
        assert!(decoder.counters().add_up());
        assert_eq!(decoder.counters().datagrams, delivered);
        assert!(decoder.reassembly_bytes() <= reassembly.bytes);
        assert!(decoder.counters().fragments_pending <= fed_bytes as u64);
    }
    decoder.finish();
    assert!(decoder.counters().add_up());
    assert_eq!((decoder.counters().fragments_pending, decoder.reassembly_bytes()), (0, 0));
});
