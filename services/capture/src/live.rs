//! Capturing an interface: open it, read it until it fails or the service stops, reopen it.
//!
//! ```text
//! open ─▶ read: dispatch a burst ─▶ hand over batches ─▶ maintain (1 s) ─▶ poll when the ring is empty
//!  ▲       └──────────────── until the interface fails, is removed, or the service stops
//!  └─ pause, doubled up to 5 s
//! ```
//! The ring makes the tick: the kernel hands over a block when it is full or a tick old, and what
//! was read is published as soon as the ring is empty. So a datagram waits once, in the ring, and
//! the thread wakes once per block. At high rates blocks fill sooner, and latency becomes shorter.
//! On a bus whose messages are costly, open batches wait until their oldest packet is a tick old.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context;
use pcap::{Active, Capture};
use prometheus::IntGauge;
use sekiwake_bus::Producer;
use sekiwake_group::OwnWatch;
use sekiwake_runtime::{Latch, Metrics, RateLimited, Worker};
use sekiwake_sys::{InterfaceQueries, clock::wall_now_ns};
use serde_json::{Value, json};
use tracing::{info, warn};

use crate::{
    decode::{DecoderSettings, Packet},
    discover,
    filter::Attached,
    interface::{self, InterfaceSettings, OpenError, Opened, Presence},
    metrics::{InterfaceCounters, Meter, names},
    pipeline::Pipeline,
    ports::Ports,
};

/// Packets read before the clock is read again.
const BURST: usize = 1024;
/// How often kernel statistics are read and timed-out fragments discarded.
const MAINTENANCE_EVERY: Duration = Duration::from_secs(1);
/// The longest wait for packets: a list of own destinations, for whose use forwarders wait, is
/// noticed then.
const MAX_POLL: Duration = Duration::from_millis(500);
/// The same during a stop, and before the first list.
const BRIEF_POLL: Duration = Duration::from_millis(200);
/// How often kernel statistics are read while there are no packets: each time is seven system
/// calls.
const QUIET_STATISTICS_EVERY: Duration = Duration::from_secs(5);
/// The first pause before an interface is reopened.
const MIN_REOPEN_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause before an interface is reopened.
const MAX_REOPEN_PAUSE: Duration = Duration::from_secs(5);
/// After this time without a claimed datagram, a capture logs which ports have traffic.
const SILENCE: Duration = Duration::from_secs(60);
/// How long it listens to find out.
const DISCOVERY: Duration = Duration::from_secs(5);

/// What the threads of one interface share.
pub(crate) struct Shared {
    pub(crate) interface: String,
    pub(crate) settings: InterfaceSettings,
    pub(crate) ports: Arc<Ports>,
    pub(crate) tick: Duration,
    /// Whether open batches always wait for the tick.
    pub(crate) waits_for_tick: bool,
    /// The number of the interface in records.
    pub(crate) number: u8,
    /// The fan-out group that all threads of this interface join.
    pub(crate) group: u16,
    /// A datagram has been claimed, so port discovery is not needed.
    pub(crate) has_claimed: AtomicBool,
    pub(crate) drop_log: RateLimited,
    pub(crate) open_log: RateLimited,
    pub(crate) history: Mutex<History>,
}

/// The recent past of an interface, for `/status`.
#[derive(Clone, Debug)]
pub(crate) struct History {
    is_up: bool,
    changed_at: Instant,
    last_error: Option<LastError>,
}

/// An error, and when it occurred.
#[derive(Clone, Debug)]
struct LastError {
    text: String,
    at: Instant,
}

impl History {
    pub(crate) fn new() -> History {
        History { is_up: false, changed_at: Instant::now(), last_error: None }
    }
}

/// One capture thread.
pub(crate) struct InterfaceReader {
    pub(crate) shared: Arc<Shared>,
    pub(crate) producer: Producer,
    pub(crate) own: OwnWatch,
    pub(crate) ready: Latch,
    pub(crate) metrics: Metrics,
    /// Whether this is the first thread of the interface, which logs for all of them.
    pub(crate) is_first: bool,
}

/// How reading an interface ended.
enum End {
    Stopped,
    Failed(pcap::Error),
    Removed,
}

/// A stop that was requested while the interface is still read.
struct Stop {
    /// When it was noticed, nanoseconds since 1970-01-01T00:00:00Z. A later packet proves that
    /// everything before it has been read.
    requested_ns: u64,
    /// When the kernel has handed over even a ring block that was not full.
    ring_flushed_at: Instant,
}

