//! What sending to one endpoint needs, and what is done about each error.
//!
//! ```text
//! flush ─────┬─ sent ─────────────────────────▶ next message
//!            ├─ lease expired ─ pause ────────▶ the same again
//!            ├─ no address, no route ─ pause ─▶ the same again
//!            ├─ error about the path ─ retry ─▶ the same again
//!            └─ error about the datagram ─ drop ─▶ next message
//! ```
//! The receiving thread sends too, but stops at the first obstacle: the rest is the worker's.

use std::{
    fmt::Display,
    io, thread,
    time::{Duration, Instant},
};

use prometheus::local::LocalHistogram;
use sekiwake_bus::{Permission, boot_now};
use sekiwake_runtime::{StopClock, Worker};
use sekiwake_sys::clock::wall_now_ns;
use tracing::{info, warn};

use super::{
    flush::{DatagramOptions, Flush, Unsent},
    health::HealthTracker,
    socket::Fault,
    target::Target,
};
use crate::{
    metrics::{DestinationMetrics, DropReason, ErrorKind},
    queue::Queued,
    rewrite::Rewritten,
    status::EndpointState,
};

/// How often the worker checks conditions that sending does not reveal: pending ICMP errors, the
/// path's MTU, the endpoint's state.
const MAINTAIN_EVERY: Duration = Duration::from_secs(1);

/// Pauses between tries, by their cause.
const SOCKET_FULL_PAUSE: Duration = Duration::from_millis(100);
const NO_BUFFERS_PAUSE: Duration = Duration::from_millis(1);
const UNREACHABLE_PAUSE: Duration = Duration::from_millis(20);
const LAPSED_PAUSE: Duration = Duration::from_millis(5);

/// How often a datagram is retried at once before its error is attributed to the path, and not to
/// earlier datagrams.
const TRIES_AT_ONCE: u32 = 3;

/// The same while each failure finds ICMP errors in the socket's queue: each of them says that the
/// error is about an earlier datagram.
const ECHOES_AT_ONCE: u32 = 16;

/// How long before the drain deadline a worker gives up, so that the process ends in time: several
/// times the longest pause above.
const STOP_MARGIN: Duration = Duration::from_millis(500);

/// The state of sending to one UDP endpoint. The worker and the receiving thread share it; the one
/// that sends has it for that time.
pub(crate) struct Sending {
    label: String,
    options: DatagramOptions,
    pub(super) target: Target,
    pub(super) metrics: DestinationMetrics,
    rewritten: Rewritten,
    latency: LocalHistogram,
    health: HealthTracker,
    /// Why datagrams are waiting: the reason if they wait too long.
    pub(super) wait_reason: DropReason,
    maintained_at: Option<Instant>,
    /// When to give up on a stop, and which times do not count as waiting: the process was
    /// suspended, the lease had expired, or captures did not know the address yet.
    pub(super) clock: StopClock,
}

/// How often the next message has failed.
#[derive(Default)]
struct Tries {
    failures: u32,
    /// Failures that ICMP errors about earlier datagrams explain.
    echoes: u32,
}

impl Sending {
    pub(crate) fn new(label: String, options: DatagramOptions, target: Target, metrics: DestinationMetrics) -> Sending {
        let health = HealthTracker::new(!options.spoof);
        metrics.status.set(EndpointState::Unknown);
        Sending {
            label,
            options,
            target,
            rewritten: Rewritten::default(),
            latency: metrics.latency(),
            metrics,
            health,
            wait_reason: DropReason::Expired,
            maintained_at: None,
            clock: StopClock::new(STOP_MARGIN),
        }
    }

    pub(super) fn end(&self) {
        // A removed endpoint has no state. If another worker has taken this one's place, that
        // worker sets the state again within a second.
        self.metrics.status.set(EndpointState::Unknown);
        let datagrams = self.clock.left_to_group();
        if datagrams > 0 {
            info!(destination = self.label, datagrams, "drain deadline reached, unsent datagrams left to the group");
        }
    }

    /// Sends everything, or gives it up.
    pub(super) fn send<B: AsRef<[u8]>>(&mut self, taken: &[Queued<B>], worker: &Worker) {
        let mut rewritten = std::mem::take(&mut self.rewritten);
        rewritten.clear();
        if let Some(rewriting) = self.options.rewriting {
            let records = taken.iter().flat_map(Queued::selected);
            records.for_each(|record| rewritten.push(rewriting, &record));
        }
        let max_segment_bytes = self.max_segment_bytes();
        self.send_flush(Flush::of(taken, &rewritten, &self.options, max_segment_bytes), taken, worker);
        self.rewritten = rewritten;
    }

