//! Capturing an interface: open it, read it until it fails or the service stops, open it again.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use pcap::{Active, Capture};
use prometheus::IntGauge;
use sekiwake_bus::{OwnWatch, Producer};
use sekiwake_runtime::{Latch, Metrics, RateLimited, Worker};
use tracing::{info, warn};

use crate::{
    decode::{DecoderSettings, DropReason, LinkType, Packet},
    discover,
    interface::{self, InterfaceSettings, OpenError, Opened, Presence},
    metrics::{Meter, names},
    pipeline::Pipeline,
    ports::Ports,
};

/// Packets that are read before time is looked at again.
const BURST: usize = 1024;
/// How often kernel statistics are read and what waits too long is given up.
const HOUSEKEEPING: Duration = Duration::from_secs(1);
/// The longest wait for packets, so that a stop is noticed.
const PATIENCE: Duration = Duration::from_millis(50);
/// The first pause before an interface is opened again, and the longest.
const REOPEN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// A capture that claims nothing for so long says what it sees instead.
const SILENCE: Duration = Duration::from_secs(60);
/// How long it looks for that.
const LOOK: Duration = Duration::from_secs(5);

/// What the threads of one interface share.
pub(crate) struct Shared {
    pub(crate) interface: String,
    pub(crate) settings: InterfaceSettings,
    pub(crate) ports: Arc<Ports>,
    pub(crate) tick: Duration,
    /// The fan-out group that all threads of this interface join.
    pub(crate) group: u16,
    /// Something was claimed, so nobody need be told what else there is.
    pub(crate) has_claimed: AtomicBool,
    pub(crate) drop_log: RateLimited,
    pub(crate) open_log: RateLimited,
}

/// One capture thread.
pub(crate) struct Reader {
    pub(crate) shared: Arc<Shared>,
    pub(crate) producer: Producer,
    pub(crate) own: OwnWatch,
    pub(crate) ready: Latch,
    pub(crate) metrics: Metrics,
    /// The first thread of an interface speaks for all of them.
    pub(crate) speaks: bool,
}

/// How reading an interface ended.
enum End {
    Stopped,
    Failed(pcap::Error),
    Gone,
}

/// Whether the interface is there, as others are told.
struct Watch<'a> {
    interface: &'a str,
    index: Option<u32>,
    up: IntGauge,
    ready: &'a Latch,
    is_up: bool,
}

impl Watch<'_> {
    /// A handle has been opened, or is gone.
    fn set(&mut self, is_up: bool) {
        self.is_up = is_up;
        self.up.set(i64::from(is_up));
        self.ready.set(is_up);
    }

    /// Looks whether the interface is still there, and says whether it is another one.
    fn look(&mut self) -> bool {
        let presence = interface::presence(self.interface, self.index);
        let is_up = presence == Presence::Up;
        match (self.is_up, presence) {
            (true, Presence::Down) => warn!(interface = self.interface, "the interface is down, waiting for it"),
            (false, Presence::Up) => info!(interface = self.interface, "the interface is up again"),
            _ => {}
        }
        if is_up != self.is_up {
            self.set(is_up);
        }
        presence == Presence::Gone
    }
}

