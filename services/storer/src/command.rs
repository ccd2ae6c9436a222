//! The command line.

use clap::Subcommand;
use sekiwake_runtime::Process;

use crate::{Storer, TrapStorer, XflowStorer, export, find, replay};

#[derive(Subcommand)]
enum Command {
    /// Print stored datagrams as JSON lines, or what they say
    Search(find::Arguments),
    /// Send stored datagrams again, as if the devices had
    ///
    /// The last line on standard output says what was sent and, if not everything was, with which
    /// options to continue. The exit status is 0 if all selected datagrams were sent, 1 if not, and
    /// 2 if a setting is wrong. SIGINT and SIGTERM end a replay in order.
    Replay(replay::Arguments),
    /// Write stored datagrams to one file in the format pcapng
    ///
    /// Templates of flows stand before the first data that needs them. The exit status is 0 if
    /// everything was written, 1 if files were damaged or could not be read.
    Export(export::Arguments),
}

/// The process and its subcommands.
pub fn process() -> Process {
    Process::of::<Storer>().add::<XflowStorer>().add::<TrapStorer>().commands(|command: Command, environment| {
        match command {
            Command::Search(arguments) => find::run(&arguments, environment),
            Command::Replay(arguments) => replay::run(&arguments, environment),
            Command::Export(arguments) => export::run(&arguments, environment),
        }
    })
}
