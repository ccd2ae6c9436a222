//! Real collectors, as Debian packages them, each with a way to read back what it has written down.
//!
//! A daemon runs in the foreground inside a namespace, with its configuration and everything it writes in a folder of its own, and
//! nothing of it is left when its [`Collector`] is dropped. What it wrote is a set of [`Record`]s: what the daemon says about
//! where a datagram came from, and all the rest. The time of arrival is in neither.

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

pub use net_snmp::{Snmptrapd, TRAP_ENGINE, tool};
pub use nfdump::{Nfcapd, Sfcapd};
pub use pmacct::Nfacctd;
pub use programs::{installed_or_skipped, program};
pub use sockets::{SocketState, sent_datagrams, socket_state};
pub use syslog::{Rsyslogd, SyslogNg};

/// How long a daemon may take to begin or to end.
const LONG: Duration = Duration::from_secs(20);

/// One thing that a collector wrote down: a message, a flow, a notification.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Record {
    /// Who sent it, as the collector says it.
    pub source: String,
    /// What it says besides.
    pub content: String,
}

/// How a collector is started and read.
pub trait Recipe {
    /// The daemon.
    const PROGRAM: &'static str;
    /// The signal upon which it writes what it still holds and ends.
    const END: Signal = Signal::TERM;

    /// Writes its configuration into `folder` and gives the command by which it receives at `address` and writes into `folder`.
    ///
    /// # Errors
    /// A file cannot be written, or the daemon is not installed.
    fn command(folder: &Path, address: SocketAddr) -> anyhow::Result<Command>;

    /// What it has written into `folder` so far. Some write all at their end.
    ///
    /// # Errors
    /// It cannot be read or understood.
    fn read(folder: &Path) -> anyhow::Result<Vec<Record>>;
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
    ///
    /// # Errors
    /// It does not start, or does not bind `address` in time; with what it said.
    pub fn start(namespace: &'a Namespace, address: SocketAddr) -> anyhow::Result<Collector<'a, R>> {
        let folder = tempfile::Builder::new().prefix("skw-collector-").tempdir()?;
        let process = Process::spawn(namespace.exec(&R::command(folder.path(), address)?))?;
        let collector = Collector { process, namespace, address, folder, recipe: PhantomData };
        wait_for(&format!("{} at {address}", R::PROGRAM), LONG, || collector.socket().is_ok())
            .with_context(|| collector.said())?;
        Ok(collector)
    }

    /// The state of its socket.
    ///
    /// # Errors
    /// It has none.
    pub fn socket(&self) -> anyhow::Result<SocketState> {
        let address = self.address;
        self.namespace.enter(|| socket_state(address))?
    }

    /// What it has written so far.
    ///
    /// # Errors
    /// As [`Recipe::read`].
    pub fn records(&self) -> anyhow::Result<Vec<Record>> {
        R::read(self.folder.path())
    }

    /// Ends it once it has read everything that has arrived, and gives all that it has written.
    ///
    /// # Errors
    /// It does not end, or not well; its socket has lost datagrams; or as [`Recipe::read`].
    pub fn finish(mut self) -> anyhow::Result<Vec<Record>> {
        let read = |state: SocketState| state.queued_bytes == 0;
        wait_for(&format!("{} to read its socket", R::PROGRAM), LONG, || self.socket().is_ok_and(read))?;
        let SocketState { dropped, .. } = self.socket()?;
        ensure!(dropped == 0, "the socket of {} at {} lost {dropped} datagrams", R::PROGRAM, self.address);
        self.process.signal(R::END)?;
        let status = self.process.wait(LONG)?;
        ensure!(status.success(), "{} ended with {status}: {}", R::PROGRAM, self.said());
        self.records().with_context(|| self.said())
    }

    /// Kills it, as a crash does, and gives up what it has not written down. For daemons of one process.
    ///
    /// # Errors
    /// The kernel refuses, or it does not end.
    pub fn kill(mut self) -> anyhow::Result<()> {
        self.process.signal(Signal::KILL)?;
        self.process.wait(LONG).map(drop)
    }

    /// What it printed.
    pub fn said(&self) -> String {
        [self.process.stdout(), self.process.stderr()].concat().join("\n")
    }
}

impl<R: Recipe> Drop for Collector<'_, R> {
    fn drop(&mut self) {
        // A daemon of several processes must end by itself: killing the first leaves the others.
        if self.process.is_running().is_ok_and(|running| running) {
            let _ = self.process.signal(R::END);
            let _ = self.process.wait(Duration::from_secs(5));
        }
    }
}

/// Texts of many lines, in a form that any text daemon can be told to write: `RS source US content GS`, the separators of
/// ASCII, none of which is in what the tests send.
pub(crate) mod marked {
    use super::Record;

    pub(crate) const BEGIN: char = '\x1e';
    pub(crate) const MIDDLE: char = '\x1f';
    pub(crate) const END: char = '\x1d';

    /// The records of a text; what stands between them, and a last one that is not yet whole, is none.
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
