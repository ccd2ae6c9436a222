//! `sekiwake-storer search`: the same as `/search`, without any service.

use std::{
    io::{self, BufWriter, Write},
    ops::ControlFlow,
    path::PathBuf,
    process::ExitCode,
};

use anyhow::Context;
use sekiwake_settings::{Environment, Reader};
use sekiwake_store::{Query, search};

use crate::commit::now_ns;

/// What is searched for.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// Captured then or later: 2026-01-02T03:04:05Z, now, -15m, or seconds since 1970
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    from: Option<String>,
    /// Captured before
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    to: Option<String>,
    /// From these addresses or prefixes, separated by commas
    #[arg(long, value_name = "PREFIX")]
    source: Vec<String>,
    /// Of this severity and worse, by keyword or 0 to 7
    #[arg(long)]
    severity: Option<String>,
    /// With this text in the message, ASCII letters in either case
    #[arg(long)]
    text: Option<String>,
    /// At most so many messages
    #[arg(long, value_name = "NUMBER")]
    limit: Option<String>,
}

/// Prints what is found as JSON lines, oldest first.
///
/// # Errors
/// A search that makes no sense, or a directory that cannot be read.
pub fn run(arguments: &Arguments, environment: &Environment) -> anyhow::Result<ExitCode> {
    let read = |reader: &mut Reader| reader.value::<PathBuf>("SEKIWAKE_STORE_DIR");
    let dir = sekiwake_settings::read(environment, read)?;
    let named = [
        ("from", &arguments.from),
        ("to", &arguments.to),
        ("severity", &arguments.severity),
        ("text", &arguments.text),
        ("limit", &arguments.limit),
    ];
    let single = named.iter().filter_map(|(name, value)| Some((*name, value.as_deref()?)));
    let sources = arguments.source.iter().map(|source| ("source", source.as_str()));
    let query = Query::parse(now_ns(), single.chain(sources))?;
    let mut out = BufWriter::with_capacity(1 << 16, io::stdout().lock());
    let mut failed = Ok(());
    let summary = search(&dir, &query, &|| true, &mut |line| match out.write_all(line) {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) => {
            failed = Err(error);
            ControlFlow::Break(())
        }
    })
    .with_context(|| format!("cannot search {}", dir.display()))?;
    match failed.and_then(|()| out.flush()) {
        // Whoever read the lines has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(ExitCode::SUCCESS),
        result => result?,
    }
    for (path, error) in &summary.failed {
        eprintln!("sekiwake-storer: cannot read {path}: {error}");
    }
    if summary.corrupt > 0 {
        eprintln!("sekiwake-storer: passed over {} lines or frames that are none", summary.corrupt);
    }
    Ok(if summary.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
