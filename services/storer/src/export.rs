//! `sekiwake-storer export`: stored datagrams as one pcapng file, which tools of the field read.
//!
//! ```text
//! files ─▶ Stored ─▶ templates that a reader of the file lacks ─▶ frame ─▶ file
//! ```

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context;
use sekiwake_archive::{FrameWriter, Origin};
use sekiwake_flow::{Exporters, Limits};
use sekiwake_record::{Kind, Record};
use sekiwake_runtime::print_message;
use sekiwake_settings::Environment;

use crate::{
    selection::Filters,
    stored::{Datagram, Peeked, Stored},
};

/// The most bytes of a template datagram: it fits an MTU of 1,500 bytes.
const MAX_TEMPLATE_BYTES: usize = 1400;

/// The comment of a template datagram.
const TEMPLATE: &str = "template known before, no data";

/// What to write, and where.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Arguments {
    #[command(flatten)]
    filters: Filters,
    /// File to write, in the format pcapng; - is standard output
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
}

/// Writes what is selected.
///
/// # Errors
/// An invalid filter or setting, or nothing can be read or written.
pub(crate) fn run(arguments: &Arguments, environment: &Environment) -> anyhow::Result<ExitCode> {
    let selection = arguments.filters.selection(environment)?;
    let mut stored = Stored::open(selection)?;
    let path = &arguments.output;
    let to_stdout = path == Path::new("-");
    let out: Box<dyn Write> = match to_stdout {
        true => Box::new(io::stdout().lock()),
        false => Box::new(File::create(path).with_context(|| format!("cannot write {}", path.display()))?),
    };
    let mut export = Export::new(BufWriter::with_capacity(1 << 18, out))?;
    let written = export.write_all(&mut stored).and_then(|()| export.out.into_inner().flush());
    match written {
        // The reader, such as tshark, has closed the pipe.
        Err(error) if to_stdout && error.kind() == io::ErrorKind::BrokenPipe => return Ok(ExitCode::SUCCESS),
        result => result.with_context(|| format!("cannot write {}", path.display()))?,
    }
    let summary = stored.finish()?;
    let Counts { datagrams, templates } = export.counts;
    print_message(format_args!(
        "read {}, written {datagrams}, templates {templates}, damaged {}, unreadable {}",
        summary.lines,
        summary.corrupt,
        summary.failed.len()
    ));
    Ok(if summary.failed.is_empty() && summary.corrupt == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A file that is written.
struct Export<W: Write> {
    out: FrameWriter<W>,
    exporters: Exporters,
    counts: Counts,
}

#[derive(Clone, Copy, Default)]
struct Counts {
    datagrams: u64,
    /// Template datagrams that stand before the data that needs them.
    templates: u64,
}

impl<W: Write> Export<W> {
    fn new(out: W) -> io::Result<Export<W>> {
        let exporters = Exporters::new(Limits::default());
        Ok(Export { out: FrameWriter::new(out)?, exporters, counts: Counts::default() })
    }

    fn write_all(&mut self, stored: &mut Stored) -> io::Result<()> {
        loop {
            match stored.peek(Duration::from_secs(1)) {
                Peeked::Datagram(datagram) => self.write(&datagram)?,
                Peeked::Nothing => continue,
                Peeked::End => return Ok(()),
            }
            stored.advance();
        }
    }

    fn write(&mut self, datagram: &Datagram<'_>) -> io::Result<()> {
        let Datagram { origin, kind, record } = datagram;
        if *kind == Kind::Xflow {
            self.write_owed(record, *origin == Origin::Selected)?;
        }
        if *origin == Origin::Selected {
            self.counts.datagrams += 1;
            self.out.write(record, None)?;
        }
        Ok(())
    }

    /// Writes the templates that a reader of the file needs for this datagram and has not seen.
    fn write_owed(&mut self, record: &Record<'_>, is_written: bool) -> io::Result<()> {
        let Record { format, payload, captured_at_ns, .. } = *record;
        let source = SocketAddr::new(record.source, record.source_port);
        let observed = self.exporters.observe(source, format, payload, captured_at_ns, u64::from(is_written));
        if observed.owed == 0 {
            return Ok(());
        }
        let mut ahead = Vec::new();
        self.exporters.template_datagrams(source, format, payload, MAX_TEMPLATE_BYTES, &mut ahead);
        for payload in &ahead {
            self.counts.templates += 1;
            self.out.write(&Record { payload, ..record.clone() }, Some(TEMPLATE))?;
        }
        Ok(())
    }
}
