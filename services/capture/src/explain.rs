//! `sekiwake-capture explain FILE`: what would be published of a savefile, as one JSON object a line.

use std::{
    fmt::Write as _,
    io::{self, Write},
    net::IpAddr,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use pcap::{Capture, Offline, Precision};
use sekiwake_record::{Format, Kind};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::{
    decode::{Datagram, Decoder, DecoderSettings, LinkType, Packet},
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

/// Why a savefile could not be explained to its end.
#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    /// It does not exist, or is no savefile.
    #[error("cannot open savefile {}", path.display())]
    Open {
        /// The savefile.
        path: PathBuf,
        /// libpcap's word.
        source: pcap::Error,
    },
    /// Its packets begin with a header that is not decoded.
    #[error("link type {number} ({name}) of savefile {} is not supported", path.display())]
    LinkType {
        /// The savefile.
        path: PathBuf,
        /// The `LINKTYPE_` number.
        number: i32,
        /// libpcap's name for it, or `unknown`.
        name: String,
    },
    /// It is damaged. What came before the damage was explained.
    #[error("savefile {} is damaged after packet {packets}", path.display())]
    Damaged {
        /// The savefile.
        path: PathBuf,
        /// How many packets were read.
        packets: u64,
        /// libpcap's word.
        source: pcap::Error,
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
    captured_at: Timestamp,
    vlans: &'a [u16],
    reassembled: bool,
}

/// A savefile ends where the writer of it stopped, which may be in the middle of a packet.
enum End {
    Proper,
    CutShort,
}

impl Explain {
    /// Prints the datagrams of the savefile at `path` to `out`, and to `log` a summary: a line per reason for what would not
    /// be published, with the number of packets or datagrams.
    ///
    /// A savefile whose last record is cut, as when its writer was killed, is explained as far as it goes, with a warning. An
    /// `out` that nobody reads any more (a closed pipe) ends it early and well.
    ///
    /// # Errors
    /// When the file cannot be opened, has a link type that is not decoded, is damaged (what came before is printed), or when
    /// the output cannot be written.
    pub fn run(&self, path: &Path, out: &mut impl Write, log: &mut impl Write) -> Result<(), ExplainError> {
        match self.explain(path, out, log) {
            Err(ExplainError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            result => result,
        }
    }

    fn explain(&self, path: &Path, out: &mut impl Write, log: &mut impl Write) -> Result<(), ExplainError> {
        let mut savefile = Capture::from_file_with_precision(path, Precision::Nano)
            .map_err(|source| ExplainError::Open { path: path.to_owned(), source })?;
        let number = savefile.get_datalink();
        let link = LinkType::from_number(number.0).ok_or_else(|| ExplainError::LinkType {
            path: path.to_owned(),
            number: number.0,
            name: number.get_name().unwrap_or_else(|_| "unknown".to_owned()),
        })?;
        let mut decoder = Decoder::new(self.decoder);
        let mut unclaimed = 0;
        let end = self.datagrams(&mut savefile, link, &mut decoder, &mut unclaimed, out);
        out.flush()?;
        decoder.finish();
        summarize(&decoder, unclaimed, log)?;
        match end {
            Ok(End::Proper) => Ok(()),
            Ok(End::CutShort) => {
                let packets = decoder.counters().packets;
                writeln!(log, "warning: the savefile ends in the middle of a record, after packet {packets}")?;
                Ok(())
            }
            Err(Stop::Output(error)) => Err(ExplainError::Output(error)),
            Err(Stop::Damaged(source)) => {
                let packets = decoder.counters().packets;
                Err(ExplainError::Damaged { path: path.to_owned(), packets, source })
            }
        }
    }

    fn datagrams(
        &self,
        savefile: &mut Capture<Offline>,
        link: LinkType,
        decoder: &mut Decoder,
        unclaimed: &mut u64,
        out: &mut impl Write,
    ) -> Result<End, Stop> {
        loop {
            let packet = match savefile.next_packet() {
                Ok(packet) => packet,
                Err(pcap::Error::NoMorePackets) => return Ok(End::Proper),
                Err(error) if is_cut_short(&error) => return Ok(End::CutShort),
                Err(error) => return Err(Stop::Damaged(error)),
            };
            let packet = Packet {
                captured_at_ns: nanoseconds(packet.header.ts),
                link,
                data: packet.data,
                original_length: packet.header.len,
            };
            let mut written = Ok(());
            decoder.decode(&packet, &mut |datagram| {
                let kind = self.ports.kind_of(datagram.destination_port);
                if kind.is_some() || self.all {
                    written = write_line(out, kind, datagram);
                } else {
                    *unclaimed += 1;
                }
            });
            written.map_err(Stop::Output)?;
        }
    }
}

/// Why reading ended before the end.
enum Stop {
    Output(io::Error),
    Damaged(pcap::Error),
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

fn summarize(decoder: &Decoder, unclaimed: u64, log: &mut impl Write) -> io::Result<()> {
    let counters = decoder.counters();
    writeln!(log, "{} packets, {} datagrams", counters.packets, counters.datagrams)?;
    if unclaimed > 0 {
        writeln!(log, "unclaimed_port: {unclaimed}")?;
    }
    for (reason, packets) in counters.dropped.iter().filter(|&(_, packets)| packets > 0) {
        writeln!(log, "{reason}: {packets}")?;
    }
    Ok(())
}

/// libpcap has no error codes for savefiles, only words.
fn is_cut_short(error: &pcap::Error) -> bool {
    matches!(error, pcap::Error::PcapError(message) if message.starts_with("truncated"))
}

/// A savefile opened with nanosecond precision has nanoseconds where the type says microseconds. A damaged one may have any
/// number there.
fn nanoseconds(time: libc::timeval) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(time.tv_usec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds)
}

fn timestamp(nanoseconds: u64) -> Timestamp {
    // 64 bits of nanoseconds end in the year 2554, jiff's timestamps in 9999.
    Timestamp::from_nanosecond(i128::from(nanoseconds)).unwrap_or(Timestamp::MAX)
}

fn hexadecimal(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        write!(text, "{byte:02x}").expect("a String takes whatever is written to it");
    }
    text
}
