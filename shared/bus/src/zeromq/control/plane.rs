//! The proxy's end of the control plane: a ROUTER socket in front of the coordinator.

use std::time::{Duration, Instant};

use sekiwake_group::{
    BootTime, Coordinator, CoordinatorEvent, CoordinatorSettings, HandoffRejections, HandoffStore,
    HandoffStoreSettings, Peer, Publication, RecentDesk, RecentRejections, Rejections, StatusBoard, StatusIdentity,
    StatusRejections,
    wire::{is_handoff, is_recent, is_status},
};
use sekiwake_record::Name;
use sekiwake_runtime::{Latch, RateLimited, StatusFeed, StatusResponder, Worker, host_name};
use sekiwake_sys::clock::wall_now_ns;
use tracing::{info, warn};

use super::{dealer::CONTROL_BURST, group_log::GroupLog, intake::Intake, plane_status::coordinator_status};
use crate::{
    BusError, Reporting,
    clock::{boot_now, wait_until},
    metrics::ControlPlaneMetrics,
    status::texts,
    zeromq::{
        ServerKeys,
        connections::Side,
        inlet::{Inlet, Limit, wait},
        listeners::Listeners,
        port_guard::PortGuard,
        socket::{Context, Rest, bind_all, milliseconds, receive_rest, uninterrupted},
        status::StatusInlet,
    },
};

/// The longest sleep, and during a stop. The port guard learns from each round that all messages
/// have been read, without which it cuts no connection; requests for status are answered in time.
const IDLE_POLL: Duration = Duration::from_millis(500);
const STOPPING_POLL: Duration = Duration::from_millis(50);
/// Messages read from the socket between two bursts of work.
const DRAIN_BURST: usize = 4_096;
/// How often the proxy publishes its own status.
const STATUS_EVERY: Duration = Duration::from_secs(1);
/// How often metrics are set.
const METER_EVERY: Duration = Duration::from_millis(500);
/// How long the last messages may linger.
const LINGER: Duration = Duration::from_millis(200);
/// After a stop request it continues while members or publishers are leaving, and for this long
/// afterwards: others may have been stopped at the same time without having announced it yet.
const LEAVING_GRACE: Duration = Duration::from_millis(700);
/// The longest wait for publishers: one that reads a file may take hours, and the next proxy can
/// serve it.
const PUBLISHER_WAIT: Duration = Duration::from_secs(4);

/// Where the control plane binds.
#[derive(Clone, Debug, Default)]
pub struct ControlPlaneSettings {
    /// The endpoints for publishers and members.
    pub endpoints: Vec<String>,
    /// The proxy's keys, if the bus is encrypted.
    pub keys: Option<ServerKeys>,
}

/// A bound control plane. Belongs to one thread.
pub struct ControlPlane {
    context: Context,
    socket: Inlet,
    guard: PortGuard,
    /// Kept as long as the socket: the gatekeeper ends with the last of them.
    keys: Option<ServerKeys>,
    endpoints: Vec<String>,
    intake: Intake<ReceivedFrame>,
    coordinator: Coordinator,
    handoff: HandoffStore,
    board: StatusBoard,
    desk: RecentDesk,
    own_status: OwnStatus,
    metrics: ControlPlaneMetrics,
    counted: Counted,
    metered_at: Option<Instant>,
    rejected_log: RateLimited,
    ready: Latch,
    status: StatusResponder,
    is_granting_logged: bool,
    group_log: GroupLog,
}

/// The proxy's own status, and the way to the relay.
struct OwnStatus {
    identity: StatusIdentity,
    feed: StatusFeed,
    /// `None` without a relay that publishes status.
    inlet: Option<StatusInlet>,
    due_at: BootTime,
    is_stop_said: bool,
}

/// Rejected messages that are in the metrics already.
#[derive(Default)]
struct Counted {
    coordinator: Rejections,
    handoff: HandoffRejections,
    board: StatusRejections,
    desk: RecentRejections,
}

/// The one frame of a control message.
struct ReceivedFrame(zmq::Message);

impl AsRef<[u8]> for ReceivedFrame {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// The shutdown of the control plane.
struct Shutdown {
    since: Instant,
    /// When a member or publisher was last seen leaving.
    last_leaver: Instant,
}

impl ControlPlane {
    /// Binds.
    ///
    /// # Errors
    /// An address that is in use or invalid; no random numbers.
    pub fn bind(
        context: &Context,
        settings: &ControlPlaneSettings,
        reporting: Reporting,
    ) -> Result<ControlPlane, BusError> {
        let Reporting { metrics, ready, status, feed, .. } = reporting;
        let socket = context.control_server(settings.keys.as_ref())?;
        let guard = PortGuard::start(context, &socket, Side::Control, settings.keys.as_ref(), &metrics)?;
        let endpoints = bind_all(&socket, &settings.endpoints)?;
        let epoch = getrandom::u64().map_err(BusError::Random)?.max(1);
        Ok(ControlPlane {
            context: context.clone(),
            socket: Inlet::new(socket),
            guard,
            keys: settings.keys.clone(),
            endpoints,
            intake: Intake::default(),
            coordinator: Coordinator::new(CoordinatorSettings::default(), epoch, boot_now()),
            handoff: HandoffStore::new(HandoffStoreSettings::default(), epoch, boot_now()),
            board: StatusBoard::new(epoch, boot_now()),
            desk: RecentDesk::new(epoch, boot_now()),
            own_status: OwnStatus {
                identity: StatusIdentity {
                    service: Name::new(feed.service()).unwrap_or_else(|_| host_name()),
                    group: None,
                    member: host_name(),
                    incarnation: epoch,
                },
                feed,
                inlet: None,
                due_at: boot_now(),
                is_stop_said: false,
            },
            metrics: ControlPlaneMetrics::new(&metrics),
            counted: Counted::default(),
            metered_at: None,
            rejected_log: RateLimited::default(),
            ready,
            status,
            is_granting_logged: false,
            group_log: GroupLog::default(),
        })
    }

