//! From packets to batches: decode, claim, identify, batch. No clock, no libpcap, no socket.

use std::{net::SocketAddr, sync::Arc};

use sekiwake_bus::{Batcher, Outbound, is_own};
use sekiwake_record::{Flags, Format, Kind, Record, Topic, dscp_ttl};

use crate::{
    decode::{Counters, Datagram, Decoder, DecoderSettings, Packet},
    ports::Ports,
};

/// What one capture thread does with the packets that it gets.
pub struct Pipeline {
    decoder: Decoder,
    claims: Claims,
}

/// Which datagrams are wanted, and the batches that they go to.
struct Claims {
    ports: Arc<Ports>,
    own: Arc<[SocketAddr]>,
    batcher: Batcher,
    tally: Tally,
}

/// What became of datagrams: running totals. `datagrams == claimed + other_port + own_destination`, where `datagrams` is
/// the decoder's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Datagrams that were put into batches, by kind and format.
    pub claimed: [[u64; Format::ALL.len()]; Kind::ALL.len()],
    /// Datagrams to ports that no setting claims.
    pub other_port: u64,
    /// Datagrams to destinations of this installation.
    pub own_destination: u64,
    /// Capture time of the newest packet, nanoseconds since 1970-01-01T00:00:00Z.
    pub newest_ns: u64,
}

impl Tally {
    /// All datagrams that were put into batches.
    pub fn claimed_total(&self) -> u64 {
        self.claimed.iter().flatten().sum()
    }
}

impl Pipeline {
    /// A pipeline that has seen nothing.
    pub fn new(decoder: DecoderSettings, ports: Arc<Ports>) -> Pipeline {
        let claims = Claims { ports, own: Arc::new([]), batcher: Batcher::default(), tally: Tally::default() };
        Pipeline { decoder: Decoder::new(decoder), claims }
    }

    /// Takes one packet.
    #[inline]
    pub fn packet(&mut self, packet: &Packet<'_>) {
        let claims = &mut self.claims;
        claims.tally.newest_ns = claims.tally.newest_ns.max(packet.captured_at_ns);
        self.decoder.decode(packet, &mut |datagram| claims.claim(datagram));
    }

    /// What is ready to be published: full batches, or with `all` the open ones too.
    pub fn take(&mut self, all: bool) -> Vec<Outbound> {
        if all { self.claims.batcher.take_all() } else { self.claims.batcher.take_full() }
    }

    /// Whether no datagram waits in a batch.
    pub fn is_empty(&self) -> bool {
        self.claims.batcher.is_empty()
    }

    /// Gives a buffer back for another batch.
    pub fn recycle(&mut self, buffer: Vec<u8>) {
        self.claims.batcher.recycle(buffer);
    }

    /// Gives up fragments that have waited too long by the time of day.
    pub fn expire(&mut self, now_ns: u64) {
        self.decoder.expire(now_ns);
    }

    /// Gives up all fragments that wait: no more packets will come.
    pub fn finish(&mut self) {
        self.decoder.finish();
    }

    /// Leaves alone, from now on, what goes to these addresses.
    pub fn set_own_destinations(&mut self, own: Arc<[SocketAddr]>) {
        self.claims.own = own;
    }

    /// Changes the largest IP packet that the link carries, bytes; `None`: not known.
    pub fn set_mtu(&mut self, mtu: Option<u32>) {
        self.decoder.set_mtu(mtu);
    }

    /// What became of packets.
    pub fn counters(&self) -> &Counters {
        self.decoder.counters()
    }

    /// What became of datagrams.
    pub fn tally(&self) -> &Tally {
        &self.claims.tally
    }
}

impl Claims {
    #[inline]
    fn claim(&mut self, datagram: &Datagram<'_>) {
        let Some(kind) = self.ports.kind_of(datagram.destination_port) else {
            self.tally.other_port += 1;
            return;
        };
        if is_own(&self.own, datagram.destination, datagram.destination_port) {
            self.tally.own_destination += 1;
            return;
        }
        let record = record_of(Some(kind), datagram);
        self.tally.claimed[kind.index()][usize::from(record.format.code())] += 1;
        self.batcher.push(Topic::of(kind, datagram.source), &record);
    }
}

/// What is published of a datagram to a port of this kind, or to one that no setting claims.
#[inline]
pub(crate) fn record_of<'a>(kind: Option<Kind>, datagram: &Datagram<'a>) -> Record<'a> {
    Record {
        captured_at_ns: datagram.captured_at_ns,
        source: datagram.source,
        source_port: datagram.source_port,
        destination: datagram.destination,
        destination_port: datagram.destination_port,
        format: sekiwake_identify::identify(kind, datagram.payload),
        flags: Flags::default()
            .with(Flags::REASSEMBLED, datagram.reassembled)
            .with(Flags::DECAPSULATED, datagram.decapsulated),
        payload: datagram.payload,
        vlans: datagram.vlans.clone(),
        dscp_ttl: dscp_ttl(datagram.dscp, datagram.ttl),
    }
}
