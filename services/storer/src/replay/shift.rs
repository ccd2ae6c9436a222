//! `--shift-time`: moves the export time in the headers of NetFlow v5 and v9 by the time that has
//! passed since the capture.
//!
//! ```text
//! NetFlow v5   0 version  2 count  4 sysUptime  8 unix_secs  12 unix_nsecs
//! NetFlow v9   0 version  2 count  4 sysUptime  8 unix_secs  12 sequence
//! ```
//! The flows' times count from the uptime, so that they move with the header. Datagrams whose
//! records hold absolute times stay as they are: all of IPFIX, and NetFlow v9 by its templates.

use std::net::SocketAddr;

use sekiwake_flow::{DestinationSlots, Exporters, Limits, Set};
use sekiwake_record::{Format, Record};

/// The fields that hold absolute times, by their ranges (the IANA registry of IPFIX information
/// elements): flow start and end, collection time, observation time.
const ABSOLUTE: [std::ops::RangeInclusive<u16>; 3] = [150..=157, 258..=258, 322..=325];

const NANOS: i128 = 1_000_000_000;

/// What was done to a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shifted {
    Yes,
    /// Its records hold absolute times.
    Absolute,
    /// It has no export time.
    NoTime,
}

/// Knows the templates of NetFlow v9.
pub(super) struct Shift {
    exporters: Exporters,
}

impl Shift {
    pub(super) fn new() -> Shift {
        Shift { exporters: Exporters::new(Limits::default()) }
    }

    /// Reads the templates of a datagram that is not sent.
    pub(super) fn learn(&mut self, record: &Record<'_>) {
        self.has_absolute_times(record);
    }

    /// Copies the payload of a record, with its export time `now_ns - captured_at_ns` later.
    pub(super) fn apply(&mut self, record: &Record<'_>, now_ns: u64, out: &mut Vec<u8>) -> Shifted {
        out.clear();
        out.extend_from_slice(record.payload);
        match record.format {
            Format::NetFlow5 | Format::NetFlow9 => {}
            Format::Ipfix => return Shifted::Absolute,
            _ => return Shifted::NoTime,
        }
        if record.format == Format::NetFlow9 && self.has_absolute_times(record) {
            return Shifted::Absolute;
        }
        let by = i128::from(now_ns) - i128::from(record.captured_at_ns);
        let seconds = |bytes: &[u8]| bytes.try_into().map(u32::from_be_bytes).map(i128::from);
        let (Some(header), true) = (out.get_mut(8..16), record.payload.len() >= 16) else { return Shifted::NoTime };
        let (Ok(secs), Ok(nsecs)) = (seconds(&header[..4]), seconds(&header[4..])) else { return Shifted::NoTime };
        if record.format == Format::NetFlow5 {
            let at = secs * NANOS + nsecs + by;
            header[..4].copy_from_slice(&word(at.div_euclid(NANOS)));
            header[4..].copy_from_slice(&word(at.rem_euclid(NANOS)));
        } else {
            header[..4].copy_from_slice(&word(secs + (by + NANOS / 2).div_euclid(NANOS)));
        }
        Shifted::Yes
    }

    /// Whether a datagram of NetFlow v9 has data with absolute times. What has no template is taken
    /// to have none.
    fn has_absolute_times(&mut self, record: &Record<'_>) -> bool {
        let source = SocketAddr::new(record.source, record.source_port);
        let mut is_absolute = false;
        let slots = DestinationSlots::default();
        self.exporters.observe_sets(source, record.format, record.payload, record.captured_at_ns, slots, |set| {
            if let Set::Data { id, templates, .. } = set
                && let Ok(layout) = templates.get(id)
            {
                let is_time = |element| ABSOLUTE.iter().any(|range| range.contains(&element));
                is_absolute |= layout.fields().any(|field| field.enterprise.is_none() && is_time(field.element));
            }
        });
        is_absolute
    }
}

/// The time on the wire, which wraps as the exporters' does.
fn word(number: i128) -> [u8; 4] {
    (number as u32).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use sekiwake_record::{Flags, Vlans};

    use super::*;

    const CAPTURED: u64 = 1_700_000_000_250_000_000;
    const NOW: u64 = CAPTURED + 86_400_000_000_000 + 900_000_000;

    fn record(format: Format, payload: &[u8]) -> Record<'_> {
        Record {
            captured_at_ns: CAPTURED,
            source: [198, 51, 100, 7].into(),
            source_port: 4000,
            destination: [203, 0, 113, 1].into(),
            destination_port: 2055,
            format,
            flags: Flags::default(),
            payload,
            vlans: Vlans::new(),
            dscp_ttl: 0,
            origin: None,
        }
    }

    fn netflow9(sets: &[&[u16]]) -> Vec<u8> {
        let mut payload = [9, 1, 0, 1000].map(u16::to_be_bytes).concat();
        payload.extend(1_700_000_000_u32.to_be_bytes());
        payload.extend([0; 8]);
        sets.iter().for_each(|set| payload.extend(set.iter().copied().flat_map(u16::to_be_bytes)));
        payload
    }

    #[test]
    fn header_of_netflow_5_moves_with_its_nanoseconds() {
        let mut payload = vec![0; 72];
        payload[..4].copy_from_slice(&[0, 5, 0, 1]);
        payload[8..12].copy_from_slice(&1_700_000_000_u32.to_be_bytes());
        payload[12..16].copy_from_slice(&200_000_000_u32.to_be_bytes());
        let mut out = Vec::new();
        assert_eq!(Shift::new().apply(&record(Format::NetFlow5, &payload), NOW, &mut out), Shifted::Yes);
        assert_eq!(out[8..12], (1_700_000_000_u32 + 86_401).to_be_bytes());
        assert_eq!(out[12..16], 100_000_000_u32.to_be_bytes());
        assert_eq!((&out[..8], &out[16..]), (&payload[..8], &payload[16..]));
    }

    #[test]
    fn netflow_9_moves_unless_its_template_has_absolute_times() {
        // Template 300: flow start in milliseconds, or uptime.
        let template = |element| netflow9(&[&[0, 12, 300, 1, element, 8]]);
        let data = netflow9(&[&[300, 12, 1, 2, 3, 4]]);
        for (element, shifted) in [(152, Shifted::Absolute), (22, Shifted::Yes)] {
            let mut shift = Shift::new();
            let mut out = Vec::new();
            shift.learn(&record(Format::NetFlow9, &template(element)));
            assert_eq!(shift.apply(&record(Format::NetFlow9, &data), NOW, &mut out), shifted);
            let seconds = if shifted == Shifted::Yes { 1_700_000_000_u32 + 86_401 } else { 1_700_000_000 };
            assert_eq!(out[8..12], seconds.to_be_bytes());
            assert_eq!(out[12..], data[12..]);
        }
    }

    #[test]
    fn other_formats_and_short_headers_stay() {
        for (format, shifted) in [
            (Format::Ipfix, Shifted::Absolute),
            (Format::Sflow5, Shifted::NoTime),
            (Format::Rfc3164, Shifted::NoTime),
            (Format::NetFlow5, Shifted::NoTime),
            (Format::NetFlow9, Shifted::NoTime),
        ] {
            let payload = [0; 15];
            let mut out = Vec::new();
            assert_eq!(Shift::new().apply(&record(format, &payload), NOW, &mut out), shifted, "{format:?}");
            assert_eq!(out, payload);
        }
    }
}
