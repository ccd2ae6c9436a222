//! Publishing a savefile: once, completely, then done.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, anyhow, bail};
use pcap::{Capture, Precision};
use sekiwake_bus::{Producer, SubscriptionWatch};
use sekiwake_runtime::{Latch, Metrics, Worker};
use tracing::{info, warn};

use crate::{
    decode::{DecoderSettings, LinkType, Packet},
    live::nanoseconds,
    metrics::Meter,
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
    /// A file that cannot be read or is damaged, a link type that is not decoded, or nobody to publish to.
    pub(crate) fn run(self, worker: &Worker) -> anyhow::Result<()> {
        let path = self.path.display();
        let mut capture = Capture::from_file_with_precision(&self.path, Precision::Nano)
            .with_context(|| format!("cannot open savefile {path}"))?;
        let number = capture.get_datalink().0;
        let link = LinkType::from_number(number)
            .ok_or_else(|| anyhow!("link type {number} of savefile {path} is not supported"))?;
        if let Some(filter) = &self.filter {
            capture.filter(filter, true).with_context(|| format!("the filter {filter:?} is refused"))?;
        }
        self.ready.set(true);
        info!(file = %path, limit = ?self.wait, "waiting for a subscriber");
        if !self.subscribers.wait(self.wait, FOLLOWERS, || worker.stopping()) {
            bail!("no subscriber within {:?}: nothing of savefile {path} was published", self.wait);
        }
        let decoder = DecoderSettings { tunnels: self.tunnels, ..DecoderSettings::default() };
        let mut pipeline = Pipeline::new(decoder, Arc::clone(&self.ports));
        let mut meter = Meter::new(&self.metrics, "file");
        let mut damage = None;
        while !worker.stopping() {
            worker.beat();
            let read = capture.dispatch(Some(BURST), |packet| {
                let (captured_at_ns, original_length) = (nanoseconds(packet.header), packet.header.len);
                pipeline.packet(&Packet { captured_at_ns, link, data: packet.data, original_length });
            });
            self.producer.offer(pipeline.take(true));
            meter.follow(&pipeline);
            match read {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => {
                    damage = Some(error);
                    break;
                }
            }
        }
        pipeline.finish();
        self.producer.offer(pipeline.take(true));
        meter.follow(&pipeline);
        let (packets, datagrams) = (pipeline.counters().packets, pipeline.tally().claimed_total());
        info!(file = %path, packets, datagrams, "the savefile has been read");
        if worker.stopping() {
            warn!(file = %path, "told to stop: the savefile may not have been read to its end");
        }
        match damage {
            Some(error) => Err(error).with_context(|| format!("savefile {path} is damaged after packet {packets}")),
            None => Ok(()),
        }
    }
}