    /// The bound endpoints, with the actual ports.
    pub fn endpoints(&self) -> &[String] {
        &self.endpoints
    }

    /// Passes the status of services on to the relay, while somebody subscribes to it.
    pub fn set_status(&mut self, status: StatusInlet) {
        self.board.reserve(self.own_status.identity.clone());
        self.own_status.inlet = Some(status);
    }

    /// Coordinates until the worker is asked to stop and no member or publisher is leaving.
    ///
    /// # Errors
    /// The socket failed because its context was terminated.
    pub fn run(mut self, worker: &Worker) -> Result<(), BusError> {
        self.ready.set(true);
        let mut shutdown = None;
        let mut listeners = Listeners::new(&self.endpoints);
        loop {
            worker.beat();
            listeners.check(Instant::now());
            self.drain()?;
            self.take_messages();
            let now = boot_now();
            if now >= self.coordinator.next_deadline() {
                self.coordinator.on_tick(now);
            }
            if now >= self.handoff.next_deadline() {
                self.handoff.on_tick(now, &self.coordinator);
            }
            if now >= self.board.next_deadline() {
                self.board.on_tick(now);
            }
            if now >= self.desk.next_deadline() {
                self.desk.on_tick(now, &self.coordinator);
            }
            self.tend_status(now, worker.stopping());
            self.send_outputs()?;
            self.report(now);
            if let Some(deadline) = worker.deadline() {
                let instant = Instant::now();
                let shutdown = shutdown.get_or_insert(Shutdown { since: instant, last_leaver: instant });
                let waits_for_publishers = instant < shutdown.since + PUBLISHER_WAIT;
                if self.coordinator.is_being_left(now) && (waits_for_publishers || self.coordinator.has_leavers()) {
                    shutdown.last_leaver = instant;
                }
                if instant >= shutdown.last_leaver + LEAVING_GRACE || instant + 2 * LINGER >= deadline {
                    return self.close(deadline);
                }
            }
            let deadline = self.coordinator.next_deadline().min(self.handoff.next_deadline());
            let deadline = deadline.min(self.board.next_deadline()).min(self.desk.next_deadline());
            let longest = if worker.stopping() { STOPPING_POLL } else { IDLE_POLL };
            let is_idle = self.intake.is_empty();
            let limit = if is_idle { wait_until(now, deadline, longest) } else { Duration::ZERO };
            wait([&mut self.socket], [], Limit::or_stop(limit, worker.stop())).map_err(failed)?;
        }
    }

    /// Empties the socket into the intake, up to a bound far above the messages handled per burst.
    /// A message without room is dropped and counted.
    fn drain(&mut self) -> Result<(), BusError> {
        for _ in 0..DRAIN_BURST {
            let Some(mut id) = self.socket.receive().map_err(failed)? else {
                self.guard.emptied();
                return Ok(());
            };
            self.guard.count(&mut id);
            let rest = receive_rest(self.socket.socket(), &id).map_err(failed)?;
            let (Some(peer), Rest { count: 1, parts: [Some(frame)] }) = (Peer::new(&id), rest) else {
                self.metrics.malformed.inc();
                continue;
            };
            self.metrics.received_bytes.inc_by(frame.len() as u64);
            if !self.intake.push(peer, ReceivedFrame(frame)) {
                self.metrics.dropped.inc();
            }
        }
        Ok(())
    }

    fn take_messages(&mut self) {
        for _ in 0..CONTROL_BURST {
            let Some((peer, ReceivedFrame(frame))) = self.intake.pop() else { return };
            if is_handoff(&frame) {
                self.handoff.on_message(boot_now(), &peer, &frame, &self.coordinator);
            } else if is_status(&frame) {
                self.board.on_message(boot_now(), &peer, &frame);
            } else if is_recent(&frame) {
                self.desk.on_message(boot_now(), &peer, &frame);
            } else {
                self.coordinator.on_message(boot_now(), &peer, &frame);
            }
        }
    }