impl Reader {
    /// Captures until the worker is told to stop; then reads what the ring still holds.
    ///
    /// # Errors
    /// No permission, a refused filter, a link type that is not decoded: what waiting does not mend.
    pub(crate) fn run(self, worker: &Worker) -> Result<(), anyhow::Error> {
        let Shared { interface, settings, ports, group, .. } = &*self.shared;
        let label = [("interface", interface.as_str())];
        let up = self.metrics.gauge(names::UP, "Whether the interface is being captured.", &label);
        let mut watch = Watch { interface, index: None, up, ready: &self.ready, is_up: false };
        let reopened = self.metrics.counter(names::REOPENED, "Times the interface was opened again.", &label);
        let mut meter = Meter::new(&self.metrics, interface);
        let mut pause = REOPEN.0;
        let mut pipeline: Option<Pipeline> = None;
        while !worker.stopping() {
            worker.beat();
            match interface::open(interface, settings, ports, *group) {
                Ok(Opened { mut capture, link, mtu, index, joined_ns }) => {
                    info!(interface, %link, mtu, "capturing");
                    if self.speaks && interface::is_virtual(interface) {
                        info!(
                            interface,
                            "a virtual interface: datagrams that a local sender joins (UDP_SEGMENT) cannot be told apart"
                        );
                    }
                    let pipeline = pipeline.get_or_insert_with(|| self.pipeline());
                    pipeline.set_mtu(mtu);
                    self.heed_own_destinations(pipeline);
                    meter.reopened();
                    watch.index = index;
                    watch.set(true);
                    pause = REOPEN.0;
                    let end = self.read(&mut capture, (link, joined_ns), pipeline, &mut meter, &mut watch, worker);
                    self.hand_over(pipeline, true);
                    meter.follow(pipeline);
                    self.own.rest();
                    watch.set(false);
                    match end {
                        End::Stopped => break,
                        End::Gone => warn!(interface, "the interface is gone, waiting for it"),
                        End::Failed(error) => warn!(interface, %error, "the interface is gone, waiting for it"),
                    }
                }
                Err(error) if error.may_pass() => self.shared.report(&error),
                Err(error) => return Err(error.into()),
            }
            if worker.stop().wait(pause) {
                break;
            }
            reopened.inc();
            pause = (pause * 2).min(REOPEN.1);
        }
        if let Some(mut pipeline) = pipeline {
            pipeline.finish();
            self.hand_over(&mut pipeline, true);
            meter.follow(&pipeline);
        }
        Ok(())
    }

    fn pipeline(&self) -> Pipeline {
        let decoder = DecoderSettings { tunnels: self.shared.settings.tunnels, ..DecoderSettings::default() };
        Pipeline::new(decoder, Arc::clone(&self.shared.ports))
    }

    fn read(
        &self,
        capture: &mut Capture<Active>,
        (link, joined_ns): (LinkType, u64),
        pipeline: &mut Pipeline,
        meter: &mut Meter,
        watch: &mut Watch<'_>,
        worker: &Worker,
    ) -> End {
        let started = Instant::now();
        let (mut tick_at, mut housekeeping_at) = (started, started);
        let mut silence_ends = self.speaks.then_some(started + SILENCE);
        let mut stop_at: Option<(Instant, u64)> = None;
        loop {
            worker.beat();
            self.heed_own_destinations(pipeline);
            let read = capture.dispatch(Some(BURST), |packet| {
                let (captured_at_ns, original_length) = (nanoseconds(packet.header), packet.header.len);
                if captured_at_ns >= joined_ns {
                    pipeline.packet(&Packet { captured_at_ns, link, data: packet.data, original_length });
                }
            });
            let read = match read {
                Ok(read) => read,
                Err(error) => return End::Failed(error),
            };
            let now = Instant::now();
            let ticks = now >= tick_at;
            self.hand_over(pipeline, ticks);
            if ticks {
                tick_at = now + self.shared.tick;
                meter.follow(pipeline);
            }
            if now >= housekeeping_at {
                housekeeping_at = now + HOUSEKEEPING;
                self.keep_house(capture, pipeline, meter);
                if watch.look() {
                    return End::Gone;
                }
                silence_ends = silence_ends.filter(|&end| !self.look_around(end, now));
            }
            if worker.stopping() {
                let (patience_ends, stopped_ns) =
                    *stop_at.get_or_insert((now + self.shared.settings.retire * 4 + PATIENCE, now_ns()));
                let caught_up = pipeline.tally().newest_ns > stopped_ns || (read == 0 && now >= patience_ends);
                if caught_up || worker.deadline().is_some_and(|end| now >= end) {
                    self.keep_house(capture, pipeline, meter);
                    return End::Stopped;
                }
            }
            if read == 0 {
                let pause = if pipeline.is_empty() { PATIENCE } else { tick_at.saturating_duration_since(now) };
                let pause = pause.min(PATIENCE).max(Duration::from_micros(100));
                // An error shows at the next read, with libpcap's word for it.
                let _ = sekiwake_sys::poll_readable(capture, pause);
            }
        }
    }

