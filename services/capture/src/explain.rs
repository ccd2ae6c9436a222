//! `sekiwake-capture explain FILE`: what would be published of a savefile, as one JSON object a line.

use std::{
    fs::File,
    io::{self, BufReader, Write},
    path::{Path, PathBuf},
};

use sekiwake_json::{Payload, write_line};

use crate::{
    decode::{Decoder, DecoderSettings, LinkType, Packet},
    packet_file::{FilePacket, PacketFile, PacketFileError},
    pipeline::record_of,
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
                    written = write_line(out, kind, &record_of(kind, datagram), Payload::Omitted);
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