    /// Publishes status that has been received, and the proxy's own once per second.
    fn tend_status(&mut self, now: BootTime, is_stopping: bool) {
        let OwnStatus { identity, feed, inlet, due_at, is_stop_said } = &mut self.own_status;
        let Some(inlet) = inlet else { return };
        let is_wanted = inlet.is_wanted();
        self.board.set_wanted(is_wanted);
        let publish = |publication: Publication| {
            if !inlet.push(publication) {
                self.metrics.dropped.inc();
            }
        };
        while let Some(publication) = self.board.poll_publication() {
            publish(publication);
        }
        if !is_wanted {
            return;
        }
        let says_stop = is_stopping && !*is_stop_said;
        if now >= *due_at || says_stop {
            *due_at = now + STATUS_EVERY;
            *is_stop_said = is_stopping;
            feed.ask(Instant::now());
            // This thread answers for its own part.
            self.status.answer(|| coordinator_status(&self.coordinator.view(now), &self.handoff.view()));
        }
        let Some(parts) = feed.take(Instant::now()) else { return };
        for (part, text) in texts(identity, wall_now_ns(), parts) {
            publish(Publication { topic: identity.topic(&part), text });
        }
    }

    fn next_output(&mut self) -> Option<(Peer, Vec<u8>)> {
        let first = self.coordinator.poll_output().or_else(|| self.handoff.poll_output());
        first.or_else(|| self.board.poll_output()).or_else(|| self.desk.poll_output())
    }

    /// Sends the coordinator's messages, and then those of others. A message to a peer that is
    /// disconnected or does not read is dropped and counted.
    fn send_outputs(&mut self) -> Result<(), BusError> {
        while let Some((peer, frame)) = self.next_output() {
            let bytes = frame.len() as u64;
            // libzmq checks for room only when the first part is sent.
            let socket = self.socket.socket();
            match uninterrupted(|| socket.send(peer.as_bytes(), zmq::DONTWAIT | zmq::SNDMORE)) {
                Ok(()) => {}
                Err(zmq::Error::EAGAIN | zmq::Error::EHOSTUNREACH) => {
                    self.metrics.dropped.inc();
                    continue;
                }
                Err(source) => return Err(failed(source)),
            }
            match socket.send(frame, zmq::DONTWAIT) {
                Ok(()) => self.metrics.sent_bytes.inc_by(bytes),
                Err(zmq::Error::EAGAIN | zmq::Error::EHOSTUNREACH) => self.metrics.dropped.inc(),
                Err(source) => return Err(failed(source)),
            }
        }
        Ok(())
    }

    fn report(&mut self, now: BootTime) {
        self.status.answer(|| coordinator_status(&self.coordinator.view(now), &self.handoff.view()));
        let instant = Instant::now();
        while let Some(event) = self.coordinator.poll_event() {
            if let CoordinatorEvent::LeaseExpired(expired) = &event {
                self.metrics.lease_expired(expired);
            }
            self.group_log.event(&event, instant);
        }
        if self.metered_at.is_some_and(|at| instant.duration_since(at) < METER_EVERY) {
            return;
        }
        self.metered_at = Some(instant);
        if !self.is_granting_logged && self.coordinator.grace_period_over(now) {
            self.is_granting_logged = true;
            info!("startup grace period over, granting shards");
        }
        let groups = self.coordinator.groups(now);
        self.metrics.set(&groups, &self.coordinator.streams(now), &self.handoff.view());
        self.metrics.set_clients(&self.coordinator.clients());
        self.group_log.groups(&groups, instant);
        let totals = Counted {
            coordinator: self.coordinator.rejections(),
            handoff: self.handoff.rejections(),
            board: self.board.rejections(),
            desk: self.desk.rejections(),
        };
        let messages = self.metrics.count_rejected(&self.counted.coordinator, &totals.coordinator)
            + self.metrics.count_rejected_handoff(&self.counted.handoff, &totals.handoff)
            + self.metrics.count_rejected_status(&self.counted.board, &totals.board)
            + self.metrics.count_rejected_recent(&self.counted.desk, &totals.desk);
        if messages > 0
            && let Some(suppressed) = self.rejected_log.allow(instant)
        {
            let Counted { coordinator, handoff, board, desk } = &totals;
            warn!(
                messages, suppressed, ?coordinator, ?handoff, status = ?board, recent = ?desk, "control messages rejected"
            );
        }
        self.counted = totals;
    }

    fn close(mut self, deadline: Instant) -> Result<(), BusError> {
        self.guard.stop(self.socket.socket());
        let closing_at = Instant::now();
        let left = deadline.saturating_duration_since(closing_at);
        self.socket.socket().set_linger(milliseconds(LINGER.min(left / 2))).map_err(failed)?;
        let ControlPlane { context, socket, keys, .. } = self;
        // The socket is closed before the keys and the context are released, because dropping the
        // last clone of the context waits for lingering messages.
        drop(socket);
        if let Some(keys) = keys {
            keys.release();
        }
        drop(context);
        // The relay has ended before, so this wait includes the messages that lingered for its
        // subscribers.
        if closing_at.elapsed() >= left * 2 / 3 && left > LINGER {
            warn!("drain deadline exceeded while closing the control plane, records may be lost");
        }
        Ok(())
    }
}

fn failed(source: zmq::Error) -> BusError {
    BusError::Io { role: "control plane", source: source.into() }
}
