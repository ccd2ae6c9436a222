//! The control thread of a stream: it advertises the stream to the coordinator, retransmits records
//! that subscribers missed, and receives the list of destinations that must not be captured.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use sekiwake_group::{
    BootTime, CurrentList, OwnDestinations, PublisherControl, PublisherControlSettings, RecentAnswers, StatusIdentity,
    Stream,
    wire::{Destination, Transport, is_recent, is_status},
};
use sekiwake_record::{Kind, Name};
use sekiwake_runtime::{Latch, StatusFeed, StatusResponder, Worker};
use serde_json::{Value, json};
use tracing::{info, warn};

use super::{
    dealer::{CONTROL_BURST, Incoming, receive, routing_id, send},
    phase::{StreamEvent, StreamPhase},
    shared::StreamShared,
    sources::top_sources,
};
use crate::{
    BusError, Reporting, Responder,
    clock::{boot_now, wait_until},
    metrics::{StreamControlMetrics, Unpublished},
    settings::Controlling,
    zeromq::{
        connections::{Connections, Side},
        inlet::{Inlet, Limit, wait},
        socket::{Context, milliseconds},
        status::StatusReporter,
    },
};

/// Maximum bytes retransmitted per second: over twice the rate of a stream of 200,000 small
/// datagrams per second.
const REPAIR_BYTES_PER_SECOND: u64 = 64 << 20;
/// The longest sleep, so that requests for status are answered in time.
const IDLE_POLL: Duration = Duration::from_millis(500);
/// The longest sleep during a stop, so that changes of the writer are noticed.
const ENDING_POLL: Duration = Duration::from_millis(20);
/// The longest sleep without a connection.
const UNCONNECTED_POLL: Duration = Duration::from_millis(200);
/// The longest sleep while a change is expected: capture threads apply a list, or the writer waits
/// for commits.
const BUSY_POLL: Duration = Duration::from_millis(2);
/// How often the connection is checked and metrics are set, at most and unless the connection
/// changes.
const METER_EVERY: Duration = Duration::from_millis(500);
/// How long the last message may linger.
const LAST_MESSAGE_LINGER: Duration = Duration::from_millis(200);
/// How long a publisher that is asked to stop waits for an absent proxy.
const ABSENT_PROXY_WAIT: Duration = Duration::from_secs(3);
/// The same for a publisher that has reached the end of its file.
const ABSENT_PROXY_WAIT_AT_END: Duration = Duration::from_secs(60);

/// The parts of a [`StreamControl`].
pub(crate) struct StreamControlOptions<'a> {
    pub(crate) controlling: &'a Controlling,
    pub(crate) stream: Stream,
    pub(crate) shared: Arc<StreamShared>,
    /// Whether the writer needs the groups' commits, because it reads a file no further ahead than
    /// its memory.
    pub(crate) follows_commits: bool,
    pub(crate) reporting: Reporting,
    /// The writer's counts, for the status.
    pub(crate) unpublished: Unpublished,
}

/// Answers for a stream. Its thread calls [`StreamControl::run`].
pub struct StreamControl {
    context: Context,
    socket: Inlet,
    connections: Connections,
    in_process: bool,
    is_connected: bool,
    ready: Latch,
    machine: PublisherControl,
    /// Answers readers that are in no group.
    recent: RecentAnswers,
    shared: Arc<StreamShared>,
    own: OwnDestinations,
    list: OwnList,
    follows_commits: bool,
    /// A frame that the socket had no room for.
    pending: Option<Vec<u8>>,
    counted: Counted,
    metrics: StreamControlMetrics,
    unpublished: Unpublished,
    metered_at: Option<Instant>,
    status: StatusResponder,
    /// `None` if a name is not allowed, which the settings prevent.
    reporter: Option<StatusReporter>,
    stream: Stream,
}

/// The list that the capture threads have been given; number 0 before the first.
#[derive(Clone, Copy, Default)]
struct OwnList {
    number: u64,
    is_applied: bool,
}

/// Totals of the state machine that are in the metrics already.
#[derive(Clone, Copy, Default)]
struct Counted {
    rejected: u64,
    retransmitted_bytes: u64,
}

