//! NetFlow v5.
//!
//! ```text
//! header  5 u16 │ count u16 │ uptime u32 │ secs u32 │ nsecs u32 │ sequence u32 │ engine type u8, id u8 │
//!         sampling: mode 2 bits, interval 14 bits
//! record  source 4 │ destination 4 │ next hop 4 │ input u16 │ output u16 │ packets u32 │ octets u32 │
//!         first u32 │ last u32 │ ports u16 u16 │ pad u8 │ TCP flags u8 │ protocol u8 │ TOS u8 │
//!         AS u16 u16 │ mask lengths u8 u8 │ pad u16
//! ```

use std::net::Ipv4Addr;

use sekiwake_record::{
    Format,
    bytes::{u16_at, u32_at},
};

use super::{Field, Flow, FlowType, Header, Time, Value};
use crate::{Row, Undecoded};

const HEADER: usize = 24;
const RECORD: usize = 48;

/// Decodes a datagram, whose header [`sekiwake_flow`] need not have accepted.
pub(crate) fn decode<'p>(payload: &'p [u8], emit: &mut dyn FnMut(&Row<'_>)) {
    let undecoded = |bytes: &'p [u8], reason: &'static str| {
        Row::Undecoded(Undecoded::new(Format::NetFlow5, payload, bytes, reason))
    };
    let Some(header) = FixedHeader::read(payload) else {
        emit(&undecoded(payload, "header is incomplete"));
        return;
    };
    let records = &payload[HEADER..];
    let announced = usize::from(header.count) * RECORD;
    let present = records.len().min(announced) / RECORD;
    for record in records.chunks_exact(RECORD).take(present) {
        if let Some(flow) = header.flow(record) {
            emit(&Row::Flow(flow));
        }
    }
    let rest = &records[present * RECORD..];
    if usize::from(header.count) > present {
        emit(&undecoded(rest, "datagram ends before the announced number of records"));
    } else if rest.iter().any(|byte| *byte != 0) {
        emit(&undecoded(rest, "bytes after the announced number of records"));
    } else if present == 0 {
        emit(&undecoded(payload, "datagram has no records"));
    }
}

struct FixedHeader {
    header: Header,
    count: u16,
    engine_type: u8,
    engine_id: u8,
    sampling: u16,
    /// When the exporter started, milliseconds since 1970, modulo 2^32 ms of uptime.
    exported_at_ms: u64,
}

impl FixedHeader {
    fn read(payload: &[u8]) -> Option<FixedHeader> {
        let header = payload.first_chunk::<HEADER>()?;
        let (seconds, nanoseconds) = (u32_at(header, 8)?, u32_at(header, 12)?.min(999_999_999));
        Some(FixedHeader {
            header: Header {
                exported_at: Time::new(seconds.into(), nanoseconds, 9),
                sequence: u32_at(header, 16)?,
                domain: None,
                uptime_ms: u32_at(header, 4),
            },
            count: u16_at(header, 2)?,
            engine_type: header[20],
            engine_id: header[21],
            sampling: u16_at(header, 22)?,
            exported_at_ms: u64::from(seconds) * 1000 + u64::from(nanoseconds / 1_000_000),
        })
    }

    fn flow<'p>(&self, record: &'p [u8]) -> Option<Flow<'p>> {
        let address = |at| Some(Value::Ipv4(Ipv4Addr::from(u32_at(record, at)?)));
        let u8_at = |at: usize| Some(Value::Unsigned((*record.get(at)?).into()));
        let u16_at = |at| Some(Value::Unsigned(u16_at(record, at)?.into()));
        let u32_at = |at| u32_at(record, at);
        let number = |at| Some(Value::Unsigned(u32_at(at)?.into()));
        let uptime_ms = self.header.uptime_ms?;
        let mut flow = Flow::new(Format::NetFlow5, FlowType::Flow, self.header);
        flow.fields = vec![
            Field::new("sourceIPv4Address", address(0)?),
            Field::new("destinationIPv4Address", address(4)?),
            Field::new("sourceTransportPort", u16_at(32)?),
            Field::new("destinationTransportPort", u16_at(34)?),
            Field::new("protocolIdentifier", u8_at(38)?),
            Field::new("packetDeltaCount", number(16)?),
            Field::new("octetDeltaCount", number(20)?),
            Field::new("tcpControlBits", u8_at(37)?),
            Field::new("ipClassOfService", u8_at(39)?),
            Field::new("ingressInterface", u16_at(12)?),
            Field::new("egressInterface", u16_at(14)?),
            Field::new("ipNextHopIPv4Address", address(8)?),
            Field::new("bgpSourceAsNumber", u16_at(40)?),
            Field::new("bgpDestinationAsNumber", u16_at(42)?),
            Field::new("sourceIPv4PrefixLength", u8_at(44)?),
            Field::new("destinationIPv4PrefixLength", u8_at(45)?),
            Field::new("flowStartSysUpTime", number(24)?),
            Field::new("flowEndSysUpTime", number(28)?),
        ];
        for (name, at) in [("flowStartMilliseconds", 24), ("flowEndMilliseconds", 28)] {
            if let Some(time) = uptime_to_time(self.exported_at_ms, uptime_ms, u32_at(at)?) {
                flow.fields.push(Field::new(name, Value::Time(time)));
            }
        }
        flow.fields.extend([
            Field::new("engineType", Value::Unsigned(self.engine_type.into())),
            Field::new("engineId", Value::Unsigned(self.engine_id.into())),
            Field::new("samplingAlgorithm", Value::Unsigned((self.sampling >> 14).into())),
            Field::new("samplingInterval", Value::Unsigned((self.sampling & 0x3fff).into())),
        ]);
        Some(flow)
    }
}

/// The time at which the exporter had been running for `at_uptime_ms`, if its uptime was
/// `uptime_ms` at `exported_at_ms` since 1970. Uptimes wrap after 49.7 days.
pub(super) fn uptime_to_time(exported_at_ms: u64, uptime_ms: u32, at_uptime_ms: u32) -> Option<Time> {
    let after_ms = i64::from(at_uptime_ms.wrapping_sub(uptime_ms).cast_signed());
    Time::of_milliseconds(exported_at_ms.checked_add_signed(after_ms)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uptime_wraps_before_and_after_export() {
        let text = |uptime, at| uptime_to_time(1_767_323_045_678, uptime, at).map(|time| time.to_string());
        assert_eq!(text(10_000, 9_000).as_deref(), Some("2026-01-02T03:04:04.678Z"));
        assert_eq!(text(500, u32::MAX - 499).as_deref(), Some("2026-01-02T03:04:04.678Z"));
        assert_eq!(text(10_000, 10_001).as_deref(), Some("2026-01-02T03:04:05.679Z"));
    }
}