    /// Sends what the kernel takes now. `None`: nothing is sent. Otherwise gives what is left, from
    /// the first obstacle on, which the worker is to deal with.
    pub(crate) fn send_at_once<B: AsRef<[u8]>>(&mut self, taken: &[Queued<B>]) -> Option<Vec<Unsent>> {
        let sender = self.target.open_sender()?;
        if self.health.state() == EndpointState::Down {
            return None;
        }
        let max_segment_bytes = if self.options.segmentation { sender.max_segment_bytes() } else { 0 };
        let mut rewritten = std::mem::take(&mut self.rewritten);
        rewritten.clear();
        if let Some(rewriting) = self.options.rewriting {
            let records = taken.iter().flat_map(Queued::selected);
            records.for_each(|record| rewritten.push(rewriting, &record));
        }
        let mut flush = Flush::of(taken, &rewritten, &self.options, max_segment_bytes);
        while flush.message().is_some() && flush.permission(taken, boot_now()) == Permission::Granted {
            match self.target.open_sender().map(|sender| sender.send(&flush)) {
                Some(Ok(count)) => self.sent(&mut flush, count),
                None => break,
                Some(Err(_)) => {
                    // An ICMP error about an earlier datagram is known now, and would not be
                    // returned again. Any other error meets the worker.
                    self.take_icmp_errors();
                    break;
                }
            }
        }
        self.latency.flush();
        let unsent = flush.unsent(taken);
        self.rewritten = rewritten;
        Some(unsent)
    }

    fn send_flush<B: AsRef<[u8]>>(&mut self, mut flush: Flush<'_>, taken: &[Queued<B>], worker: &Worker) {
        let mut tries = Tries::default();
        while flush.message().is_some() {
            if !self.is_permitted(&mut flush, taken, worker) {
                continue;
            }
            let sender = match self.target.sender(Instant::now()) {
                Ok(sender) => sender,
                Err(absence) => {
                    self.wait_for_socket(absence, &mut flush, taken, worker);
                    continue;
                }
            };
            match sender.send(&flush) {
                Ok(count) => {
                    tries = Tries::default();
                    self.sent(&mut flush, count);
                }
                Err(error) => self.handle_error(&error, &mut tries, &mut flush, taken, worker),
            }
        }
        self.latency.flush();
        if let Ok(sender) = self.target.sender(Instant::now()) {
            sender.report(&self.metrics);
        }
    }

    /// Whether all remaining datagrams may be sent. If not, waits for the lease, or takes out those
    /// that belong to another member now.
    fn is_permitted<B: AsRef<[u8]>>(&mut self, flush: &mut Flush<'_>, taken: &[Queued<B>], worker: &Worker) -> bool {
        match flush.permission(taken, boot_now()) {
            Permission::Granted => true,
            Permission::Lapsed => {
                self.wait_for_lease(flush, taken, worker);
                false
            }
            Permission::Revoked => {
                let max_segment_bytes = self.max_segment_bytes();
                let count = flush.leave_out_revoked(taken, boot_now(), max_segment_bytes);
                self.metrics.handed_over.inc_by(count as u64);
                false
            }
        }
    }

    /// The group's lease has expired. Either it is renewed, or another member gets the shards:
    /// until that is known, nothing is sent and nothing is dropped.
    fn wait_for_lease<B: AsRef<[u8]>>(&mut self, flush: &mut Flush<'_>, taken: &[Queued<B>], worker: &Worker) {
        thread::sleep(LAPSED_PAUSE);
        worker.beat();
        let now = Instant::now();
        self.clock.observe(now);
        self.clock.exclude_until(now);
        if self.clock.is_over(worker.deadline(), now) {
            self.give_up_all(flush, taken);
        }
    }

    /// There is no socket: no address, or no route to it.
    fn wait_for_socket<B: AsRef<[u8]>>(
        &mut self,
        absence: DropReason,
        flush: &mut Flush<'_>,
        taken: &[Queued<B>],
        worker: &Worker,
    ) {
        self.wait_reason = absence;
        if self.target.awaits_approval() {
            self.clock.exclude_until(Instant::now());
        } else {
            let why = self.target.failure().to_owned();
            self.failed(&why);
        }
        self.target.wait(UNREACHABLE_PAUSE);
        self.give_up_late(flush, taken, worker);
        // There may be a socket by now, and with it the size of a segment.
        flush.plan_again(self.max_segment_bytes());
    }

