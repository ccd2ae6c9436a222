//! Rows from records, with the templates that came before.

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use sekiwake_flow::{Change, DestinationSlots, Exporters, Limits};
use sekiwake_record::{Format, Kind, Record};

use crate::{Row, Undecoded, flow, mib::Mib, syslog, trap};

/// Decodes records. It keeps the templates of all exporters, within the limits of
/// [`sekiwake_flow`]: about 64 MiB.
pub struct Decoder {
    exporters: Exporters,
    changes: Vec<Change>,
    mib: Arc<Mib>,
}

impl Default for Decoder {
    fn default() -> Decoder {
        Decoder::new()
    }
}

impl Decoder {
    /// Without templates.
    pub fn new() -> Decoder {
        Decoder { exporters: Exporters::new(Limits::default()), changes: Vec::new(), mib: Arc::default() }
    }

    /// Sets the names, enumerations and display hints of traps from now on. Without, those of
    /// SNMPv2-MIB and IF-MIB are known.
    pub fn set_mib(&mut self, mib: Arc<Mib>) {
        self.mib = mib;
    }

    /// Takes over a template that a group keeps as hand-off state: key, value and time as in
    /// [`Change`]. What is invalid is ignored.
    pub fn learn(&mut self, key: &[u8], value: &[u8], at_ns: u64) {
        self.exporters.learn(key, value, at_ns);
        self.forget_changes();
    }

    /// Decodes one record: calls `emit` once per row, in the order of the datagram. Records of one
    /// source have to come in the order of capture. A datagram has at most 4,096 rows with 65,536
    /// fields; if it has more, the last row says so. `kind` is that of the destination port: text
    /// without a PRI is a syslog message only where syslog is expected.
    pub fn decode(&mut self, kind: Option<Kind>, record: &Record<'_>, mut emit: impl FnMut(&Row<'_>)) {
        let payload = record.payload;
        match record.format {
            Format::NetFlow5 => flow::netflow5(payload, &mut emit),
            Format::NetFlow9 | Format::Ipfix => self.sets(record, &mut emit),
            Format::Sflow5 => flow::sflow(payload, &mut emit),
            Format::Rfc3164 | Format::Rfc5424 => emit(&Row::Syslog(Box::new(syslog::decode(payload)))),
            format @ (Format::Snmp1Trap | Format::Snmp2cTrap | Format::Snmp2cInform | Format::Snmp3) => {
                match trap::decode(payload, &self.mib) {
                    Ok(trap) => emit(&Row::Trap(Box::new(trap))),
                    // Without the bytes: a community or a user name may be in them.
                    Err(error) => emit(&Row::Undecoded(Undecoded::new(
                        format,
                        payload,
                        &payload[error.at..error.at],
                        error.reason,
                    ))),
                }
            }
            // Requests and responses, and damaged messages.
            format if resembles_snmp(payload) => match trap::decode(payload, &self.mib) {
                Ok(message) => emit(&Row::Trap(Box::new(message))),
                Err(error) => {
                    emit(&Row::Undecoded(Undecoded::new(format, payload, &payload[error.at..error.at], error.reason)));
                }
            },
            format if kind == Some(Kind::Syslog) => match syslog::why_no_text(payload) {
                None => emit(&Row::Syslog(Box::new(syslog::decode(payload)))),
                Some(reason) => emit(&Row::Undecoded(Undecoded::new(format, payload, payload, reason))),
            },
            format => emit(&Row::Undecoded(Undecoded::new(format, payload, payload, "format is not decoded"))),
        }
    }

    fn sets(&mut self, record: &Record<'_>, emit: &mut dyn FnMut(&Row<'_>)) {
        let Record { format, payload, captured_at_ns, .. } = *record;
        let source = SocketAddr::new(record.source, record.source_port);
        let Some(mut sets) = flow::SetDecoder::new(format, payload) else {
            emit(&Row::Undecoded(Undecoded::new(format, payload, payload, "header is incomplete")));
            return;
        };
        let slots = DestinationSlots::default();
        self.exporters.observe_sets(source, format, payload, captured_at_ns, slots, |set| sets.decode(set, emit));
        if let Some(rest) = after_message(format, payload) {
            sets.undecoded(rest, None, "bytes after the message", emit);
        }
        if sets.is_empty() {
            sets.undecoded(payload, None, "datagram has no records", emit);
        }
        self.forget_changes();
    }

    /// Nobody shares the changes.
    fn forget_changes(&mut self) {
        self.exporters.take_changes(&mut self.changes);
        self.changes.clear();
    }
}

/// Whether a payload begins as SNMP messages do: a sequence whose first element is an integer.
fn resembles_snmp(payload: &[u8]) -> bool {
    let &[SEQUENCE, length, ..] = payload else { return false };
    let first = match length {
        0x80.. => 2 + usize::from(length & 0x7f),
        _ => 2,
    };
    payload.get(first) == Some(&INTEGER)
}

/// Tags of BER.
const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;

/// What an IPFIX datagram has after its message, or all of it if the message is longer.
fn after_message(format: Format, payload: &[u8]) -> Option<&[u8]> {
    if format != Format::Ipfix {
        return None;
    }
    let length = usize::from(sekiwake_record::bytes::u16_at(payload, 2)?);
    match payload.get(length..) {
        Some([]) => None,
        Some(rest) => Some(rest),
        None => Some(payload),
    }
}

/// The first definition of each template in a savefile, so that data before it can be decoded as
/// well: observe every record, then decode every record.
pub struct FirstTemplates {
    exporters: Exporters,
    changes: Vec<Change>,
    first: HashMap<Vec<u8>, Change>,
    bytes: usize,
}

/// The limit on first definitions, bytes. Later ones have to come before their data.
const MAX_FIRST_BYTES: usize = 64 << 20;

impl Default for FirstTemplates {
    fn default() -> FirstTemplates {
        FirstTemplates::new()
    }
}

impl FirstTemplates {
    /// Without templates.
    pub fn new() -> FirstTemplates {
        let exporters = Exporters::new(Limits::default());
        FirstTemplates { exporters, changes: Vec::new(), first: HashMap::new(), bytes: 0 }
    }

    /// Looks for definitions in a record.
    pub fn observe(&mut self, record: &Record<'_>) {
        if !matches!(record.format, Format::NetFlow9 | Format::Ipfix) {
            return;
        }
        let source = SocketAddr::new(record.source, record.source_port);
        self.exporters.observe(source, record.format, record.payload, record.captured_at_ns, 0);
        self.exporters.take_changes(&mut self.changes);
        for change in self.changes.drain(..) {
            let bytes = change.key.len() + change.value.len();
            let is_kept = change.value.is_empty() || self.first.contains_key(&change.key);
            if !is_kept && self.bytes + bytes <= MAX_FIRST_BYTES {
                self.bytes += bytes;
                self.first.insert(change.key.clone(), change);
            }
        }
    }

    /// A decoder that knows them.
    pub fn into_decoder(self) -> Decoder {
        let mut decoder = Decoder::new();
        let mut first: Vec<Change> = self.first.into_values().collect();
        first.sort_unstable_by(|a, b| (a.at_ns, &a.key).cmp(&(b.at_ns, &b.key)));
        for change in first {
            decoder.learn(&change.key, &change.value, change.at_ns);
        }
        decoder
    }
}