/// The end of the stream, as far as the control thread has seen it.
struct EndWatch {
    /// When the producers had ended.
    since: Option<Instant>,
    is_draining: bool,
    /// When the last message from the proxy arrived.
    heard_at: Instant,
}

impl StreamControl {
    pub(crate) fn new(context: &Context, options: StreamControlOptions<'_>) -> Result<StreamControl, BusError> {
        let StreamControlOptions { controlling, stream, shared, follows_commits, reporting, unpublished } = options;
        let Reporting { metrics, ready, status, feed, .. } = reporting;
        let socket = context.control_client(&routing_id()?, controlling.zeromq.keys.as_ref())?;
        let mut connections = context.watch(&socket, Side::Control)?;
        connections.connect(&socket, &controlling.zeromq.endpoints)?;
        shared.apply(StreamEvent::ControlAttached);
        let settings =
            PublisherControlSettings { stream: stream.clone(), repair_bytes_per_second: REPAIR_BYTES_PER_SECOND };
        let reporter = reporter(feed, &stream);
        Ok(StreamControl {
            context: context.clone(),
            socket: Inlet::new(socket),
            connections,
            in_process: controlling.zeromq.is_in_process(),
            is_connected: false,
            ready,
            machine: PublisherControl::new(settings, boot_now()),
            recent: RecentAnswers::new(stream.clone(), boot_now()),
            shared,
            own: OwnDestinations::default(),
            list: OwnList::default(),
            follows_commits,
            pending: None,
            counted: Counted::default(),
            metrics: StreamControlMetrics::new(&metrics),
            unpublished,
            metered_at: None,
            status,
            reporter,
            stream,
        })
    }