    /// The next message was not sent: waits, changes its form, or gives it up.
    fn handle_error<B: AsRef<[u8]>>(
        &mut self,
        error: &io::Error,
        tries: &mut Tries,
        flush: &mut Flush<'_>,
        taken: &[Queued<B>],
        worker: &Worker,
    ) {
        let fault = Fault::of(error);
        let segment_bytes = flush.message().and_then(|message| message.segment_bytes);
        if self.take_icmp_errors() > 0 && tries.echoes < ECHOES_AT_ONCE {
            tries.echoes += 1;
            return;
        }
        if let Some(kind) = fault.kind() {
            self.metrics.error(kind);
            self.metrics.status.set_error(error);
            tries.failures += 1;
        }
        match fault {
            Fault::Interrupted => {}
            Fault::SocketFull => {
                if let Ok(sender) = self.target.sender(Instant::now()) {
                    sender.wait_writable(SOCKET_FULL_PAUSE);
                }
                self.wait_reason = DropReason::Expired;
                self.give_up_late(flush, taken, worker);
            }
            Fault::NoBuffers => {
                thread::sleep(NO_BUFFERS_PAUSE);
                self.wait_reason = DropReason::Expired;
                self.give_up_late(flush, taken, worker);
            }
            // A spoofed datagram can fail for its source address alone, while the destination is
            // reachable for others. Because of that, its error says nothing about the destination
            // before it has failed several times, and only if there is no route from our own
            // address either.
            Fault::Unreachable(_) | Fault::Unsendable(ErrorKind::Other)
                if self.options.spoof && tries.failures <= TRIES_AT_ONCE => {}
            Fault::Unreachable(_) | Fault::Unsendable(ErrorKind::Other) if self.is_about_source() => {
                tries.failures = 0;
                self.give_up(flush, 1, DropReason::Refused);
            }
            Fault::Unreachable(_) => {
                if self.failed(error) {
                    return;
                }
                if tries.failures > TRIES_AT_ONCE {
                    self.wait_reason = DropReason::Unreachable;
                    self.target.reconnect(Instant::now());
                    self.target.wait(UNREACHABLE_PAUSE);
                    self.give_up_late(flush, taken, worker);
                }
            }
            Fault::Unsendable(_) if tries.failures == 1 => {}
            Fault::Unsendable(kind) if segment_bytes.is_some() && kind != ErrorKind::PermissionDenied => {
                tries.failures = 0;
                let max_segment_bytes = self.shrink_segments(segment_bytes, error);
                flush.plan_again(max_segment_bytes);
            }
            Fault::Unsendable(ErrorKind::MessageTooLong) => {
                tries.failures = 0;
                self.give_up(flush, 1, DropReason::TooBig);
            }
            Fault::Unsendable(_) => {
                self.mark_down(error);
                if !self.target.reconnect(Instant::now()) {
                    tries.failures = 0;
                    self.give_up(flush, 1, DropReason::Refused);
                }
            }
        }
    }

    fn max_segment_bytes(&mut self) -> usize {
        let sender = self.target.sender(Instant::now());
        if self.options.segmentation { sender.map_or(0, |sender| sender.max_segment_bytes()) } else { 0 }
    }

    /// The kernel has accepted the next `count` messages.
    fn sent(&mut self, flush: &mut Flush<'_>, count: usize) {
        let now_ns = wall_now_ns();
        let datagrams = flush.advance(count);
        let mut bytes = 0;
        let mut own = 0;
        for datagram in datagrams {
            if datagram.is_synthetic {
                own += 1;
                continue;
            }
            bytes += datagram.payload.len() as u64;
            self.latency.observe(now_ns.saturating_sub(datagram.captured_at_ns) as f64 / 1e9);
        }
        self.metrics.sent_datagrams.inc_by(datagrams.len() as u64 - own);
        self.metrics.sent_bytes.inc_by(bytes);
        if own > 0 {
            self.metrics.templates_sent.inc_by(own);
        }
        self.wait_reason = DropReason::Expired;
        self.health.sent(Instant::now());
    }

    /// Gives up the messages that have waited too long, or all of them at the drain deadline.
    fn give_up_late<B: AsRef<[u8]>>(&mut self, flush: &mut Flush<'_>, taken: &[Queued<B>], worker: &Worker) {
        worker.beat();
        let now = Instant::now();
        self.clock.observe(now);
        if self.clock.is_over(worker.deadline(), now) {
            self.give_up_all(flush, taken);
        }
        while flush.batch().is_some_and(|batch| taken[batch].is_expired(now, &self.clock)) {
            self.give_up(flush, 1, self.wait_reason);
        }
    }

    fn give_up(&mut self, flush: &mut Flush<'_>, messages: usize, reason: DropReason) {
        self.metrics.status.set_lost();
        let datagrams = flush.advance(messages).iter().filter(|datagram| !datagram.is_synthetic).count();
        self.metrics.dropped.add(reason, datagrams as u64);
    }