    /// Goes by the newest list of what this installation itself sends to.
    fn heed_own_destinations(&self, pipeline: &mut Pipeline) {
        if self.own.has_changed() {
            // What is in open batches was captured before: it is sifted where it waits for the list.
            self.hand_over(pipeline, true);
            if let Some(own) = self.own.changed() {
                pipeline.set_own_destinations(own);
            }
        }
    }

    /// Hands batches to the publisher: the full ones, or on the tick all of them.
    fn hand_over(&self, pipeline: &mut Pipeline, all: bool) {
        let batches = pipeline.take(all);
        if batches.is_empty() {
            return;
        }
        for _ in 0..batches.len() {
            match self.producer.recycled() {
                Some(buffer) => pipeline.recycle(buffer),
                None => break,
            }
        }
        self.producer.offer(batches);
    }

    fn keep_house(&self, capture: &mut Capture<Active>, pipeline: &mut Pipeline, meter: &mut Meter) {
        pipeline.expire(now_ns());
        pipeline.set_mtu(interface::mtu_of(&self.shared.interface));
        meter.follow(pipeline);
        if let Ok(statistics) = capture.stats() {
            let dropped = meter.follow_kernel(statistics);
            if dropped > 0
                && let Some(suppressed) = self.shared.drop_log.allow(Instant::now())
            {
                let interface = &self.shared.interface;
                warn!(
                    interface,
                    packets = dropped,
                    suppressed,
                    "the kernel dropped packets: this process did not read fast enough"
                );
            }
        }
        let oversize = pipeline.counters().dropped.get(DropReason::Offload);
        if oversize > 0 && self.shared.warn_of_offload() {
            warn!(
                interface = %self.shared.interface,
                packets = oversize,
                "frames larger than the link's MTU: this host's segmentation offload joins datagrams, and they cannot be told \
                 apart; switch it off with ethtool -K INTERFACE tx-udp-segmentation off gro off"
            );
        }
        if pipeline.tally().claimed_total() > 0 {
            self.shared.has_claimed.store(true, Ordering::Relaxed);
        }
    }

    /// After a minute without a claimed datagram, says once what is there instead. Says whether that is settled.
    fn look_around(&self, silence_ends: Instant, now: Instant) -> bool {
        if self.shared.has_claimed.load(Ordering::Relaxed) {
            return true;
        }
        if now < silence_ends {
            return false;
        }
        let (interface, ports) = (self.shared.interface.clone(), Arc::clone(&self.shared.ports));
        let looker = std::thread::Builder::new().name("look-around".into()).spawn(move || {
            match discover::observe(&interface, LOOK, &ports, || false) {
                Ok(seen) => seen.log(&interface),
                Err(error) => {
                    warn!(interface, error = %format!("{error:#}"), "nothing claimed, and cannot look around")
                }
            }
        });
        if let Err(error) = looker {
            warn!(%error, "cannot start a thread to look around");
        }
        true
    }
}

impl Shared {
    /// Says why the interface does not open, now and then.
    fn report(&self, error: &OpenError) {
        if let Some(suppressed) = self.open_log.allow(Instant::now()) {
            let source = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
            warn!(%error, %source, suppressed, "an interface cannot be captured yet, trying again");
        }
    }

    /// Whether it is time to warn of segmentation offload: once.
    fn warn_of_offload(&self) -> bool {
        static WARNED: AtomicBool = AtomicBool::new(false);
        !WARNED.swap(true, Ordering::Relaxed)
    }
}

/// libpcap's time stamp: with nanosecond precision the microseconds field holds nanoseconds.
pub(crate) fn nanoseconds(header: &pcap::PacketHeader) -> u64 {
    let seconds = u64::try_from(header.ts.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(header.ts.tv_usec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds)
}

pub(crate) fn now_ns() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}
