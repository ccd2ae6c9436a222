//! The decoder: packets in, datagrams out.

mod corpus;
mod damage;
mod fragments;
mod layers;
mod tunnels;

use std::net::SocketAddr;

use sekiwake_capture::decode::{Counters, Decoder, DecoderSettings, DropReason, LinkType, Outcome, Packet};
use sekiwake_testkit::packets::Datagram;

/// A datagram that the decoder delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) captured_at_ns: u64,
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
    pub(crate) payload: Vec<u8>,
    pub(crate) vlans: Vec<u16>,
    pub(crate) dscp: u8,
    pub(crate) ttl: u8,
    pub(crate) reassembled: bool,
    pub(crate) decapsulated: bool,
}

/// A decoder that keeps the datagrams delivered, and checks its counters after every packet.
pub(crate) struct Bench {
    pub(crate) decoder: Decoder,
    pub(crate) found: Vec<Found>,
}

impl Bench {
    pub(crate) fn new(settings: DecoderSettings) -> Bench {
        Bench { decoder: Decoder::new(settings), found: Vec::new() }
    }

    pub(crate) fn packet(&mut self, link: LinkType, captured_at_ns: u64, data: &[u8]) -> Outcome {
        self.cut_packet(link, captured_at_ns, data, data.len())
    }

    pub(crate) fn cut_packet(
        &mut self,
        link: LinkType,
        captured_at_ns: u64,
        data: &[u8],
        original_length: usize,
    ) -> Outcome {
        let packet = Packet { captured_at_ns, link, data, original_length: original_length as u32 };
        let found = &mut self.found;
        let before = found.len();
        let outcome = self.decoder.decode(&packet, &mut |datagram| {
            found.push(Found {
                captured_at_ns: datagram.captured_at_ns,
                source: SocketAddr::new(datagram.source, datagram.source_port),
                destination: SocketAddr::new(datagram.destination, datagram.destination_port),
                payload: datagram.payload.to_vec(),
                vlans: datagram.vlans.to_vec(),
                dscp: datagram.dscp,
                ttl: datagram.ttl,
                reassembled: datagram.reassembled,
                decapsulated: datagram.decapsulated,
            });
        });
        assert_eq!(self.found.len() - before, usize::from(outcome == Outcome::Delivered));
        assert!(self.counters().add_up(), "{:?}", self.counters());
        assert_eq!(self.counters().datagrams, self.found.len() as u64);
        outcome
    }

    pub(crate) fn counters(&self) -> &Counters {
        self.decoder.counters()
    }

    pub(crate) fn dropped(&self, reason: DropReason) -> u64 {
        self.counters().dropped.get(reason)
    }

    pub(crate) fn finish(&mut self) {
        self.decoder.finish();
        assert!(self.counters().add_up(), "{:?}", self.counters());
        assert_eq!(self.counters().fragments_pending, 0);
    }
}

/// Decodes one packet and checks that it delivers exactly the datagram `expected`.
#[track_caller]
pub(crate) fn finds(link: LinkType, packet: &[u8], expected: &Datagram) -> Found {
    let mut bench = Bench::new(DecoderSettings::default());
    let outcome = bench.packet(link, 7, packet);
    assert_eq!(outcome, Outcome::Delivered);
    let found = bench.found.pop().expect("a datagram was delivered");
    assert_eq!((found.source, found.destination), (expected.source, expected.destination));
    assert_eq!(found.payload, expected.payload);
    assert_eq!((found.dscp, found.ttl, found.captured_at_ns), (expected.dscp, expected.ttl, 7));
    found
}

/// The reason for which the decoder drops a packet.
#[track_caller]
pub(crate) fn drop_reason(link: LinkType, packet: &[u8]) -> DropReason {
    match Bench::new(DecoderSettings::default()).packet(link, 7, packet) {
        Outcome::Dropped(reason) => reason,
        outcome => panic!("{outcome:?}, expected a dropped packet"),
    }
}

pub(crate) fn ipv4_datagram() -> Datagram {
    Datagram { dscp: 46, ttl: 61, ..Datagram::new("198.51.100.1:5140", "198.51.100.2:514", "<13>over IPv4") }
}

pub(crate) fn ipv6_datagram() -> Datagram {
    Datagram { dscp: 46, ttl: 61, ..Datagram::new("[2001:db8::1]:5140", "[2001:db8::2]:514", "<13>over IPv6") }
}

pub(crate) fn both_versions() -> [Datagram; 2] {
    [ipv4_datagram(), ipv6_datagram()]
}