    /// Gives up everything at the drain deadline: leaves it to the group, if there is one.
    fn give_up_all<B: AsRef<[u8]>>(&mut self, flush: &mut Flush<'_>, taken: &[Queued<B>]) {
        let left = flush.messages_left();
        let mut dropped = 0;
        let mut handed_over = 0;
        for datagram in flush.advance(left).iter().filter(|datagram| !datagram.is_synthetic) {
            match taken[datagram.batch as usize].parcel.leave_to_group() {
                true => handed_over += 1,
                false => dropped += 1,
            }
        }
        self.clock.leave_to_group(handed_over);
        self.metrics.handed_over.inc_by(handed_over);
        self.metrics.dropped.add(DropReason::Shutdown, dropped);
    }

    pub(super) fn give_up_parcel<B: AsRef<[u8]>>(&mut self, queued: &Queued<B>, reason: DropReason) {
        let records = queued.records() as u64;
        if reason == DropReason::Shutdown && queued.parcel.leave_to_group() {
            self.clock.leave_to_group(records);
            self.metrics.handed_over.inc_by(records);
        } else {
            self.metrics.status.set_lost();
            self.metrics.dropped.add(reason, records);
        }
    }

    /// Whether a spoofed datagram failed because of its source: there is a route to the destination
    /// from our own address.
    fn is_about_source(&mut self) -> bool {
        self.options.spoof && self.target.sender(Instant::now()).is_ok_and(|sender| sender.has_route())
    }

    /// A segmented message was rejected: the path's MTU has become smaller, or kernel or device
    /// cannot segment, and then segmentation is switched off. Returns the largest segment from now
    /// on.
    fn shrink_segments(&mut self, rejected_bytes: Option<u16>, error: &dyn Display) -> usize {
        let Ok(sender) = self.target.sender(Instant::now()) else { return 0 };
        sender.refresh_mtu();
        let max_segment_bytes = sender.max_segment_bytes();
        if rejected_bytes.is_some_and(|rejected| usize::from(rejected) > max_segment_bytes) {
            return max_segment_bytes;
        }
        self.options.segmentation = false;
        self.metrics.gso_rejected.inc();
        warn!(destination = self.label, %error, "segmentation offload rejected, switching it off");
        0
    }

    /// The address in use is refused or unreachable. Returns whether another one takes its place.
    fn failed(&mut self, why: &dyn Display) -> bool {
        self.mark_down(why);
        let is_changing = self.target.try_another(Instant::now());
        if is_changing {
            self.health.moved();
        }
        is_changing
    }

    pub(super) fn mark_down(&mut self, why: &dyn Display) {
        self.metrics.status.set_quiet(false);
        self.metrics.status.set_error(why);
        if let Some(state) = self.health.failed(Instant::now()) {
            self.metrics.status.set(state);
            warn!(destination = self.label, error = %why, "destination is down");
        }
    }

    /// Takes the ICMP errors from the socket, and returns how many there were.
    fn take_icmp_errors(&mut self) -> usize {
        let Ok(sender) = self.target.sender(Instant::now()) else { return 0 };
        let mut path_is_narrower = false;
        let mut failure = None;
        let count = sender.take_errors(|error| match Fault::of(&error).kind() {
            Some(ErrorKind::MessageTooLong) => path_is_narrower = true,
            Some(kind) => {
                self.metrics.error(kind);
                failure = Some(error);
            }
            None => {}
        });
        if path_is_narrower {
            sender.refresh_mtu();
        }
        if let Some(error) = failure {
            self.failed(&error);
            if Fault::of(&error) == Fault::Unreachable(ErrorKind::ConnectionRefused) {
                self.health.was_refused();
            }
        }
        count
    }

    /// Checks conditions that sending does not reveal.
    pub(super) fn maintain(&mut self, now: Instant) {
        if self.maintained_at.is_some_and(|at| now.duration_since(at) < MAINTAIN_EVERY) {
            return;
        }
        self.maintained_at = Some(now);
        if let Ok(sender) = self.target.sender(now) {
            sender.refresh_mtu();
        }
        self.take_icmp_errors();
        self.metrics.status.set_quiet(self.health.is_quiet(now));
        let changed = self.health.at(now);
        // Set every time, because a worker that this one has replaced may have set another state
        // afterwards.
        self.metrics.status.set(self.health.state());
        if let Some(state) = changed {
            match state {
                EndpointState::Up => {
                    self.target.works();
                    info!(destination = self.label, "destination is up");
                }
                _ => info!(destination = self.label, "destination state unknown, no longer down"),
            }
        }
    }
}