/// Whether the interface is up, as the metric, readiness and the log show it.
struct InterfaceState<'a> {
    shared: &'a Shared,
    queries: InterfaceQueries,
    index: Option<u32>,
    up: IntGauge,
    ready: &'a Latch,
    is_up: bool,
}

impl InterfaceState<'_> {
    fn set(&mut self, is_up: bool) {
        self.is_up = is_up;
        self.up.set(i64::from(is_up));
        self.ready.set(is_up);
        self.shared.set_up(is_up);
    }

    /// Follows the interface going down and up, and returns whether it still exists.
    fn refresh(&mut self) -> bool {
        let interface = &*self.shared.interface;
        let presence = interface::presence(&self.queries, interface, self.index);
        let is_up = presence == Presence::Up;
        match (self.is_up, presence) {
            (true, Presence::Down) => {
                self.shared.set_error("interface down");
                warn!(interface, "interface down");
            }
            (false, Presence::Up) => info!(interface, "interface up"),
            _ => {}
        }
        if is_up != self.is_up {
            self.set(is_up);
        }
        presence != Presence::Removed
    }
}

impl InterfaceReader {
    /// Captures until the worker is stopped, then reads the rest of the ring.
    ///
    /// # Errors
    /// Errors that retrying cannot fix: no permission, a rejected filter, an unsupported link type.
    pub(crate) fn run(self, worker: &Worker) -> Result<(), anyhow::Error> {
        let Shared { interface, settings, ports, group, .. } = &*self.shared;
        let label = [("interface", interface.as_str())];
        let up = self.metrics.gauge(names::UP, "Whether the interface is being captured.", &label);
        let queries = InterfaceQueries::new().context("cannot open a socket for interface queries")?;
        let mut state =
            InterfaceState { shared: &self.shared, queries, index: None, up, ready: &self.ready, is_up: false };
        let kernel_filter = self.metrics.gauge(
            names::KERNEL_FILTER,
            "Whether the kernel filters the packets of the interface.",
            &label,
        );
        let reopened = self.metrics.counter(names::REOPENED, "Attempts to reopen the interface.", &label);
        let mut meter = Meter::new(&self.metrics, interface);
        let mut pause = MIN_REOPEN_PAUSE;
        let mut pipeline: Option<Pipeline> = None;
        while !worker.stopping() {
            worker.beat();
            match interface::open(interface, settings, ports, *group) {
                Ok(mut opened) => {
                    self.log_opened(&opened);
                    kernel_filter.set(i64::from(opened.filter.is_some_and(|filter| filter.in_kernel)));
                    let pipeline = pipeline.get_or_insert_with(|| self.pipeline());
                    pipeline.set_mtu(opened.mtu);
                    self.update_own_destinations(pipeline);
                    meter.reopened();
                    state.index = opened.index;
                    state.set(true);
                    pause = MIN_REOPEN_PAUSE;
                    let end = self.read(&mut opened, pipeline, &mut meter, &mut state, worker);
                    self.hand_over(pipeline, true);
                    meter.follow(pipeline);
                    pipeline.report_left_alone();
                    self.own.rest();
                    state.set(false);
                    match end {
                        End::Stopped => break,
                        End::Removed => {
                            self.shared.set_error("interface removed");
                            warn!(interface, "interface removed, waiting for it to return");
                        }
                        End::Failed(error) => {
                            self.shared.set_error(&error.to_string());
                            warn!(interface, %error, "capture failed, reopening the interface");
                        }
                    }
                }
                Err(error) if error.is_transient() => self.shared.log_open_error(&error),
                Err(error) => return Err(error.into()),
            }
            if worker.stop().wait(pause) {
                break;
            }
            reopened.inc();
            pause = (pause * 2).min(MAX_REOPEN_PAUSE);
        }
        if let Some(mut pipeline) = pipeline {
            pipeline.finish();
            self.hand_over(&mut pipeline, true);
            meter.follow(&pipeline);
        }
        Ok(())
    }

    fn log_opened(&self, opened: &Opened) {
        let interface = &self.shared.interface;
        info!(interface, link = %opened.link, mtu = opened.mtu, "capture started");
        if self.is_first {
            match opened.filter {
                Some(Attached { in_kernel: false, .. }) => {
                    warn!(interface, "kernel filter rejected, every frame is copied and filtered in user space");
                }
                Some(Attached { lists_ports: false, .. }) => {
                    info!(interface, "too many port ranges for a kernel filter, which passes all UDP instead");
                }
                _ => {}
            }
        }
        if self.is_first && interface::is_virtual(interface) {
            info!(interface, "virtual interface: datagrams that a local sender coalesces (UDP_SEGMENT) arrive as one");
        }
    }

