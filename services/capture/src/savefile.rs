//! Publishing a savefile: once, completely, then done.

use std::{
    fs::File,
    io::BufReader,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, ensure};
use pcap::{BpfProgram, Capture, Linktype};
use sekiwake_bus::{Producer, SubscriptionWatch};
use sekiwake_runtime::{Latch, Metrics, Worker};
use tracing::{info, warn};

use crate::{
    decode::{DecoderSettings, LinkType, Packet},
    metrics::Meter,
    packet_file::{FilePacket, PacketFile, PacketFileError},
    pipeline::Pipeline,
    ports::Ports,
};

/// Packets that are read before their batches are handed over.
const BURST: usize = 1024;
/// After the first subscriber, others may follow for this long before the file is read.
const FOLLOWERS: Duration = Duration::from_millis(500);

/// A savefile on its way to the bus.
pub(crate) struct SavefileReader {
    pub(crate) path: PathBuf,
    pub(crate) tunnels: bool,
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
    /// Publishes the file, or as much as there is time for when the worker is told to stop.
    ///
    /// # Errors
    /// A file that cannot be read or is damaged, link types that are not decoded, or nobody to publish to.
    pub(crate) fn run(self, worker: &Worker) -> anyhow::Result<()> {
        let path = self.path.display();
        let mut file = open(&self.path).with_context(|| format!("cannot read savefile {path}"))?;
        let mut filter = Filter::new(self.filter.clone());
        self.ready.set(true);
        info!(file = %path, limit = ?self.wait, "waiting for a subscriber");
        let is_wanted = self.subscribers.wait(self.wait, FOLLOWERS, || worker.stopping());
        ensure!(is_wanted, "no subscriber within {:?}: nothing of savefile {path} was published", self.wait);
        let decoder = DecoderSettings { tunnels: self.tunnels, ..DecoderSettings::default() };
        let mut pipeline = Pipeline::new(decoder, Arc::clone(&self.ports));
        let mut meter = Meter::new(&self.metrics, "file");
        let mut foreign = 0_u64;
        let mut end = None;
        while !worker.stopping() && end.is_none() {
            worker.beat();
            for _ in 0..BURST {
                match next(&mut file, &mut filter) {
                    Next::Packet(packet) => pipeline.packet(&packet),
                    Next::Filtered => {}
                    Next::Foreign => foreign += 1,
                    Next::End => end = Some(Ok(())),
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
        let (packets, datagrams) = (pipeline.counters().packets, pipeline.tally().claimed_total());
        info!(file = %path, packets, datagrams, "the savefile has been read");
        if foreign > 0 {
            let numbers = file.link_numbers();
            ensure!(packets > 0, "the link type of savefile {path} is not supported: {numbers:?}");
            warn!(file = %path, packets = foreign, ?numbers, "packets of link types that are not supported were left out");
        }
        match end {
            Some(end) => end.with_context(|| format!("savefile {path} is damaged after packet {packets}")),
            None => {
                warn!(file = %path, "told to stop: the savefile was not read to its end");
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

type Savefile = PacketFile<BufReader<File>>;

fn open(path: &Path) -> Result<Savefile, PacketFileError> {
    PacketFile::new(BufReader::with_capacity(1 << 16, File::open(path)?))
}

/// What comes next out of a file.
enum Next<'a> {
    Packet(Packet<'a>),
    /// The user's filter does not want it.
    Filtered,
    /// Its link type is not decoded.
    Foreign,
    End,
    Failed(anyhow::Error),
}

fn next<'a>(file: &'a mut Savefile, filter: &mut Filter) -> Next<'a> {
    let FilePacket { captured_at_ns, link_number, data, original_length } = match file.next_packet() {
        Ok(Some(packet)) => packet,
        Ok(None) => return Next::End,
        Err(error) => return Next::Failed(error.into()),
    };
    let Some(link) = LinkType::from_number(i32::from(link_number)) else {
        return Next::Foreign;
    };
    match filter.passes(link_number, data) {
        Ok(true) => Next::Packet(Packet { captured_at_ns, link, data, original_length }),
        Ok(false) => Next::Filtered,
        Err(error) => Next::Failed(error),
    }
}

/// The user's filter, compiled for the link type of the packets that come.
struct Filter {
    expression: Option<String>,
    compiled: Option<(u16, BpfProgram)>,
}

impl Filter {
    fn new(expression: Option<String>) -> Filter {
        Filter { expression, compiled: None }
    }

    fn passes(&mut self, link_number: u16, data: &[u8]) -> anyhow::Result<bool> {
        let Some(expression) = &self.expression else { return Ok(true) };
        if self.compiled.as_ref().is_none_or(|(number, _)| *number != link_number) {
            let handle = Capture::dead(Linktype(i32::from(link_number)))?;
            let program = handle.compile(expression, true);
            self.compiled =
                Some((link_number, program.with_context(|| format!("the filter {expression:?} is refused"))?));
        }
        Ok(self.compiled.as_ref().is_some_and(|(_, program)| program.filter(data)))
    }
}
