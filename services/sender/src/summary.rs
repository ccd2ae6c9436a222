//! Counts of the datagrams sent.

use std::{collections::BTreeMap, fmt, time::Duration};

use sekiwake_traffic::Protocol;
use serde_json::{Value, json};

/// Counts of one protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Datagrams that the kernel accepted.
    pub datagrams: u64,
    /// Bytes of payload.
    pub bytes: u64,
    /// Units of the protocol: flows, data records, samples; else datagrams.
    pub units: u64,
    /// The sum, modulo 2^128, of the payloads' XXH3; 0 unless enabled.
    pub digest: u128,
}

/// Temporary errors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Errors {
    /// The socket's or the interface's queue was full (`EAGAIN`, `ENOBUFS`), and the send was
    /// repeated.
    pub full: u64,
    /// An earlier datagram was answered with ICMP port unreachable (`ECONNREFUSED`). It counts as
    /// sent.
    pub refused: u64,
    /// GSO was rejected for a size, and is not used for it again.
    pub gso_rejected: u64,
}

/// The contents of the last line.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Counts by protocol.
    pub by_protocol: BTreeMap<Protocol, Sent>,
    /// Temporary errors.
    pub errors: Errors,
    /// Time from the first to the last datagram.
    pub elapsed: Duration,
    /// Whether digests were computed.
    pub with_digest: bool,
}

impl Summary {
    /// The sum over all protocols.
    pub fn total(&self) -> Sent {
        self.by_protocol.values().fold(Sent::default(), |sum, one| Sent {
            datagrams: sum.datagrams + one.datagrams,
            bytes: sum.bytes + one.bytes,
            units: sum.units + one.units,
            digest: sum.digest.wrapping_add(one.digest),
        })
    }

    /// Datagrams per second.
    pub fn rate(&self) -> f64 {
        let seconds = self.elapsed.as_secs_f64();
        if seconds > 0.0 { self.total().datagrams as f64 / seconds } else { 0.0 }
    }

    /// The JSON object.
    pub fn to_json(&self) -> Value {
        let total = self.total();
        let by_protocol = self.by_protocol.iter().map(|(protocol, sent)| {
            let mut value = json!({ "sent": sent.datagrams, "bytes": sent.bytes, "units": sent.units });
            if self.with_digest {
                value["digest"] = json!(format!("{:032x}", sent.digest));
            }
            (protocol.name().to_owned(), value)
        });
        let Errors { full, refused, gso_rejected } = self.errors;
        let mut value = json!({
            "sent": total.datagrams,
            "bytes": total.bytes,
            "seconds": self.elapsed.as_secs_f64(),
            "rate": self.rate(),
            "by_protocol": by_protocol.collect::<serde_json::Map<_, _>>(),
            "errors": { "full": full, "refused": refused, "gso_rejected": gso_rejected },
        });
        if self.with_digest {
            value["digest"] = json!(format!("{:032x}", total.digest));
        }
        value
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = self.total();
        let seconds = self.elapsed.as_secs_f64();
        let rate = self.rate();
        write!(
            formatter,
            "sent {} datagrams ({} bytes) in {seconds:.3} s, {rate:.0} per second:",
            total.datagrams, total.bytes
        )?;
        for (protocol, sent) in &self.by_protocol {
            write!(formatter, " {protocol} {}", sent.datagrams)?;
        }
        let Errors { full, refused, gso_rejected } = self.errors;
        for (count, name) in [(full, "queue full"), (refused, "connection refused"), (gso_rejected, "GSO rejected")] {
            if count > 0 {
                write!(formatter, "; {name} {count} times")?;
            }
        }
        if self.with_digest {
            write!(formatter, "; digest {:032x}", total.digest)?;
        }
        Ok(())
    }
}
