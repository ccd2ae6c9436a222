//! `sekiwake-capture explain FILE`: what would be published of a savefile, as one JSON object a line.

use std::{
    fmt::Write as _,
    fs::File,
    io::{self, BufReader, Write},
    net::IpAddr,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use sekiwake_record::{Format, Kind};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::{
    decode::{Datagram, Decoder, DecoderSettings, LinkType, Packet},
    packet_file::{FilePacket, PacketFile, PacketFileError},
    ports::Ports,
};

/// What to explain, and how.
#[derive(Clone, Debug)]
pub struct Explain {
    /// Which ports are of which kind.
    pub ports: Ports,
    /// Print every UDP datagram, also those that no port setting claims.
    pub all: bool,
    /// How packets are decoded.
    pub decoder: DecoderSettings,
}

/// Why nothing of a savefile could be explained, or its output not be written.
#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    /// It does not exist, or may not be read.
    #[error("cannot open {}", path.display())]
    Open {
        /// The savefile.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// It is no savefile, or damaged before its first packet.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// The savefile.
        path: PathBuf,
        /// What is wrong with it.
        source: PacketFileError,
    },
    /// Its packets begin with headers that are not decoded.
    #[error("link type {} of {} is not supported", list(numbers), path.display())]
    LinkType {
        /// The savefile.
        path: PathBuf,
        /// The `LINKTYPE_` numbers in it.
        numbers: Vec<u16>,
    },
    /// The output cannot be written.
    #[error("cannot write the output")]
    Output(#[from] io::Error),
}

/// One line of output. The names and their order are part of the interface.
#[derive(Serialize)]
struct Line<'a> {
    kind: Option<&'static str>,
    format: &'static str,
    source: IpAddr,
    source_port: u16,
    destination: IpAddr,
    destination_port: u16,
    payload_length: usize,
    payload_sha256: &'a str,
    captured_at: String,
    vlans: &'a [u16],
    reassembled: bool,
}

impl Explain {
    /// Prints the datagrams of the savefile at `path` to `out`, and to `log` a summary: a line per reason for what would not
    /// be published, with the number of packets or datagrams.
    ///
    /// A savefile that is damaged or cut (its writer was killed) is explained up to there, with a warning. An `out` that nobody
    /// reads any more (a closed pipe) ends it early and well.
    ///
    /// # Errors
    /// When no packet of the file can be read or is of a link type that is decoded, or when the output cannot be written.
    pub fn run(&self, path: &Path, out: &mut impl Write, log: &mut impl Write) -> Result<(), ExplainError> {
        match self.explain(path, out, log) {
            Err(ExplainError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            result => result,
        }
    }

    fn explain(&self, path: &Path, out: &mut impl Write, log: &mut impl Write) -> Result<(), ExplainError> {
        let unreadable = |source| ExplainError::Unreadable { path: path.to_owned(), source };
        let file = File::open(path).map_err(|source| ExplainError::Open { path: path.to_owned(), source })?;
        let mut savefile = PacketFile::new(BufReader::with_capacity(1 << 16, file)).map_err(unreadable)?;
        let mut decoder = Decoder::new(self.decoder);
        let mut skipped = Skipped::default();
        let damage = loop {
            let packet = match savefile.next_packet() {
                Ok(Some(packet)) => packet,
                Ok(None) => break None,
                Err(error) => break Some(error),
            };
            let Some(link) = LinkType::from_number(i32::from(packet.link_number)) else {
                skipped.unsupported_link_type += 1;
                continue;
            };
            let FilePacket { captured_at_ns, data, original_length, .. } = packet;
            let mut written = Ok(());
            decoder.decode(&Packet { captured_at_ns, link, data, original_length }, &mut |datagram| {
                let kind = self.ports.kind_of(datagram.destination_port);
                if kind.is_some() || self.all {
                    written = write_line(out, kind, datagram);
                } else {
                    skipped.unclaimed_port += 1;
                }
            });
            written?;
        };
        out.flush()?;
        decoder.finish();

        let packets = decoder.counters().packets;
        let numbers = savefile.link_numbers();
        if packets == 0 && !numbers.is_empty() && numbers.iter().all(|&number| !is_supported(number)) {
            return Err(ExplainError::LinkType { path: path.to_owned(), numbers: numbers.to_vec() });
        }
        match damage {
            Some(error) if packets == 0 => return Err(unreadable(error)),
            Some(error) => writeln!(log, "warning: {} after packet {packets}: {error}", path.display())?,
            None => {}
        }
        Ok(summarize(&decoder, &skipped, log)?)
    }
}

/// What was not printed though it was whole, or not even decoded.
#[derive(Default)]
struct Skipped {
    unclaimed_port: u64,
    unsupported_link_type: u64,
}

fn write_line(out: &mut impl Write, kind: Option<Kind>, datagram: &Datagram<'_>) -> io::Result<()> {
    let line = Line {
        kind: kind.map(Kind::as_str),
        format: format_of(kind, datagram.payload).as_str(),
        source: datagram.source,
        source_port: datagram.source_port,
        destination: datagram.destination,
        destination_port: datagram.destination_port,
        payload_length: datagram.payload.len(),
        payload_sha256: &hexadecimal(&Sha256::digest(datagram.payload)),
        captured_at: timestamp(datagram.captured_at_ns),
        vlans: &datagram.vlans,
        reassembled: datagram.reassembled,
    };
    serde_json::to_writer(&mut *out, &line)?;
    out.write_all(b"\n")
}

fn format_of(kind: Option<Kind>, payload: &[u8]) -> Format {
    sekiwake_identify::identify(kind, payload)
}

fn summarize(decoder: &Decoder, skipped: &Skipped, log: &mut impl Write) -> io::Result<()> {
    let counters = decoder.counters();
    let packets = counters.packets + skipped.unsupported_link_type;
    writeln!(log, "{packets} packets, {} datagrams", counters.datagrams)?;
    let beside = [("unclaimed_port", skipped.unclaimed_port), ("unsupported_link_type", skipped.unsupported_link_type)];
    let dropped = counters.dropped.iter().map(|(reason, packets)| (reason.as_str(), packets));
    for (reason, count) in beside.into_iter().chain(dropped).filter(|&(_, count)| count > 0) {
        writeln!(log, "{reason}: {count}")?;
    }
    Ok(())
}

fn is_supported(link_number: u16) -> bool {
    LinkType::from_number(i32::from(link_number)).is_some()
}

fn list(numbers: &[u16]) -> String {
    numbers.iter().map(u16::to_string).collect::<Vec<_>>().join(", ")
}

/// RFC 3339 with nine digits, UTC.
fn timestamp(nanoseconds: u64) -> String {
    // 64 bits of nanoseconds end in the year 2554, jiff's timestamps in 9999.
    let timestamp = Timestamp::from_nanosecond(i128::from(nanoseconds)).unwrap_or(Timestamp::MAX);
    format!("{timestamp:.9}")
}

fn hexadecimal(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        write!(text, "{byte:02x}").expect("a String takes whatever is written to it");
    }
    text
}
