//! Publishes a savefile once and completely.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufReader, Read},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, ensure};
use pcap::{BpfProgram, Capture, Linktype};
use rustix::fs::OFlags;
use sekiwake_bus::{Producer, SubscriptionWatch};
use sekiwake_runtime::{Latch, Metrics, Worker};
use sekiwake_sys::poll_readable;
use tracing::{info, warn};

use crate::{
    decode::{DecoderSettings, LinkType, Packet},
    deduplicate::DeduplicateSettings,
    metrics::Meter,
    packet_file::{FilePacket, PacketFile, PacketFileError},
    pipeline::Pipeline,
    ports::Ports,
};

/// Packets read before their batches are handed over.
const BURST: usize = 1024;
/// How long to wait for further subscribers after the first, before the file is read.
const FOLLOWERS: Duration = Duration::from_millis(500);
/// The longest wait for a pipe before the stop is checked.
const PIPE_POLL: Duration = Duration::from_millis(200);

/// The thread that publishes a savefile.
pub(crate) struct SavefileReader {
    pub(crate) path: PathBuf,
    pub(crate) tunnels: bool,
    pub(crate) deduplicate: Option<DeduplicateSettings>,
    pub(crate) filter: Option<String>,
    pub(crate) ports: Arc<Ports>,
    /// How long to wait for a subscriber.
    pub(crate) wait: Duration,
    pub(crate) producer: Producer,
    pub(crate) subscribers: SubscriptionWatch,
    pub(crate) ready: Latch,
    pub(crate) metrics: Metrics,
}

impl SavefileReader {
    /// Publishes the file, or the part read until the worker is stopped.
    ///
    /// # Errors
    /// A file that cannot be read or is damaged, only unsupported link types, or no subscriber.
    pub(crate) fn run(self, worker: &Worker) -> anyhow::Result<()> {
        let path = self.path.display();
        let mut file = match open(&self.path, worker) {
            Err(_) if worker.stopping() => return Ok(()),
            opened => opened.with_context(|| format!("cannot read savefile {path}"))?,
        };
        let mut filter = Filter::new(self.filter.clone());
        self.ready.set(true);
        info!(file = %path, limit = ?self.wait, "waiting for a subscriber");
        let is_subscribed = self.subscribers.wait(self.wait, FOLLOWERS, || worker.stopping());
        ensure!(is_subscribed, "no subscriber within {:?}, savefile {path} not published", self.wait);
        let decoder =
            DecoderSettings { tunnels: self.tunnels, deduplicate: self.deduplicate, ..DecoderSettings::default() };
        let mut pipeline = Pipeline::new(decoder, Arc::clone(&self.ports));
        let mut meter = Meter::new(&self.metrics, "file");
        let mut unsupported = 0_u64;
        let mut end = None;
        while !worker.stopping() && end.is_none() {
            worker.beat();
            for _ in 0..BURST {
                match next(&mut file, &mut filter) {
                    Next::Packet(packet) => pipeline.packet(&packet),
                    Next::Filtered => {}
                    Next::Unsupported => unsupported += 1,
                    Next::End => end = Some(Ok(())),
                    // The stop ends a read from a pipe.
                    Next::Failed(_) if worker.stopping() => break,
                    Next::Failed(error) => end = Some(Err(error)),
                }
                if end.is_some() {
                    break;
                }
            }
            self.publish(&mut pipeline, &mut meter);
        }
        pipeline.finish();
        self.publish(&mut pipeline, &mut meter);
        let packets = pipeline.counters().packets;
        let datagrams = pipeline.tally().claimed_total();
        info!(file = %path, packets, datagrams, "savefile read");
        if unsupported > 0 {
            let numbers = file.link_numbers();
            ensure!(packets > 0, "savefile {path} has only unsupported link types: {numbers:?}");
            warn!(file = %path, packets = unsupported, ?numbers, "packets of unsupported link types skipped");
        }
        match end {
            Some(end) => end.with_context(|| format!("savefile {path} is damaged after packet {packets}")),
            None => {
                warn!(file = %path, "stopped before the end of the savefile");
                Ok(())
            }
        }
    }

    fn publish(&self, pipeline: &mut Pipeline, meter: &mut Meter) {
        self.producer.offer(pipeline.take(true));
        while let Some(buffer) = self.producer.recycled() {
            pipeline.recycle(buffer);
        }
        meter.follow(pipeline);
    }
}

type Savefile<'a> = PacketFile<BufReader<Input<'a>>>;

fn open<'a>(path: &Path, worker: &'a Worker) -> Result<Savefile<'a>, PacketFileError> {
    // Opening a pipe would block until it has a writer.
    let file = OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(path)?;
    PacketFile::new(BufReader::with_capacity(1 << 16, Input { file, worker }))
}

/// A file that may be a pipe: a read ends at the stop, even if nothing is written to the pipe.
struct Input<'a> {
    file: File,
    worker: &'a Worker,
}

impl Read for Input<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while !poll_readable(&self.file, PIPE_POLL)? {
            self.worker.beat();
            if self.worker.stopping() {
                return Err(io::Error::other("stopped"));
            }
        }
        self.file.read(buffer)
    }
}

/// The next item of a file.
enum Next<'a> {
    Packet(Packet<'a>),
    /// A packet that the user's filter rejects.
    Filtered,
    /// A packet of an unsupported link type.
    Unsupported,
    End,
    Failed(anyhow::Error),
}

fn next<'a>(file: &'a mut Savefile<'_>, filter: &mut Filter) -> Next<'a> {
    let FilePacket { captured_at_ns, link_number, data, original_length } = match file.next_packet() {
        Ok(Some(packet)) => packet,
        Ok(None) => return Next::End,
        Err(error) => return Next::Failed(error.into()),
    };
    let Some(link) = LinkType::from_number(i32::from(link_number)) else {
        return Next::Unsupported;
    };
    match filter.passes(link_number, data) {
        Ok(true) => Next::Packet(Packet { captured_at_ns, link, data, original_length }),
        Ok(false) => Next::Filtered,
        Err(error) => Next::Failed(error),
    }
}

/// The user's filter, compiled for the link type of the current packets.
struct Filter {
    expression: Option<String>,
    compiled: Option<Compiled>,
}

struct Compiled {
    link_number: u16,
    program: BpfProgram,
}

impl Filter {
    fn new(expression: Option<String>) -> Filter {
        Filter { expression, compiled: None }
    }

    fn passes(&mut self, link_number: u16, data: &[u8]) -> anyhow::Result<bool> {
        let Some(expression) = &self.expression else { return Ok(true) };
        let compiled = match self.compiled.take() {
            Some(compiled) if compiled.link_number == link_number => compiled,
            _ => {
                let handle = Capture::dead(Linktype(i32::from(link_number)))?;
                let program = handle.compile(expression, true);
                let program = program
                    .with_context(|| format!("cannot compile filter {expression:?} for link type {link_number}"))?;
                Compiled { link_number, program }
            }
        };
        Ok(self.compiled.insert(compiled).program.filter(data))
    }
}
