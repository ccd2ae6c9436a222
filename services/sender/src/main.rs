//! `sekiwake-sender`: see the library.

use std::{
    io::{IsTerminal, Write, stderr, stdout},
    process::ExitCode,
    sync::{Arc, atomic::AtomicBool},
};

use anyhow::Context;
use clap::{CommandFactory, Parser, error::ErrorKind};
use sekiwake_sender::{cli::Arguments, plan::Plan, send::Sender, summary::Summary};
use signal_hook::consts::{SIGINT, SIGTERM};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let plan = match Plan::new(&arguments) {
        Ok(plan) => plan,
        Err(mistake) => Arguments::command().error(ErrorKind::ValueValidation, mistake).exit(),
    };
    match run(&arguments, plan) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sekiwake-sender: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments, plan: Plan) -> anyhow::Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // The second signal ends the process at once.
        signal_hook::flag::register_conditional_default(signal, Arc::clone(&stop))
            .context("cannot watch for signals")?;
        signal_hook::flag::register(signal, Arc::clone(&stop)).context("cannot watch for signals")?;
    }
    let mut sender = Sender::open(arguments, plan)?;
    let on_terminal = stderr().is_terminal();
    let mut progress = |summary: &Summary| {
        if on_terminal {
            let _ = write!(stderr(), "\r\x1b[K{} sent, {:.0} per second", summary.total().datagrams, summary.rate());
        }
    };
    let outcome = sender.run(&stop, &mut progress);
    if on_terminal {
        let _ = write!(stderr(), "\r\x1b[K");
    }
    let summary = sender.summary();
    let line = if arguments.json { summary.to_json().to_string() } else { summary.to_string() };
    writeln!(stdout(), "{line}").context("cannot write to standard output")?;
    Ok(outcome?)
}