    fn pipeline(&self) -> Pipeline {
        let InterfaceSettings { tunnels, deduplicate, .. } = self.shared.settings;
        let decoder = DecoderSettings { tunnels, deduplicate, ..DecoderSettings::default() };
        Pipeline::new(decoder, Arc::clone(&self.shared.ports)).of_interface(self.shared.number)
    }

    fn read(
        &self,
        opened: &mut Opened,
        pipeline: &mut Pipeline,
        meter: &mut Meter,
        state: &mut InterfaceState<'_>,
        worker: &Worker,
    ) -> End {
        let Opened { capture, link, mtu, joined_ns, .. } = opened;
        let started = Instant::now();
        let mut tick_at = started;
        let mut maintenance_at = started;
        let mut statistics_at = started;
        let mut newest_ns = 0;
        // Until when open batches wait although the ring is empty.
        let mut held_until: Option<Instant> = None;
        let mut silence_ends = self.is_first.then_some(started + SILENCE);
        let mut stop: Option<Stop> = None;
        loop {
            worker.beat();
            self.update_own_destinations(pipeline);
            let mut first_ns: Option<u64> = None;
            let read = capture.dispatch(Some(BURST), |packet| {
                let captured_at_ns = interface::captured_at_ns(packet.header);
                let original_length = packet.header.len;
                if captured_at_ns >= *joined_ns {
                    first_ns.get_or_insert(captured_at_ns);
                    pipeline.packet(&Packet { captured_at_ns, link: *link, data: packet.data, original_length });
                }
            });
            let read = match read {
                Ok(read) => read,
                Err(error) => return End::Failed(error),
            };
            let now = Instant::now();
            let is_ring_empty = read < BURST;
            if self.shared.waits_for_tick
                && let Some(first_ns) = first_ns
            {
                // If the clock is set back, it counts from now.
                let age = Duration::from_nanos(wall_now_ns().saturating_sub(first_ns));
                held_until.get_or_insert(now + self.shared.tick.saturating_sub(age));
            }
            // While the ring does not become empty, open batches must not wait for that.
            let is_due = now >= tick_at || (is_ring_empty && held_until.is_none_or(|until| now >= until));
            self.hand_over(pipeline, is_due);
            if is_due {
                tick_at = now + self.shared.tick;
                held_until = None;
                meter.follow(pipeline);
                pipeline.report_left_alone();
            }
            if now >= maintenance_at {
                maintenance_at = now + MAINTENANCE_EVERY;
                if mtu.is_some() {
                    pipeline.set_mtu(state.queries.mtu(&self.shared.interface).ok());
                }
                let before = std::mem::replace(&mut newest_ns, pipeline.tally().newest_ns);
                let is_quiet = before == newest_ns;
                if !is_quiet || now >= statistics_at {
                    statistics_at = now + QUIET_STATISTICS_EVERY;
                    self.follow_kernel(capture, meter);
                }
                self.maintain(pipeline, meter);
                if !state.refresh() {
                    return End::Removed;
                }
                silence_ends = silence_ends.filter(|&end| !self.end_silence(end, now));
            }
            if worker.stopping() {
                let stop = stop.get_or_insert_with(|| Stop {
                    requested_ns: wall_now_ns(),
                    ring_flushed_at: now + self.shared.settings.retire * 4 + BRIEF_POLL,
                });
                let is_drained =
                    pipeline.tally().newest_ns > stop.requested_ns || (read == 0 && now >= stop.ring_flushed_at);
                if is_drained || worker.deadline().is_some_and(|end| now >= end) {
                    self.follow_kernel(capture, meter);
                    self.maintain(pipeline, meter);
                    return End::Stopped;
                }
            }
            if is_ring_empty {
                let is_brief = worker.stopping() || !self.own.has_list();
                let held = held_until.map_or(MAX_POLL, |until| until.min(tick_at).saturating_duration_since(now));
                let limit = if is_brief { BRIEF_POLL } else { MAX_POLL }.min(held);
                // An error is ignored here: the next read returns it, in libpcap's words.
                let _ = sekiwake_sys::poll_readable_or(capture, worker.stop().signal(), limit);
            }
        }
    }

