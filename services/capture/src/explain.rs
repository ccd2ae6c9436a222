//! `sekiwake-capture explain FILE`: prints the records that would be published from a savefile, or
//! from standard input, as one JSON object per line, or decoded.

use std::{
    fs::File,
    io::{self, BufReader, Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use sekiwake_decode::{Decoder as RowDecoder, FirstTemplates, Style, mib::Mib, write_rows};
use sekiwake_json::{Payload, write_line};
use sekiwake_record::{Kind, Record};

use crate::{
    decode::{Decoder, DecoderSettings, LinkType, Outcome, Packet, UndecodedCounts},
    packet_file::{FilePacket, PacketFile, PacketFileError},
    pipeline::record_of,
    ports::Ports,
};

/// Settings of `explain`.
#[derive(Clone, Debug)]
pub struct Explain {
    /// The ports and their kinds.
    pub ports: Ports,
    /// Also print datagrams to ports that no setting claims.
    pub all: bool,
    /// Print what the datagrams say, in this style, instead of the datagrams.
    pub decode: Option<Style>,
    /// The names of decoded traps, besides the built-in ones.
    pub mib: Option<Arc<Mib>>,
    /// The settings of the decoder.
    pub decoder: DecoderSettings,
}

/// Why `explain` failed.
#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    /// The savefile does not exist, or the process may not read it.
    #[error("cannot open {}", path.display())]
    Open {
        /// The savefile.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The file is not a savefile, or damaged before its first packet.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// The savefile.
        path: PathBuf,
        /// The reader's error.
        source: PacketFileError,
    },
    /// The decoder supports none of its link types.
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
    /// Prints the datagrams of the savefile at `path`, or of standard input if that is `-`, to
    /// `out`, and a summary to `log`: one line per reason, with the number of packets or datagrams
    /// that would not be published.
    ///
    /// A savefile that is damaged or truncated (its writer was killed) is read up to that point,
    /// with a warning. If `out` is a closed pipe, this returns early without an error.
    ///
    /// # Errors
    /// When no packet can be read or has a supported link type, or the output cannot be written.
    pub fn run(&self, path: &Path, out: &mut impl Write, log: &mut impl Write) -> Result<(), ExplainError> {
        match self.explain(path, out, log) {
            Err(ExplainError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            result => result,
        }
    }

    fn explain(&self, path: &Path, out: &mut impl Write, log: &mut impl Write) -> Result<(), ExplainError> {
        let pass = match self.decode {
            None => self.read(path, &mut |kind, record| write_line(out, kind, record, Payload::Omitted))?,
            Some(style) => {
                let mut decoder = self.row_decoder(path)?;
                if let Some(mib) = &self.mib {
                    decoder.set_mib(Arc::clone(mib));
                }
                self.read(path, &mut |kind, record| {
                    write_rows(out, style, &mut decoder, kind, record, u64::MAX).map(drop)
                })?
            }
        };
        out.flush()?;
        let Pass { decoder, skipped, damage } = pass;
        if let Some(error) = damage {
            writeln!(log, "warning: {} after packet {}: {error}", path.display(), decoder.counters().packets)?;
        }
        Ok(summarize(&decoder, &skipped, log)?)
    }

    /// A decoder that knows the templates of the savefile, also those after their data. Standard
    /// input and pipes can be read only once.
    fn row_decoder(&self, path: &Path) -> Result<RowDecoder, ExplainError> {
        if !path.is_file() {
            return Ok(RowDecoder::new());
        }
        let mut templates = FirstTemplates::new();
        self.read(path, &mut |_, record| {
            templates.observe(record);
            Ok(())
        })?;
        Ok(templates.into_decoder())
    }

    /// Reads a savefile, and hands the selected datagrams to `print`.
    fn read(
        &self,
        path: &Path,
        print: &mut dyn FnMut(Option<Kind>, &Record<'_>) -> io::Result<()>,
    ) -> Result<Pass, ExplainError> {
        let unreadable = |source| ExplainError::Unreadable { path: path.to_owned(), source };
        let file: Box<dyn Read> = match path.to_str() {
            Some("-") => Box::new(io::stdin().lock()),
            _ => Box::new(File::open(path).map_err(|source| ExplainError::Open { path: path.to_owned(), source })?),
        };
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
            let packet = Packet { captured_at_ns, link, data, original_length };
            let outcome = decoder.decode(&packet, &mut |datagram| {
                let kind = self.ports.kind_of(datagram.destination_port);
                if kind.is_some() || self.all {
                    written = print(kind, &record_of(kind, datagram, 0));
                } else {
                    skipped.unclaimed_port += 1;
                }
            });
            written?;
            if let Outcome::Dropped(reason) = outcome
                && let Some(at) = decoder.undecoded(reason)
            {
                skipped.undecoded.add(at);
            }
        };
        decoder.finish();

        let packets = decoder.counters().packets;
        let numbers = savefile.link_numbers();
        if packets == 0 && !numbers.is_empty() && numbers.iter().all(|&number| !is_supported(number)) {
            return Err(ExplainError::LinkType { path: path.to_owned(), numbers: numbers.to_vec() });
        }
        match damage {
            Some(error) if packets == 0 => Err(unreadable(error)),
            damage => Ok(Pass { decoder, skipped, damage }),
        }
    }
}

/// What is known after a savefile was read.
struct Pass {
    decoder: Decoder,
    skipped: Skipped,
    /// Why its end was not reached.
    damage: Option<PacketFileError>,
}

/// Complete datagrams that were not printed, and packets that were not decoded.
#[derive(Default)]
struct Skipped {
    unclaimed_port: u64,
    unsupported_link_type: u64,
    undecoded: UndecodedCounts,
}

fn summarize(decoder: &Decoder, skipped: &Skipped, log: &mut impl Write) -> io::Result<()> {
    let counters = decoder.counters();
    let packets = counters.packets + skipped.unsupported_link_type;
    writeln!(log, "{packets} packets, {} datagrams", counters.datagrams)?;
    let undecoded = skipped.undecoded.ranked();
    let skipped =
        [("unclaimed_port", skipped.unclaimed_port), ("unsupported_link_type", skipped.unsupported_link_type)];
    let dropped = counters.dropped.iter().map(|(reason, packets)| (reason.as_str(), packets));
    for (reason, count) in skipped.into_iter().chain(dropped).filter(|&(_, count)| count > 0) {
        writeln!(log, "{reason}: {count}")?;
    }
    for (at, packets) in undecoded {
        writeln!(log, "not decoded, {at}: {packets}")?;
    }
    Ok(())
}

fn is_supported(link_number: u16) -> bool {
    LinkType::from_number(i32::from(link_number)).is_some()
}

fn list(numbers: &[u16]) -> String {
    numbers.iter().map(u16::to_string).collect::<Vec<_>>().join(", ")
}