    /// Makes the part of `/status` that lists the sources with the most retained records.
    pub fn sources(&self) -> impl Fn() -> Value + Send + Sync + 'static {
        let shared = Arc::clone(&self.shared);
        move || top_sources(&shared)
    }

    /// The destinations that must not be captured.
    pub fn own_destinations(&self) -> OwnDestinations {
        self.own.clone()
    }

    /// Answers until the writer has ended.
    ///
    /// # Errors
    /// The socket failed because its context was terminated.
    pub fn run(mut self, worker: &Worker) -> Result<(), BusError> {
        if self.follows_commits {
            self.machine.follow_commits(boot_now());
        }
        let mut end = EndWatch { since: None, is_draining: false, heard_at: Instant::now() };
        loop {
            worker.beat();
            if self.take_messages()? {
                end.heard_at = Instant::now();
                self.connections.heard();
            }
            let now = boot_now();
            self.apply_list(now);
            if self.machine.may_publish() {
                self.shared.apply(StreamEvent::ListApplied);
            }
            self.ready.set(self.machine.may_publish());
            let phase = self.shared.phase();
            if phase.is_ending() && end.since.is_none() {
                end.since = Some(Instant::now());
                if let Some(reporter) = &mut self.reporter {
                    reporter.stopping(now);
                }
            }
            if phase == StreamPhase::Draining && !end.is_draining {
                end.is_draining = true;
                self.machine.drain(now);
            }
            if now >= self.machine.next_deadline() {
                self.machine.set_left_alone(self.own.list().left_alone());
            }
            self.make_answers(now);
            if let Some(reporter) = &mut self.reporter {
                reporter.tend(now);
            }
            let is_blocked = !self.send_outputs()?;
            self.watch_end(&end, worker);
            if self.shared.phase() == StreamPhase::Finished {
                return self.close();
            }
            self.report();
            self.wait(now, is_blocked, &end, worker)?;
        }
    }

    /// Repairs of groups come first.
    fn make_answers(&mut self, now: BootTime) {
        let retention = self.shared.retention();
        self.machine.on_tick(now, &retention);
        self.recent.on_tick(now, &retention);
    }

    /// Handles received messages, and returns whether there were any.
    fn take_messages(&mut self) -> Result<bool, BusError> {
        for taken in 0..CONTROL_BURST {
            match receive(&mut self.socket, "stream control")? {
                Incoming::Frame(frame) => match &mut self.reporter {
                    Some(reporter) if is_status(&frame) => reporter.on_message(boot_now(), &frame),
                    _ if is_recent(&frame) => self.recent.on_message(&frame, &self.shared.retention()),
                    _ => self.machine.on_message(boot_now(), &frame, &mut self.shared.retention()),
                },
                Incoming::Malformed => self.metrics.rejected.inc(),
                Incoming::Nothing => return Ok(taken > 0),
            }
        }
        Ok(true)
    }

    /// Passes a new list to the capture threads, and reports to the state machine when all of them
    /// use it.
    fn apply_list(&mut self, now: BootTime) {
        let CurrentList { number, destinations, counted } = self.machine.list();
        if number != self.list.number {
            let addresses = udp_addresses(destinations);
            let of_clients = udp_addresses(counted);
            info!(
                stream = %self.stream, destinations = addresses.len(), of_clients = of_clients.len(),
                "own destinations received, not capturing them"
            );
            self.own.set(number, addresses, &of_clients);
            self.list = OwnList { number, is_applied: false };
        }
        if !self.list.is_applied && self.list.number > 0 && self.own.applied() == self.list.number {
            self.list.is_applied = true;
            self.machine.applied(now, self.list.number);
        }
    }

    fn next_frame(&mut self) -> Option<Vec<u8>> {
        let first = self.pending.take().or_else(|| self.machine.poll_output());
        let status = || self.reporter.as_mut().and_then(StatusReporter::poll_output);
        first.or_else(status).or_else(|| self.recent.poll_output())
    }

    /// Sends as much as the socket has room for, and returns whether that was everything.
    fn send_outputs(&mut self) -> Result<bool, BusError> {
        while let Some(frame) = self.next_frame() {
            if !send(&mut self.socket, &frame, "stream control")? {
                self.pending = Some(frame);
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Notifies the writer when it need not wait any longer: the groups have handled everything,
    /// the deadline is near, or the proxy does not answer.
    fn watch_end(&self, end: &EndWatch, worker: &Worker) {
        let Some(since) = end.since else { return };
        if !self.shared.phase().is_waiting() {
            return;
        }
        self.shared.set_live_kinds(self.machine.live_kinds());
        if self.machine.is_drained() {
            self.shared.apply(StreamEvent::GroupsCaughtUp);
            return;
        }
        let now = Instant::now();
        // The last quarter of the time is for lingering messages.
        let is_late =
            worker.deadline().is_some_and(|deadline| now >= since + deadline.saturating_duration_since(since) * 3 / 4);
        let patience = if worker.stopping() { ABSENT_PROXY_WAIT } else { ABSENT_PROXY_WAIT_AT_END };
        let is_alone = now >= since.max(end.heard_at) + patience;
        if is_late || is_alone {
            let records = self.shared.retention().uncommitted_records();
            let reason = if is_alone { "proxy does not answer" } else { "drain deadline reached" };
            warn!(stream = %self.stream, records, reason, "ending before every group has handled all records");
            self.shared.give_up(records);
        }
    }

    fn wait(&mut self, now: BootTime, is_blocked: bool, end: &EndWatch, worker: &Worker) -> Result<(), BusError> {
        let is_applying = self.list.number > 0 && !self.list.is_applied;
        let limit = match () {
            () if is_applying || end.is_draining || self.follows_commits => BUSY_POLL,
            () if end.since.is_some() || worker.stopping() => ENDING_POLL,
            () if !self.is_connected => UNCONNECTED_POLL,
            () => IDLE_POLL,
        };
        let deadline = self.machine.next_deadline().min(self.recent.next_deadline());
        let deadline = if is_blocked { BootTime::NEVER } else { deadline };
        if is_blocked {
            self.socket.await_room();
        }
        let limit = self.reporter.as_ref().map_or(limit, |reporter| reporter.wait_limit(now, limit));
        // A deadline that has passed means that there is more to retransmit at once.
        let timeout = if deadline <= now { Duration::ZERO } else { wait_until(now, deadline, limit) };
        let limit = Limit::or_stop(timeout, worker.stop());
        wait([&mut self.socket], [self.connections.events()], limit).map_err(failed)
    }

    fn report(&mut self) {
        self.status.answer(|| {
            let retention = self.shared.retention();
            let own = self.own.list();
            let left_alone = own.left_alone().map(
                |(destination, datagrams)| json!({ "destination": destination.to_string(), "datagrams": datagrams }),
            );
            let retained = |kind: Kind| {
                let seconds = retention.oldest_published_at(kind).map(|at| (boot_now() - at).as_secs_f64());
                json!({ "kind": kind.as_str(), "bytes": retention.bytes(kind), "seconds": seconds })
            };
            json!({
                "stream": &*self.stream.name,
                "epoch": format!("{:016x}", self.stream.epoch),
                "may_publish": self.machine.may_publish(),
                "retained": Kind::ALL.map(retained),
                "unpublished": self.unpublished.by_reason(),
                "own_destinations": own.addresses().iter().map(ToString::to_string).collect::<Vec<_>>(),
                "left_alone": left_alone.collect::<Vec<_>>(),
                "retransmitted_bytes": self.machine.retransmitted_bytes() + self.recent.retransmitted_bytes(),
                "rejected_messages": self.machine.rejected() + self.recent.rejected(),
            })
        });
        let now = Instant::now();
        let is_recent = self.metered_at.is_some_and(|at| now.duration_since(at) < METER_EVERY);
        if is_recent && !self.connections.has_event() {
            return;
        }
        self.metered_at = Some(now);
        self.connections.set_retransmitted(self.machine.retransmitted_records());
        self.is_connected = self.connections.follow(&mut self.socket) || self.in_process;
        self.metrics.connected.set(i64::from(self.is_connected));
        let retention = self.shared.retention();
        for kind in Kind::ALL {
            self.metrics.retained_bytes[kind.index()].set(retention.bytes(kind) as i64);
            let age = retention.oldest_published_at(kind).map_or(Duration::ZERO, |at| boot_now() - at);
            self.metrics.retained_seconds[kind.index()].set(age.as_secs_f64());
        }
        drop(retention);
        let totals = Counted {
            rejected: self.machine.rejected() + self.recent.rejected(),
            retransmitted_bytes: self.machine.retransmitted_bytes() + self.recent.retransmitted_bytes(),
        };
        self.metrics.rejected.inc_by(totals.rejected - self.counted.rejected);
        self.metrics.retransmitted_bytes.inc_by(totals.retransmitted_bytes - self.counted.retransmitted_bytes);
        self.counted = totals;
    }

    fn close(mut self) -> Result<(), BusError> {
        self.machine.end(boot_now(), &self.shared.retention());
        self.send_outputs()?;
        self.socket.socket().set_linger(milliseconds(LAST_MESSAGE_LINGER)).map_err(failed)?;
        let StreamControl { context, socket, connections, shared, .. } = self;
        // The socket is closed before this clone of the context is dropped, so that the writer,
        // which drops the last clone, waits for lingering messages.
        drop((socket, connections, context));
        shared.apply(StreamEvent::ControlClosed);
        Ok(())
    }
}

/// The addresses of UDP destinations.
fn udp_addresses(destinations: &[Destination]) -> Vec<SocketAddr> {
    let udp = destinations.iter().filter(|destination| destination.transport == Transport::Udp);
    udp.map(|destination| SocketAddr::new(destination.address.into(), destination.port)).collect()
}

impl Responder for StreamControl {
    fn run(self: Box<Self>, worker: &Worker) -> Result<(), BusError> {
        StreamControl::run(*self, worker)
    }
}

fn failed(source: zmq::Error) -> BusError {
    BusError::Io { role: "stream control", source: source.into() }
}

fn reporter(feed: StatusFeed, stream: &Stream) -> Option<StatusReporter> {
    let service = Name::new(feed.service()).ok()?;
    let member = Name::new(&stream.name).ok()?;
    let identity = StatusIdentity { service, group: None, member, incarnation: stream.epoch };
    Some(StatusReporter::new(identity, feed, boot_now()))
}
