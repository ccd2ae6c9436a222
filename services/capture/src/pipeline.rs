//! Turns packets into batches: decode, claim, identify, batch. No clock, no libpcap, no socket.

use std::{net::SocketAddr, sync::Arc};

use sekiwake_group::OwnList;
use sekiwake_record::{Batcher, Flags, Format, Kind, Origin, Outbound, Record, Topic, dscp_ttl};

use crate::{
    decode::{Counters, Datagram, Decoder, DecoderSettings, DropReason, Outcome, Packet},
    deduplicate::Deduplicator,
    ports::Ports,
};

/// The packet processing of one capture thread.
pub struct Pipeline {
    decoder: Decoder,
    claims: Claims,
}

/// Decides which datagrams are published, and adds them to batches.
struct Claims {
    ports: Arc<Ports>,
    own: Arc<OwnList>,
    /// By index of `own`: datagrams that are not in its counts yet.
    left_alone: Vec<u64>,
    deduplicator: Option<Deduplicator>,
    /// The capture's number of the interface.
    interface: u8,
    batcher: Batcher,
    tally: Tally,
}

/// Running totals of datagrams: the decoder's
/// [`datagrams`](Counters::datagrams)` == claimed + other_port + own_destination + duplicate`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Datagrams added to batches, by kind and format.
    pub claimed: [[u64; Format::ALL.len()]; Kind::ALL.len()],
    /// Datagrams to ports that no setting claims.
    pub other_port: u64,
    /// Datagrams to destinations of this installation.
    pub own_destination: u64,
    /// Copies of datagrams that were captured before.
    pub duplicate: u64,
    /// Packets that the decoder dropped as [`DropReason::Offload`] whose datagrams would not have
    /// been published anyway: to another port, or to a destination of this installation.
    pub unclaimed_offload: u64,
    /// Capture time of the newest packet, nanoseconds since 1970-01-01T00:00:00Z.
    pub newest_ns: u64,
}

impl Tally {
    /// All datagrams added to batches.
    pub fn claimed_total(&self) -> u64 {
        self.claimed.iter().flatten().sum()
    }
}

impl Pipeline {
    /// A pipeline without packets.
    pub fn new(decoder: DecoderSettings, ports: Arc<Ports>) -> Pipeline {
        let claims = Claims {
            ports,
            own: Arc::default(),
            left_alone: Vec::new(),
            deduplicator: decoder.deduplicate.map(Deduplicator::new),
            interface: 0,
            batcher: Batcher::default(),
            tally: Tally::default(),
        };
        Pipeline { decoder: Decoder::new(decoder), claims }
    }

    /// The same, for the interface with this number.
    #[must_use]
    pub fn of_interface(mut self, interface: u8) -> Pipeline {
        self.claims.interface = interface;
        self
    }

    /// Processes one packet.
    #[inline]
    pub fn packet(&mut self, packet: &Packet<'_>) {
        let claims = &mut self.claims;
        claims.tally.newest_ns = claims.tally.newest_ns.max(packet.captured_at_ns);
        let outcome = self.decoder.decode(packet, &mut |datagram| claims.claim(datagram));
        if outcome == Outcome::Dropped(DropReason::Offload)
            && let Some(destination) = self.decoder.coalesced_to()
        {
            claims.tally.unclaimed_offload += u64::from(!claims.would_claim(destination));
        }
    }

    /// Takes the full batches, or with `all` the open ones too.
    pub fn take(&mut self, all: bool) -> Vec<Outbound> {
        if all { self.claims.batcher.take_all() } else { self.claims.batcher.take_full() }
    }

    /// Takes back a buffer for another batch.
    pub fn recycle(&mut self, buffer: Vec<u8>) {
        self.claims.batcher.recycle(buffer);
    }

    /// Discards the fragments that have timed out at `now_ns`, nanoseconds since
    /// 1970-01-01T00:00:00Z.
    pub fn expire(&mut self, now_ns: u64) {
        self.decoder.expire(now_ns);
    }

    /// Discards all pending fragments at the end of a capture.
    pub fn finish(&mut self) {
        self.decoder.finish();
    }

    /// From now on, ignores datagrams to these addresses.
    pub fn set_own_destinations(&mut self, own: Arc<OwnList>) {
        self.report_left_alone();
        self.claims.left_alone = vec![0; own.addresses().len()];
        self.claims.own = own;
    }

    /// Adds the datagrams to destinations of clients since the last call to the counts of the list.
    pub fn report_left_alone(&mut self) {
        let Claims { own, left_alone, .. } = &mut self.claims;
        own.take_counts(left_alone);
    }

    /// Sets the largest IP packet that the link carries, bytes; `None` if unknown.
    pub fn set_mtu(&mut self, mtu: Option<u32>) {
        self.decoder.set_mtu(mtu);
    }

    /// Packets of coalesced datagrams that would otherwise have been published.
    pub fn lost_to_offload(&self) -> u64 {
        self.counters().dropped.get(DropReason::Offload) - self.claims.tally.unclaimed_offload
    }

    /// Datagrams and fragments forgotten before their copies could be captured.
    pub fn evicted(&self) -> u64 {
        self.decoder.evicted() + self.claims.deduplicator.as_ref().map_or(0, Deduplicator::evicted)
    }

    /// Running totals of packets.
    pub fn counters(&self) -> &Counters {
        self.decoder.counters()
    }

    /// Running totals of datagrams.
    pub fn tally(&self) -> &Tally {
        &self.claims.tally
    }
}

impl Claims {
    /// Whether a datagram to this destination would be published.
    #[cold]
    fn would_claim(&self, destination: SocketAddr) -> bool {
        let is_own = self.own.position(destination.ip(), destination.port()).is_some();
        self.ports.kind_of(destination.port()).is_some() && !is_own
    }

    #[inline]
    fn claim(&mut self, datagram: &Datagram<'_>) {
        let Some(kind) = self.ports.kind_of(datagram.destination_port) else {
            self.tally.other_port += 1;
            return;
        };
        if let Some(index) = self.own.position(datagram.destination, datagram.destination_port) {
            self.tally.own_destination += 1;
            self.left_alone[index] += 1;
            return;
        }
        if let Some(deduplicator) = &mut self.deduplicator {
            let fingerprint = deduplicator.fingerprint(datagram);
            if deduplicator.is_copy(fingerprint, datagram.captured_at_ns) {
                self.tally.duplicate += 1;
                return;
            }
        }
        let record = record_of(Some(kind), datagram, self.interface);
        self.tally.claimed[kind.index()][usize::from(record.format.code())] += 1;
        self.batcher.push(Topic::of(kind, datagram.source), &record);
    }
}

/// The record of a datagram to a port of this kind, or to a port that no setting claims.
#[inline]
pub(crate) fn record_of<'a>(kind: Option<Kind>, datagram: &Datagram<'a>, interface: u8) -> Record<'a> {
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
        origin: Some(Origin {
            ip_id: (datagram.source.is_ipv4() || datagram.identification != 0).then_some(datagram.identification),
            interface,
        }),
    }
}
