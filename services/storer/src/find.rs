//! `sekiwake-storer search`: the same as `/search`, without a running service.

use std::{
    ffi::OsString,
    io::{self, BufWriter, Write},
    ops::ControlFlow,
    os::unix::ffi::OsStrExt,
    path::PathBuf,
    process::ExitCode,
};

use anyhow::Context;
use sekiwake_archive::{Query, Selection, Unreadable, read};
use sekiwake_decode::Style;
use sekiwake_record::WallTime;
use sekiwake_runtime::print_message;
use sekiwake_settings::{Environment, Reader};
use sekiwake_sys::clock::wall_now_ns;

use crate::show::Show;

/// Where to search, and the filters.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// Directory to search [default: that of SEKIWAKE_STORE_DIR]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Of these kinds: syslog, xflow or snmptrap, separated by commas, or all [default: syslog]
    #[arg(long, value_name = "KINDS")]
    kind: Option<String>,
    /// Captured at or after this time: 2026-01-02T03:04:05Z, 2026-01-02, now, -15m, or seconds
    /// since 1970
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    from: Option<String>,
    /// Captured before this time, in the same forms
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    to: Option<String>,
    /// Sent by these addresses or prefixes, separated by commas
    #[arg(long, value_name = "PREFIX")]
    source: Vec<String>,
    /// Of these facilities: keywords such as local7, or 0 to 23, separated by commas
    #[arg(long, value_name = "FACILITIES")]
    facility: Vec<String>,
    /// Of this severity or more severe: a keyword such as err, or 0 to 7
    #[arg(long)]
    severity: Option<String>,
    /// Of these formats, such as rfc5424 or netflow9, separated by commas
    #[arg(long)]
    format: Vec<String>,
    /// Containing these bytes, ignoring the case of ASCII letters; if given several times, all of
    /// them
    #[arg(long)]
    text: Vec<OsString>,
    /// Which message to print first: oldest or newest [default: oldest]
    #[arg(long)]
    order: Option<String>,
    /// Stop after this number of messages
    #[arg(long, value_name = "NUMBER")]
    limit: Option<String>,
    /// Print what the messages say: host, program, structured data, and so on
    #[arg(long)]
    decode: bool,
    /// text, or json, one object per line [default: json; with --decode text on a terminal]
    #[arg(long, value_name = "STYLE")]
    output: Option<Style>,
}

impl Arguments {
    /// As names and values of a URL query.
    fn pairs(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let single = [
            ("kind", &self.kind),
            ("from", &self.from),
            ("to", &self.to),
            ("severity", &self.severity),
            ("order", &self.order),
            ("limit", &self.limit),
        ];
        let single = single.into_iter().filter_map(|(name, value)| Some((name, value.as_ref()?.as_bytes())));
        let lists = [("source", &self.source), ("facility", &self.facility), ("format", &self.format)];
        let lists =
            lists.into_iter().flat_map(|(name, values)| values.iter().map(move |value| (name, value.as_bytes())));
        let decode = self.decode.then_some(("decode", &b"true"[..]));
        single.chain(lists).chain(self.text.iter().map(|text| ("text", text.as_bytes()))).chain(decode)
    }

    /// Without decoding JSON, also on a terminal: the same lines as in the files.
    fn style(&self) -> Style {
        let usual = if self.decode { Style::of(&io::stdout()) } else { Style::Json };
        self.output.unwrap_or(usual)
    }
}

/// Prints matching messages.
///
/// # Errors
/// An invalid filter, or the directory cannot be read.
pub fn run(arguments: &Arguments, environment: &Environment) -> anyhow::Result<ExitCode> {
    let read_dir = |reader: &mut Reader| reader.value::<PathBuf>("SEKIWAKE_STORE_DIR");
    let configured = sekiwake_settings::read(environment, read_dir)?;
    let (dir, named_by) = match &arguments.dir {
        Some(dir) => (dir, "--dir"),
        None => (&configured, "SEKIWAKE_STORE_DIR; --dir names another directory"),
    };
    let query = Query::parse(WallTime::from_nanos(wall_now_ns()), arguments.pairs())?;
    let mut out = BufWriter::with_capacity(1 << 16, io::stdout().lock());
    let mut show = Show::new(query.decode, arguments.style());
    let mut failed = Ok(());
    let selection = Selection { templates: show.templates(), ..Selection::new(dir, &query) };
    let summary = read(&selection, &|| true, &mut |found| match show.write(found, &mut out) {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) => {
            failed = Err(error);
            ControlFlow::Break(())
        }
    })
    .with_context(|| format!("cannot search {} ({named_by})", dir.display()))?;
    match failed.and_then(|()| out.flush()) {
        // The reader, such as `head`, has closed the pipe.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(ExitCode::SUCCESS),
        result => result?,
    }
    for Unreadable { path, error } in &summary.failed {
        print_message(format_args!("sekiwake-storer: cannot read {path}: {error}"));
    }
    if summary.corrupt > 0 {
        print_message(format_args!("sekiwake-storer: skipped {} damaged lines or frames", summary.corrupt));
    }
    Ok(if summary.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
