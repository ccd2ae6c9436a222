//! Real collectors, as Debian packages them, and readers of their output.
//!
//! A daemon runs in the foreground inside a namespace, with its configuration and output in a
//! temporary folder that is removed when its [`Collector`] is dropped. Its output is a list of
//! [`Record`]s: the source of a datagram as the daemon reports it, and the remaining content.
//! Neither contains the time of arrival.

mod argus;
mod net_snmp;
mod nfdump;
mod pmacct;
mod programs;
mod sockets;
mod syslog;

use std::{marker::PhantomData, net::SocketAddr, path::Path, process::Command, time::Duration};

use anyhow::{Context, ensure};
use sekiwake_testkit::{
    netns::Namespace,
    process::{Process, Signal},
    wait::wait_for,
};
use tempfile::TempDir;

pub use argus::Ra;
pub use net_snmp::{Snmptrapd, TRAP_ENGINE, tool};
pub use nfdump::{Nfcapd, Sfcapd};
pub use pmacct::Nfacctd;
pub use programs::{installed_or_skipped, program};
pub use sockets::{SocketState, sent_datagrams, socket_state};
pub use syslog::{Rsyslogd, SyslogNg};

/// Time limit for a daemon to start or to end.
const LONG: Duration = Duration::from_secs(60);

/// An entry in a collector's output: a message, a flow, a notification.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Record {
    /// The source, as the collector reports it.
    pub source: String,
    /// The remaining content.
    pub content: String,
}

/// How to start a collector and read its output.
pub trait Recipe {
    /// The daemon's program.
    const PROGRAM: &'static str;
    /// The signal on which it flushes its output and ends.
    const END: Signal = Signal::TERM;

    /// Writes its configuration into `folder` and returns the command that receives at `address`
    /// and writes into `folder`.
    fn command(folder: &Path, address: SocketAddr) -> anyhow::Result<Command>;

    /// Its output in `folder` so far. Some daemons write only when they end.
    fn read(folder: &Path) -> anyhow::Result<Vec<Record>>;

    /// How many sequence errors of exporters it has counted, by its log. `None` if it counts none.
    fn sequence_errors(_log: &str) -> Option<u64> {
        None
    }
}

/// A running collector.
pub struct Collector<'a, R: Recipe> {
    process: Process,
    namespace: &'a Namespace,
    address: SocketAddr,
    folder: TempDir,
    recipe: PhantomData<R>,
}

impl<'a, R: Recipe> Collector<'a, R> {
    /// Starts it and waits until its socket is bound.
    pub fn start(namespace: &'a Namespace, address: SocketAddr) -> anyhow::Result<Collector<'a, R>> {
        let folder = tempfile::Builder::new().prefix("skw-collector-").tempdir()?;
        let process = Process::spawn(namespace.exec(&R::command(folder.path(), address)?))?;
        let collector = Collector { process, namespace, address, folder, recipe: PhantomData };
        wait_for(&format!("{} at {address}", R::PROGRAM), LONG, || collector.socket().is_ok())
            .with_context(|| collector.log())?;
        Ok(collector)
    }

    /// The state of its socket.
    pub fn socket(&self) -> anyhow::Result<SocketState> {
        let address = self.address;
        self.namespace.enter(|| socket_state(address))?
    }

    /// Its records so far.
    pub fn records(&self) -> anyhow::Result<Vec<Record>> {
        R::read(self.folder.path())
    }

    /// Stops it after it has read everything from its socket, and returns all of its records.
    pub fn finish(self) -> anyhow::Result<Vec<Record>> {
        self.finish_with_errors().map(|(records, _)| records)
    }

    /// As [`Collector::finish`], with the sequence errors that it has counted.
    pub fn finish_with_errors(mut self) -> anyhow::Result<(Vec<Record>, Option<u64>)> {
        let read = |state: SocketState| state.queued_bytes == 0;
        wait_for(&format!("{} to read its socket", R::PROGRAM), LONG, || self.socket().is_ok_and(read))?;
        let SocketState { dropped, .. } = self.socket()?;
        ensure!(dropped == 0, "the socket of {} at {} lost {dropped} datagrams", R::PROGRAM, self.address);
        self.process.signal(R::END)?;
        let status = self.process.wait(LONG)?;
        ensure!(status.success(), "{} ended with {status}: {}", R::PROGRAM, self.log());
        let records = self.records().with_context(|| self.log())?;
        Ok((records, R::sequence_errors(&self.log())))
    }

    /// Kills it, as a crash does, with the loss of unwritten output. For daemons of one process.
    pub fn kill(mut self) -> anyhow::Result<()> {
        self.process.signal(Signal::KILL)?;
        self.process.wait(LONG).map(drop)
    }

    /// Its standard output and standard error.
    pub fn log(&self) -> String {
        [self.process.stdout(), self.process.stderr()].concat().join("\n")
    }
}

impl<R: Recipe> Drop for Collector<'_, R> {
    fn drop(&mut self) {
        // Daemons of several processes must end by themselves: killing the first leaves the others.
        if self.process.is_running().is_ok_and(|running| running) {
            let _ = self.process.signal(R::END);
            let _ = self.process.wait(Duration::from_secs(5));
        }
    }
}

/// Messages of several lines, in a format that any text daemon can write: `RS source US content
/// GS`, the separators of ASCII, which the tests do not send.
pub(crate) mod marked {
    use super::Record;

    pub(crate) const BEGIN: char = '\x1e';
    pub(crate) const MIDDLE: char = '\x1f';
    pub(crate) const END: char = '\x1d';

    /// The records of a text, without the bytes between them and without an incomplete last record.
    pub(crate) fn read(bytes: &[u8]) -> Vec<Record> {
        let parts = bytes.split(|&byte| byte == BEGIN as u8).skip(1);
        parts
            .filter_map(|part| {
                let (source, rest) = split_once(part, MIDDLE)?;
                let (content, _) = split_once(rest, END)?;
                let [source, content] = [source, content].map(|bytes| bytes.escape_ascii().to_string());
                Some(Record { source, content })
            })
            .collect()
    }

    fn split_once(bytes: &[u8], mark: char) -> Option<(&[u8], &[u8])> {
        let place = bytes.iter().position(|&byte| byte == mark as u8)?;
        Some((&bytes[..place], &bytes[place + 1..]))
    }
}
