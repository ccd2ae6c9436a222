//! The thread of one destination: takes batches from its queue and sends them. Whatever happens to the destination happens
//! here, and nowhere else.

use std::{
    fmt::Display,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use prometheus::local::LocalHistogram;
use sekiwake_bus::{Permission, boot_now};
use sekiwake_runtime::Worker;
use tracing::{info, warn};

use crate::{
    flush::{Flush, Manner},
    health::{Health, State},
    metrics::{DestinationMetrics, DropReason, ErrorKind},
    queue::{Outlet, Queued, Waited},
    rewrite::Rewritten,
    target::Target,
    udp::Fault,
};

/// How long the worker sleeps when there is nothing to do, at most.
const IDLE: Duration = Duration::from_millis(200);

/// How often the worker looks after what does not show in sending: pending ICMP errors, the path's MTU, the destination's state.
const LOOK_AROUND_EVERY: Duration = Duration::from_secs(1);

/// A flush takes no further batch when it has this many records.
const FLUSH_RECORDS: usize = 1024;

/// Pauses between tries, by what is waited for.
const SOCKET_FULL_PAUSE: Duration = Duration::from_millis(100);
const NO_BUFFERS_PAUSE: Duration = Duration::from_millis(1);
const UNREACHABLE_PAUSE: Duration = Duration::from_millis(20);

/// How soon it is asked again whether the group's lease has come back.
const LAPSED_PAUSE: Duration = Duration::from_millis(5);

/// A longer time between two looks at the clock than any pause here, several times: this process was stopped, or starved.
const STOPPED_FOR: Duration = Duration::from_millis(500);

/// How often a datagram is tried at once before an error is taken to be about the path, and not the echo of earlier datagrams.
const TRIES_AT_ONCE: u32 = 3;

/// How often that is when each time ICMP errors were waiting: every one of them says that it is an echo.
const ECHOES_AT_ONCE: u32 = 16;

/// How long before the role's deadline a worker gives up what is left, so that the process is not late: several times the longest
/// pause above. Where there is little time it is the last quarter of it.
const STOP_MARGIN: Duration = Duration::from_millis(500);

/// One destination's worker, and all it knows.
pub(crate) struct DestinationWorker<B> {
    label: String,
    segmentation: bool,
    manner: Manner,
    outlet: Outlet<B>,
    target: Target,
    metrics: DestinationMetrics,
    rewritten: Rewritten,
    latency: LocalHistogram,
    health: Health,
    /// Why datagrams have been waiting, if they wait too long.
    late_because: DropReason,
    looked_around_at: Option<Instant>,
    /// When what is left is given up; `None` until it is time to stop.
    give_up_at: Option<Instant>,
    /// When the clock was last looked at.
    seen_at: Option<Instant>,
    /// Until then nothing could be sent for reasons of our own: the process was stopped, the lease had run out, or captures did
    /// not know the address yet. What has waited until then has its whole time before it.
    resumed_at: Option<Instant>,
    /// Datagrams that were not sent when the time to stop was up, and that the group's next owner is given.
    left_to_group: u64,
}

impl<B: AsRef<[u8]>> DestinationWorker<B> {
    pub(crate) fn new(
        label: String,
        (segmentation, manner): (bool, Manner),
        outlet: Outlet<B>,
        target: Target,
        metrics: DestinationMetrics,
    ) -> DestinationWorker<B> {
        let health = Health::new(!manner.spoof);
        metrics.standing.set(State::Unknown);
        DestinationWorker {
            label,
            segmentation,
            manner,
            outlet,
            target,
            rewritten: Rewritten::default(),
            latency: metrics.latency(),
            metrics,
            health,
            late_because: DropReason::Expired,
            looked_around_at: None,
            give_up_at: None,
            seen_at: None,
            resumed_at: None,
            left_to_group: 0,
        }
    }

    /// Sends until the queue is closed and empty.
    pub(crate) fn run(mut self, worker: &Worker) {
        let mut taken: Vec<Queued<B>> = Vec::new();
        loop {
            worker.beat();
            self.look_around(Instant::now());
            self.see(Instant::now());
            match self.outlet.wait(IDLE) {
                Waited::Batch(queued) => self.take_more(queued, &mut taken),
                Waited::Nothing => continue,
                Waited::Closed => return self.end(),
            }
            self.drop_expired(&mut taken, worker);
            self.send(&taken, worker);
            taken.drain(..).for_each(|queued| self.outlet.release(&queued));
        }
    }

    fn end(&self) {
        // Nothing is known of a destination that is none any more. One that goes on says so itself, soon.
        self.metrics.standing.set(State::Unknown);
        if self.left_to_group > 0 {
            let (destination, datagrams) = (&*self.label, self.left_to_group);
            info!(destination, datagrams, "the time to stop was up: what was not sent is left to the group");
        }
    }

    /// Takes what else is there. It does not wait for more: under load there is more by itself.
    fn take_more(&self, first: Queued<B>, taken: &mut Vec<Queued<B>>) {
        let mut records = first.len();
        taken.push(first);
        while records < FLUSH_RECORDS {
            let Some(queued) = self.outlet.take() else { return };
            records += queued.len();
            taken.push(queued);
        }
    }

    /// Gives up the batches that have waited too long, or all of them when the time to stop is up.
    fn drop_expired(&mut self, taken: &mut Vec<Queued<B>>, worker: &Worker) {
        let now = Instant::now();
        self.see(now);
        let boot_now = boot_now();
        if taken.iter().any(|queued| queued.parcel.permission(boot_now) == Permission::Lapsed) {
            self.resumed_at = Some(now);
        }
        let reason = if self.is_over(worker, now) { DropReason::Shutdown } else { self.late_because };
        taken.retain(|queued| {
            let revoked = queued.parcel.permission(boot_now) == Permission::Revoked;
            if revoked {
                // What was not sent must not be committed, not even by a member that stops.
                queued.parcel.leave_to_group();
                self.metrics.handed_over.inc_by(queued.records() as u64);
            } else if reason == DropReason::Shutdown || queued.is_expired(now, self.resumed_at) {
                self.give_up_parcel(queued, reason);
            } else {
                return true;
            }
            self.outlet.release(queued);
            false
        });
    }

    fn send(&mut self, taken: &[Queued<B>], worker: &Worker) {
        let mut rewritten = std::mem::take(&mut self.rewritten);
        rewritten.clear();
        if let Some(rewriting) = self.manner.rewriting {
            let records = taken.iter().flat_map(Queued::selected);
            records.for_each(|record| rewritten.push(rewriting, &record));
        }
        let max_segment_bytes = self.max_segment_bytes();
        self.send_flush(Flush::of(taken, &rewritten, &self.manner, max_segment_bytes), taken, worker);
        self.rewritten = rewritten;
    }

    fn send_flush(&mut self, mut flush: Flush<'_>, taken: &[Queued<B>], worker: &Worker) {
        let (mut failures, mut echoes) = (0, 0);
        while let Some(message) = flush.message() {
            match flush.permission(taken, boot_now()) {
                Permission::Granted => {}
                Permission::Lapsed => {
                    self.wait_for_lease(&mut flush, taken, worker);
                    continue;
                }
                Permission::Revoked => {
                    let max_segment_bytes = self.max_segment_bytes();
                    let count = flush.leave_out_revoked(taken, boot_now(), max_segment_bytes);
                    self.metrics.handed_over.inc_by(count as u64);
                    continue;
                }
            }
            let sender = match self.target.sender(Instant::now()) {
                Ok(sender) => sender,
                Err(absence) => {
                    self.late_because = absence;
                    if self.target.awaits_approval() {
                        self.resumed_at = Some(Instant::now());
                    } else {
                        self.failed(&"has no address or no route");
                    }
                    self.target.wait(UNREACHABLE_PAUSE);
                    self.give_up_late(&mut flush, taken, worker);
                    // There may be a socket by now, and with it the size of a segment.
                    flush.plan_again(self.max_segment_bytes());
                    continue;
                }
            };
            let outcome = sender.send(&flush);
            let error = match outcome {
                Ok(count) => {
                    (failures, echoes) = (0, 0);
                    self.sent(&mut flush, count);
                    continue;
                }
                Err(error) => error,
            };
            let fault = Fault::of(&error);
            if self.heed_icmp_errors() > 0 && echoes < ECHOES_AT_ONCE {
                echoes += 1;
                continue;
            }
            if let Some(kind) = fault.kind() {
                self.metrics.error(kind);
                failures += 1;
            }
            match fault {
                Fault::Interrupted => {}
                Fault::SocketFull => {
                    if let Ok(sender) = self.target.sender(Instant::now()) {
                        sender.wait_writable(SOCKET_FULL_PAUSE);
                    }
                    self.late_because = DropReason::Expired;
                    self.give_up_late(&mut flush, taken, worker);
                }
                Fault::NoBuffers => {
                    thread::sleep(NO_BUFFERS_PAUSE);
                    self.late_because = DropReason::Expired;
                    self.give_up_late(&mut flush, taken, worker);
                }
                // It is this source that no datagram may have, here: the destination is there for others.
                Fault::Unreachable(_) | Fault::Unsendable(ErrorKind::Other)
                    if failures > TRIES_AT_ONCE && self.is_about_source() =>
                {
                    failures = 0;
                    self.give_up(&mut flush, 1, DropReason::Refused);
                }
                Fault::Unsendable(ErrorKind::Other) if self.manner.spoof && failures <= TRIES_AT_ONCE => {}
                Fault::Unreachable(_) if self.manner.spoof && failures <= TRIES_AT_ONCE => {}
                Fault::Unreachable(_) => {
                    self.failed(&error);
                    if failures > TRIES_AT_ONCE {
                        self.late_because = DropReason::Unreachable;
                        self.target.reconnect(Instant::now());
                        self.target.wait(UNREACHABLE_PAUSE);
                        self.give_up_late(&mut flush, taken, worker);
                    }
                }
                Fault::Unsendable(_) if failures == 1 => {}
                Fault::Unsendable(kind) if message.segment_bytes.is_some() && kind != ErrorKind::PermissionDenied => {
                    failures = 0;
                    let max_segment_bytes = self.segmentation_refused(message.segment_bytes, &error);
                    flush.plan_again(max_segment_bytes);
                }
                Fault::Unsendable(ErrorKind::MessageTooLong) => {
                    failures = 0;
                    self.give_up(&mut flush, 1, DropReason::TooBig);
                }
                Fault::Unsendable(_) => {
                    self.failed(&error);
                    if !self.target.reconnect(Instant::now()) {
                        failures = 0;
                        self.give_up(&mut flush, 1, DropReason::Refused);
                    }
                }
            }
        }
        self.latency.flush();
        if let Ok(sender) = self.target.sender(Instant::now()) {
            sender.report(&self.metrics);
        }
    }

    /// The group's lease has run out. It may come back, or somebody else has got the shards: nothing is sent and nothing is dropped
    /// until that is known.
    fn wait_for_lease(&mut self, flush: &mut Flush<'_>, taken: &[Queued<B>], worker: &Worker) {
        thread::sleep(LAPSED_PAUSE);
        worker.beat();
        let now = Instant::now();
        self.see(now);
        self.resumed_at = Some(now);
        if self.is_over(worker, now) {
            self.give_up_all(flush, taken);
        }
    }

    /// Looks at the clock: was this process stopped since it last did?
    fn see(&mut self, now: Instant) {
        if self.seen_at.is_some_and(|seen_at| now.duration_since(seen_at) >= STOPPED_FOR) {
            self.resumed_at = Some(now);
        }
        self.seen_at = Some(now);
    }

    fn max_segment_bytes(&mut self) -> usize {
        let sender = self.target.sender(Instant::now());
        if self.segmentation { sender.map_or(0, |sender| sender.max_segment_bytes()) } else { 0 }
    }

    /// The kernel took the next `count` messages.
    fn sent(&mut self, flush: &mut Flush<'_>, count: usize) {
        let now_ns = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
        let datagrams = flush.advance(count);
        let (mut bytes, mut own) = (0, 0);
        for datagram in datagrams {
            if datagram.is_own {
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
        self.late_because = DropReason::Expired;
        self.health.sent(Instant::now());
    }

    /// Gives up the next messages while they are too late, or all when the time to stop is up.
    fn give_up_late(&mut self, flush: &mut Flush<'_>, taken: &[Queued<B>], worker: &Worker) {
        worker.beat();
        let now = Instant::now();
        self.see(now);
        if self.is_over(worker, now) {
            self.give_up_all(flush, taken);
        }
        while flush.batch().is_some_and(|batch| taken[batch].is_expired(now, self.resumed_at)) {
            self.give_up(flush, 1, self.late_because);
        }
    }

    fn give_up(&mut self, flush: &mut Flush<'_>, messages: usize, reason: DropReason) {
        self.metrics.standing.lost();
        let datagrams = flush.advance(messages).iter().filter(|datagram| !datagram.is_own).count();
        self.metrics.dropped.add(reason, datagrams as u64);
    }

    /// The time to stop is up. What a group can send later is left to it.
    fn give_up_all(&mut self, flush: &mut Flush<'_>, taken: &[Queued<B>]) {
        let left = flush.messages_left();
        let (mut dropped, mut handed_over) = (0, 0);
        for datagram in flush.advance(left).iter().filter(|datagram| !datagram.is_own) {
            match taken[datagram.batch as usize].parcel.leave_to_group() {
                true => handed_over += 1,
                false => dropped += 1,
            }
        }
        self.left_to_group += handed_over;
        self.metrics.handed_over.inc_by(handed_over);
        self.metrics.dropped.add(DropReason::Shutdown, dropped);
    }

    fn give_up_parcel(&mut self, queued: &Queued<B>, reason: DropReason) {
        let records = queued.records() as u64;
        if reason == DropReason::Shutdown && queued.parcel.leave_to_group() {
            self.left_to_group += records;
            self.metrics.handed_over.inc_by(records);
        } else {
            self.metrics.standing.lost();
            self.metrics.dropped.add(reason, records);
        }
    }

    /// Whether a spoofed datagram was refused for its source: there is a way to the destination from our own address.
    fn is_about_source(&mut self) -> bool {
        self.manner.spoof && self.target.sender(Instant::now()).is_ok_and(|sender| sender.has_route())
    }

    /// A segmented message does not leave: because the path has become narrower, or because somebody on the way out does not
    /// segment, and then it is not tried again. Gives the largest segment from now on.
    fn segmentation_refused(&mut self, refused_bytes: Option<u16>, error: &dyn Display) -> usize {
        let Ok(sender) = self.target.sender(Instant::now()) else { return 0 };
        sender.refresh_mtu();
        let max_segment_bytes = sender.max_segment_bytes();
        if refused_bytes.is_some_and(|refused| usize::from(refused) > max_segment_bytes) {
            return max_segment_bytes;
        }
        self.segmentation = false;
        self.metrics.segmentation_refused.inc();
        warn!(destination = self.label, %error, "segmentation offload is refused and switched off");
        0
    }

    fn failed(&mut self, why: &dyn Display) {
        if let Some(state) = self.health.failed(Instant::now()) {
            self.metrics.standing.set(state);
            warn!(destination = self.label, error = %why, "destination is down");
        }
    }

    /// Takes the ICMP errors that have come back, and says how many there were.
    fn heed_icmp_errors(&mut self) -> usize {
        let Ok(sender) = self.target.sender(Instant::now()) else { return 0 };
        let (mut path_is_narrower, mut failure) = (false, None);
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
        }
        count
    }

    fn look_around(&mut self, now: Instant) {
        if self.looked_around_at.is_some_and(|at| now.duration_since(at) < LOOK_AROUND_EVERY) {
            return;
        }
        self.looked_around_at = Some(now);
        if let Ok(sender) = self.target.sender(now) {
            sender.refresh_mtu();
        }
        self.heed_icmp_errors();
        let changed = self.health.at(now);
        // Said again and again: one that this worker has replaced has said something else, and may have been later.
        self.metrics.standing.set(self.health.state());
        if let Some(state) = changed {
            let state =
                if state == State::Up { "destination is up" } else { "destination is no longer known to be down" };
            info!(destination = self.label, "{state}");
        }
    }

    /// Whether the time to stop has come and is up.
    fn is_over(&mut self, worker: &Worker, now: Instant) -> bool {
        let Some(deadline) = worker.deadline() else { return false };
        let give_up_at = *self.give_up_at.get_or_insert_with(|| {
            let left = deadline.saturating_duration_since(now);
            now + left - STOP_MARGIN.min(left / 4)
        });
        give_up_at <= now
    }
}