    /// Applies a changed list of the destinations that this installation sends to.
    fn update_own_destinations(&self, pipeline: &mut Pipeline) {
        if self.own.has_changed() {
            // The open batches were filled under the old list. They are handed over first, because
            // the publisher filters the batches it receives until every thread uses the new list.
            self.hand_over(pipeline, true);
            if let Some(own) = self.own.changed() {
                pipeline.set_own_destinations(own);
            }
        }
    }

    /// Hands batches to the publisher: the full ones, or on a tick all of them.
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

    /// Reads what the kernel has dropped.
    fn follow_kernel(&self, capture: &mut Capture<Active>, meter: &mut Meter) {
        let interface = &self.shared.interface;
        if let Ok(statistics) = capture.stats() {
            let dropped = meter.follow_kernel(statistics);
            if dropped > 0
                && let Some(suppressed) = self.shared.drop_log.allow(Instant::now())
            {
                warn!(interface, packets = dropped, suppressed, "kernel dropped packets: capture is too slow");
            }
        }
    }

    fn maintain(&self, pipeline: &mut Pipeline, meter: &mut Meter) {
        let interface = &self.shared.interface;
        pipeline.expire(wall_now_ns());
        meter.follow(pipeline);
        let oversize = pipeline.lost_to_offload();
        if oversize > 0 && self.shared.is_first_offload_warning() {
            warn!(
                interface,
                packets = oversize,
                "frames larger than the link's MTU dropped: segmentation offload on this host coalesces datagrams, and \
                 they cannot be split again; switch it off with ethtool -K INTERFACE tx-udp-segmentation off gro off"
            );
        }
        if pipeline.tally().claimed_total() > 0 {
            self.shared.has_claimed.store(true, Ordering::Relaxed);
        }
    }

    /// After a minute without a claimed datagram, starts a port discovery that logs what the
    /// interface carries instead. Returns whether the silence is over, either way.
    fn end_silence(&self, silence_ends: Instant, now: Instant) -> bool {
        if self.shared.has_claimed.load(Ordering::Relaxed) {
            return true;
        }
        if now < silence_ends {
            return false;
        }
        let interface = self.shared.interface.clone();
        let ports = Arc::clone(&self.shared.ports);
        let discover = move || match discover::observe(&interface, DISCOVERY, &ports, || false) {
            Ok(traffic) => traffic.log(&interface),
            Err(error) => {
                warn!(interface, error = %format!("{error:#}"), "no matching traffic, and port discovery failed");
            }
        };
        if let Err(error) = std::thread::Builder::new().name("discover-ports".into()).spawn(discover) {
            warn!(%error, "cannot start the thread for port discovery");
        }
        true
    }
}

impl Shared {
    /// The interface's part of `/status`.
    pub(crate) fn status(&self, counters: &InterfaceCounters) -> Value {
        let History { is_up, changed_at, last_error } = self.history().clone();
        let mut status = json!({
            "interface": self.interface,
            "state": if is_up { "up" } else { "down" },
            "seconds_in_state": changed_at.elapsed().as_secs_f64(),
            "last_error": last_error.map(|LastError { text, at }| {
                json!({ "error": text, "seconds_ago": at.elapsed().as_secs_f64() })
            }),
        });
        if let (Some(status), Value::Object(mut counts)) = (status.as_object_mut(), counters.to_json()) {
            status.append(&mut counts);
        }
        status
    }

    fn set_up(&self, is_up: bool) {
        let mut history = self.history();
        if history.is_up != is_up {
            history.is_up = is_up;
            history.changed_at = Instant::now();
        }
    }

    fn set_error(&self, error: &str) {
        self.history().last_error = Some(LastError { text: error.to_owned(), at: Instant::now() });
    }

    fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Logs why the interface does not open, at a limited rate.
    fn log_open_error(&self, error: &OpenError) {
        let source = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
        self.set_error(&format!("{error}: {source}"));
        if let Some(suppressed) = self.open_log.allow(Instant::now()) {
            warn!(%error, %source, suppressed, "interface not open, retrying");
        }
    }

    /// Whether segmentation offload has not been warned of before, in the whole process.
    fn is_first_offload_warning(&self) -> bool {
        static WARNED: AtomicBool = AtomicBool::new(false);
        !WARNED.swap(true, Ordering::Relaxed)
    }
}
