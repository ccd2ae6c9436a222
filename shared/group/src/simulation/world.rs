//! The simulated parties and their events.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    sync::Arc,
    time::Duration,
};

use sekiwake_record::{Announcement, Header, Kind, Name, Shard, Topic, TopicPosition};

use super::{
    check::Ledger,
    network::{Clock, Link},
    random::Random,
};
use crate::{
    Arrival, BootTime, Coordinator, CoordinatorSettings, CurrentList, Member, MemberOutput, MemberSettings, Peer,
    Permission, Permit, PublisherControl, PublisherControlSettings, REGISTER_WITHIN, Received, Retained, Retention,
    Stream,
    mutants::{Mutant, Mutants},
    time::{MILLISECOND, SECOND},
    wire::{Destination, Doubt, Message, RejectionReason, StreamPositions, StreamStarts, Transport},
};

/// Maximum number of events at one instant. This finds a machine whose deadline stays behind its
/// clock, which would run forever.
const MAX_EVENTS_AT_ONCE: u32 = 100_000;
/// How long lost control messages of a publisher may make it count as unavailable.
const UNREACHABLE_AFTER_LOSS: Duration = Duration::from_secs(5);
/// A rejected member is rejected again with each renewal.
const REJECTED_FOR: Duration = Duration::from_millis(1200);

/// The parameters of a run.
#[derive(Clone)]
pub(super) struct Shape {
    pub(super) retain_bytes: usize,
    pub(super) repair_bytes_per_second: u64,
    pub(super) shards: u64,
    /// Records of a batch, its bytes, and the time to the next.
    pub(super) records: Range<u64>,
    pub(super) bytes: Range<u64>,
    pub(super) pause: Range<Duration>,
    pub(super) start_age: Duration,
    /// Members speak different protocols.
    pub(super) versions: bool,
    /// One member has all shards.
    pub(super) single_active: bool,
    /// Members have their default buffers, not small ones.
    pub(super) roomy: bool,
    pub(super) mutant: Option<Mutant>,
    pub(super) slow_work: bool,
    pub(super) tracing: bool,
    pub(super) traced_shard: usize,
}

pub(super) struct Data {
    stream: usize,
    topic: Topic,
    first: u64,
    count: u32,
    bytes: usize,
}

#[derive(Clone)]
pub(super) enum Event {
    Publish(usize),
    Announce(usize),
    PublisherTick(usize),
    PublisherMessage(usize, Vec<u8>),
    /// The last capture thread filters by the list of this number.
    ListApplied(usize, u64, Vec<Destination>),
    ProxyData(u64, Arc<Data>),
    ProxyAnnouncement(u64, Arc<Announcement>),
    ProxyMessage(Peer, Vec<u8>),
    ProxyTick(u64),
    MemberData(usize, Arc<Data>),
    MemberAnnouncement(usize, Arc<Announcement>),
    MemberMessage(usize, Vec<u8>),
    MemberTick(usize),
    MemberSubscribed(usize, Topic, bool),
    Work(usize, Delivery),
    Chaos,
}

impl Event {
    fn name(&self) -> String {
        match self {
            Event::PublisherTick(index) => format!("a tick of publisher {index}"),
            Event::ProxyTick(run) => format!("a tick of proxy {run}"),
            Event::MemberTick(index) => format!("a tick of member {index}"),
            _ => "an event that is not a tick".to_owned(),
        }
    }
}

#[derive(Clone)]
pub(super) struct Delivery {
    stream: usize,
    topic: Topic,
    generation: u64,
    first: u64,
    to: u64,
}

pub(super) struct PublisherNode {
    pub(super) stream: Stream,
    pub(super) machine: PublisherControl,
    pub(super) retention: Retention<Vec<u8>>,
    clock: Clock,
    pub(super) alive: bool,
    pub(super) publishing: bool,
    pub(super) crashed: bool,
    tick_at: BootTime,
    /// The number of the newest list that was given to the capture threads.
    list_number: u64,
    /// The newest list that all of them filter by, and its number.
    pub(super) filter: (u64, Vec<Destination>),
    pub(super) data: Link,
    pub(super) control: (Link, Link),
}

pub(super) struct MemberNode {
    pub(super) machine: Member<u32>,
    permit: Arc<Permit>,
    label: Name,
    pub(super) clock: Clock,
    pub(super) alive: bool,
    pub(super) leaving: bool,
    pub(super) stalled_until: BootTime,
    tick_at: BootTime,
    worked_until: BootTime,
    subscribed: BTreeSet<usize>,
    pub(super) destinations: Vec<Destination>,
    /// By the member's clock.
    register_by: BootTime,
    pub(super) protocols: (u64, u64),
    pub(super) rejected_at: Option<BootTime>,
    pub(super) data: Link,
    pub(super) control: (Link, Link),
    requests: (u64, u64),
}

pub(super) struct World {
    pub(super) time: BootTime,
    events_at_once: u32,
    order: u64,
    events: BTreeMap<(BootTime, u64), Event>,
    pub(super) random: Random,
    pub(super) shape: Shape,
    pub(super) proxy: Option<Coordinator>,
    proxy_clock: Clock,
    pub(super) proxy_run: u64,
    proxy_tick_at: BootTime,
    relays_from: BootTime,
    backlog: Vec<(Peer, Vec<u8>)>,
    pub(super) publishers: Vec<PublisherNode>,
    pub(super) members: Vec<MemberNode>,
    pub(super) ledger: Ledger,
    pub(super) failure: Option<String>,
    pub(super) trace: Vec<String>,
    pub(super) acts: u64,
    pub(super) requests: u64,
    /// Acts on destinations that all publishers had to know.
    pub(super) checked_destinations: u64,
    /// Labels of killed members that no other one has yet.
    killed: Vec<Name>,
    /// How many members were killed.
    pub(super) kills: u64,
}

macro_rules! trace {
    ($world:expr, $($text:tt)*) => {
        if $world.shape.tracing {
            let line = format!("{:>10.6} {}", ($world.time - BootTime::ZERO).as_secs_f64(), format_args!($($text)*));
            $world.trace.push(line);
        }
    };
}
pub(super) use trace;

fn publisher_peer(index: usize) -> Peer {
    Peer::new(&[b"p", &(index as u64).to_be_bytes()[..]].concat()).unwrap()
}

fn member_peer(index: usize) -> Peer {
    Peer::new(&[b"m", &(index as u64).to_be_bytes()[..]].concat()).unwrap()
}

fn index_of(peer: &Peer) -> (u8, usize) {
    let bytes = peer.as_bytes();
    (bytes[0], u64::from_be_bytes(bytes[1..].try_into().unwrap()) as usize)
}

impl World {
    pub(super) fn new(seed: u64, shape: Shape) -> World {
        let mut random = Random::new(seed);
        let proxy_clock = Clock::new(&mut random);
        World {
            time: BootTime::ZERO,
            events_at_once: 0,
            order: 0,
            events: BTreeMap::new(),
            random,
            shape,
            proxy: None,
            proxy_clock,
            proxy_run: 0,
            proxy_tick_at: BootTime::NEVER,
            relays_from: BootTime::ZERO,
            backlog: Vec::new(),
            publishers: Vec::new(),
            members: Vec::new(),
            ledger: Ledger::default(),
            failure: None,
            trace: Vec::new(),
            acts: 0,
            requests: 0,
            checked_destinations: 0,
            killed: Vec::new(),
            kills: 0,
        }
    }

    pub(super) fn at(&mut self, time: BootTime, event: Event) {
        self.order += 1;
        self.events.insert((time.max(self.time), self.order), event);
    }

    /// Runs until `end`, or until an event of chaos is due: that is the caller's.
    pub(super) fn run_until(&mut self, end: BootTime) -> bool {
        while self.failure.is_none()
            && let Some(entry) = self.events.first_entry().filter(|entry| entry.key().0 <= end)
        {
            let ((time, order), event) = entry.remove_entry();
            self.events_at_once = if time == self.time { self.events_at_once + 1 } else { 0 };
            self.time = time;
            if self.events_at_once > MAX_EVENTS_AT_ONCE {
                self.fail(format!("time does not advance at {}", event.name()));
            }
            if let Event::Chaos = event {
                return true;
            }
            self.happen(order, event);
        }
        self.time = self.time.max(end);
        false
    }

    pub(super) fn fail(&mut self, what: String) {
        trace!(self, "FAILED {what}");
        self.failure.get_or_insert(what);
    }

    pub(super) fn start_proxy(&mut self) {
        self.proxy_clock = Clock::new(&mut self.random);
        let settings = CoordinatorSettings { mutants: Mutants(self.shape.mutant), ..CoordinatorSettings::default() };
        let epoch = self.random.number() | 1;
        let now = self.proxy_clock.local(self.time);
        self.proxy = Some(Coordinator::new(settings, epoch, now));
        self.proxy_run += 1;
        self.relays_from = self.time + 500 * MILLISECOND;
        trace!(self, "proxy starts");
        // Messages queued by DEALERs arrive once they are connected again.
        for (peer, frame) in std::mem::take(&mut self.backlog) {
            self.at(self.time + 150 * MILLISECOND, Event::ProxyMessage(peer, frame));
        }
        self.drain_proxy();
    }

    pub(super) fn kill_proxy(&mut self) {
        trace!(self, "proxy is killed");
        self.proxy = None;
        self.proxy_tick_at = BootTime::NEVER;
    }

    pub(super) fn start_publisher(&mut self) {
        let index = self.publishers.len();
        let clock = Clock::new(&mut self.random);
        let stream = Stream::new(&Name::new(&format!("tap{}", index % 3)).unwrap(), self.random.number());
        let repair_bytes_per_second = self.shape.repair_bytes_per_second;
        let settings = PublisherControlSettings { stream: stream.clone(), repair_bytes_per_second };
        self.publishers.push(PublisherNode {
            stream,
            machine: PublisherControl::new(settings, clock.local(self.time)),
            retention: Retention::new([self.shape.retain_bytes; 3]),
            clock,
            alive: true,
            publishing: true,
            crashed: false,
            tick_at: BootTime::NEVER,
            list_number: 0,
            filter: (0, Vec::new()),
            data: Link::default(),
            control: Default::default(),
        });
        trace!(self, "publisher {index} starts");
        self.at(self.time, Event::Publish(index));
        self.at(self.time, Event::Announce(index));
        self.drain_publisher(index);
    }

    pub(super) fn start_member(&mut self) -> usize {
        let index = self.members.len();
        let clock = Clock::new(&mut self.random);
        // Half of the killed members start again, as another run with the same label.
        let restarted = if index.is_multiple_of(2) { self.killed.pop() } else { None };
        let label = restarted.unwrap_or_else(|| Name::new(&format!("m{index}")).unwrap());
        let group = Name::new("syslog-forwarder.default").unwrap();
        let mut settings = MemberSettings::new(group, Kind::Syslog, label.clone());
        settings.start_age = self.shape.start_age;
        if !self.shape.roomy {
            settings.reorder_bytes_per_topic = 16 << 10;
            settings.reorder_bytes = 256 << 10;
            settings.request_bytes = 32 << 10;
        }
        settings.mutants = Mutants(self.shape.mutant);
        settings.single_active = self.shape.single_active;
        if self.shape.versions {
            settings.protocols = [(1, 1), (1, 2), (1, 3), (2, 3), (3, 4)][self.random.index(5)];
        }
        let protocols = settings.protocols;
        let machine = Member::new(settings, self.random.number(), clock.local(self.time));
        let permit = machine.permit();
        self.members.push(MemberNode {
            machine,
            permit,
            clock,
            label,
            alive: true,
            leaving: false,
            stalled_until: BootTime::ZERO,
            tick_at: BootTime::NEVER,
            worked_until: BootTime::ZERO,
            subscribed: BTreeSet::new(),
            destinations: Vec::new(),
            register_by: BootTime::ZERO,
            protocols,
            rejected_at: None,
            data: Link::default(),
            control: Default::default(),
            requests: (0, 0),
        });
        trace!(self, "member {index} starts");
        self.change_destinations(index);
        index
    }

    /// Assigns new destinations to a member. Half of the addresses are shared with other members.
    pub(super) fn change_destinations(&mut self, index: usize) {
        let count = self.random.within(1..4);
        let address = |random: &mut Random| {
            let host = if random.once_in(2) { random.within(0..4) } else { random.within(4..250) };
            let address = std::net::Ipv4Addr::new(192, 0, 2, host as u8);
            Destination::new(address.into(), 514, Transport::Udp)
        };
        let destinations: Vec<Destination> = (0..count).map(|_| address(&mut self.random)).collect();
        trace!(self, "member {index} has new destinations {destinations:?}");
        let node = &mut self.members[index];
        let now = node.clock.local(self.time);
        (node.destinations, node.register_by) = (destinations.clone(), now + REGISTER_WITHIN);
        node.machine.set_destinations(now, destinations);
        self.drain_member(index);
    }

    /// Whether the coordinator has not rejected the member recently.
    pub(super) fn is_admitted(&self, index: usize) -> bool {
        self.members[index].rejected_at.is_none_or(|at| self.time > at + REJECTED_FOR)
    }

    pub(super) fn leave(&mut self, index: usize) {
        trace!(self, "member {index} leaves");
        let node = &mut self.members[index];
        node.leaving = true;
        node.machine.leave(node.clock.local(self.time));
        self.drain_member(index);
    }

    pub(super) fn kill_member(&mut self, index: usize) {
        trace!(self, "member {index} is killed");
        self.killed.push(self.members[index].label.clone());
        self.kills += 1;
        self.members[index].alive = false;
    }

    pub(super) fn drain(&mut self, index: usize) {
        trace!(self, "publisher {index} drains");
        let node = &mut self.publishers[index];
        node.publishing = false;
        node.machine.drain(node.clock.local(self.time));
        self.drain_publisher(index);
    }

    fn happen(&mut self, order: u64, event: Event) {
        let member = match &event {
            Event::MemberData(index, _)
            | Event::MemberAnnouncement(index, _)
            | Event::MemberMessage(index, _)
            | Event::MemberTick(index)
            | Event::Work(index, _) => Some(*index),
            _ => None,
        };
        if let Some(node) = member.map(|index| &self.members[index]) {
            if !node.alive {
                return;
            }
            if self.time < node.stalled_until {
                self.events.insert((node.stalled_until, order), event);
                return;
            }
        }
        match event {
            Event::Publish(index) => self.publish(index),
            Event::Announce(index) => self.announce(index),
            Event::PublisherTick(index) => self.publisher_tick(index),
            Event::PublisherMessage(index, frame) => self.publisher_message(index, &frame),
            Event::ListApplied(index, number, list) => self.list_applied(index, number, list),
            Event::ProxyData(run, data) => self.relay(run, &data),
            Event::ProxyAnnouncement(run, announcement) => self.relay_announcement(run, &announcement),
            Event::ProxyMessage(peer, frame) => self.proxy_message(peer, frame),
            Event::ProxyTick(run) => self.proxy_tick(run),
            Event::MemberData(index, data) => self.member_data(index, &data),
            Event::MemberAnnouncement(index, announcement) => {
                let node = &mut self.members[index];
                node.machine.on_announcement(node.clock.local(self.time), &announcement);
                self.drain_member(index);
            }
            Event::MemberMessage(index, frame) => {
                let node = &mut self.members[index];
                node.machine.on_message(node.clock.local(self.time), &frame);
                self.drain_member(index);
            }
            Event::MemberTick(index) => {
                let node = &mut self.members[index];
                if self.time >= node.tick_at {
                    node.tick_at = BootTime::NEVER;
                    node.machine.on_tick(node.clock.local(self.time));
                    self.drain_member(index);
                }
            }
            Event::MemberSubscribed(index, topic, on) => {
                let subscribed = &mut self.members[index].subscribed;
                if on {
                    subscribed.insert(topic.index())
                } else {
                    subscribed.remove(&topic.index())
                };
            }
            Event::Work(index, delivery) => self.work(index, delivery),
            Event::Chaos => {}
        }
    }

    fn publish(&mut self, index: usize) {
        let shard = Shard::new(self.random.within(0..self.shape.shards) as u8).unwrap();
        let topic = Topic { kind: Kind::Syslog, shard };
        let count = self.random.within(self.shape.records.clone()) as u32;
        let bytes = self.random.within(self.shape.bytes.clone()) as usize;
        let node = &mut self.publishers[index];
        if !node.alive || !node.publishing {
            return;
        }
        if node.machine.may_publish() {
            let first = node.retention.next_sequence(topic);
            let batch = Retained {
                first_sequence: first,
                count,
                first_captured_at_ns: 0,
                last_captured_at_ns: 0,
                published_at: node.clock.local(self.time),
                body: vec![0; bytes],
            };
            node.retention.store(topic, batch);
            let data = Arc::new(Data { stream: index, topic, first, count, bytes });
            if let Some(at) = node.data.send(self.time, bytes, &mut self.random) {
                self.at(at, Event::ProxyData(self.proxy_run, data));
            }
            self.ledger.published(index, topic.index(), u64::from(count));
        }
        let pause = self.random.duration(self.shape.pause.clone());
        self.at(self.time + pause, Event::Publish(index));
    }

    fn announce(&mut self, index: usize) {
        let node = &mut self.publishers[index];
        if !node.alive {
            return;
        }
        let retention = &node.retention;
        let positions = Topic::all().filter(|&topic| retention.next_sequence(topic) > 0).map(|topic| TopicPosition {
            topic,
            oldest_sequence: retention.oldest_sequence(topic),
            next_sequence: retention.next_sequence(topic),
        });
        let announcement = Arc::new(Announcement {
            stream_name: node.stream.name.to_string(),
            stream_epoch: node.stream.epoch,
            ended: false,
            positions: positions.collect(),
            clock_ns: None,
        });
        if let Some(at) = node.data.send(self.time, 100, &mut self.random) {
            self.at(at, Event::ProxyAnnouncement(self.proxy_run, announcement));
        }
        self.at(self.time + SECOND, Event::Announce(index));
    }

    fn relay(&mut self, run: u64, data: &Arc<Data>) {
        if self.proxy.is_none() || run != self.proxy_run || self.time < self.relays_from {
            return;
        }
        for index in 0..self.members.len() {
            let node = &mut self.members[index];
            if node.alive
                && node.subscribed.contains(&data.topic.index())
                && let Some(at) = node.data.send(self.time, data.bytes, &mut self.random)
            {
                self.at(at, Event::MemberData(index, Arc::clone(data)));
            }
        }
    }

    fn relay_announcement(&mut self, run: u64, announcement: &Arc<Announcement>) {
        if self.proxy.is_none() || run != self.proxy_run || self.time < self.relays_from {
            return;
        }
        for index in 0..self.members.len() {
            let node = &mut self.members[index];
            if node.alive
                && let Some(at) = node.data.send(self.time, 100, &mut self.random)
            {
                self.at(at, Event::MemberAnnouncement(index, Arc::clone(announcement)));
            }
        }
    }

    fn publisher_tick(&mut self, index: usize) {
        let node = &mut self.publishers[index];
        if node.alive && self.time >= node.tick_at {
            node.tick_at = BootTime::NEVER;
            node.machine.on_tick(node.clock.local(self.time), &node.retention);
            self.drain_publisher(index);
        }
    }

    fn publisher_message(&mut self, index: usize, frame: &[u8]) {
        let node = &mut self.publishers[index];
        if node.alive {
            node.machine.on_message(node.clock.local(self.time), frame, &mut node.retention);
            self.drain_publisher(index);
        }
    }

    fn drain_publisher(&mut self, index: usize) {
        while let Some(frame) = self.publishers[index].machine.poll_output() {
            let node = &mut self.publishers[index];
            if let Some(at) = node.control.0.send(self.time, frame.len(), &mut self.random) {
                self.at(at, Event::ProxyMessage(publisher_peer(index), frame));
            }
        }
        let node = &mut self.publishers[index];
        let CurrentList { number, destinations: list, .. } = node.machine.list();
        if number > node.list_number {
            node.list_number = number;
            let applied = Event::ListApplied(index, number, list.to_vec());
            if self.shape.mutant == Some(Mutant::AcknowledgeUnapplied) {
                node.machine.applied(node.clock.local(self.time), number);
            }
            let delay = self.random.duration(Duration::ZERO..50 * MILLISECOND);
            self.at(self.time + delay, applied);
        }
        let node = &mut self.publishers[index];
        let due = node.clock.time(node.machine.next_deadline()).max(self.time);
        if due < node.tick_at {
            node.tick_at = due;
            self.at(due, Event::PublisherTick(index));
        }
    }

    fn list_applied(&mut self, index: usize, number: u64, list: Vec<Destination>) {
        let node = &mut self.publishers[index];
        // A later list may have been quicker.
        if node.alive && number > node.filter.0 {
            node.filter = (number, list);
            node.machine.applied(node.clock.local(self.time), number);
            trace!(self, "publisher {index} filters by list {number}");
            self.drain_publisher(index);
        }
    }

    fn proxy_message(&mut self, peer: Peer, frame: Vec<u8>) {
        let now = self.proxy_clock.local(self.time);
        self.explain(&peer, &frame);
        match &mut self.proxy {
            Some(proxy) => {
                proxy.on_message(now, &peer, &frame);
                self.drain_proxy();
            }
            None => self.backlog.push((peer, frame)),
        }
    }

    /// Traces the parts of messages about one shard.
    fn explain(&mut self, peer: &Peer, frame: &[u8]) {
        if !self.shape.tracing {
            return;
        }
        let (_, index) = index_of(peer);
        match Message::decode(frame) {
            Ok(Message::Renew(renew)) => {
                let held = renew.holdings.iter().find(|holding| holding.shard.index() == self.shape.traced_shard);
                let held = held.map(|holding| (holding.generation.0, holding.phase));
                trace!(self, "member {index} renews ({}) with {held:?} of {}", renew.renewal, renew.holdings.len());
                self.explain_positions("commits", &renew.commits);
            }
            Ok(Message::Grant(grant)) => {
                let given = grant.assignments.iter().find(|given| given.shard.index() == self.shape.traced_shard);
                let given = given.map(|given| (given.generation.0, given.role));
                trace!(self, "member {index} is granted ({}) {given:?} of {}", grant.renewal, grant.assignments.len());
                self.explain_starts(&grant.starts);
                let shard = self.shape.traced_shard;
                let is_about = |doubt: &&Doubt| doubt.topics.iter().any(|topic| topic.shard.index() == shard);
                for Doubt { member, label, is_unknowable, ends, .. } in grant.doubts.iter().filter(is_about) {
                    let label = label.as_ref().map_or("nobody", Name::as_str);
                    trace!(self, "    doubt about {label} ({member:x}), unknowable {is_unknowable}");
                    self.explain_positions("doubts before", ends);
                }
            }
            _ => {}
        }
    }

    fn explain_positions(&mut self, what: &str, of_streams: &[StreamPositions]) {
        for of_stream in of_streams {
            for position in &of_stream.positions {
                if position.topic.shard.index() == self.shape.traced_shard {
                    trace!(self, "    {what} {} {}", of_stream.stream, position.sequence.0);
                }
            }
        }
    }

    fn explain_starts(&mut self, of_streams: &[StreamStarts]) {
        for of_stream in of_streams {
            for start in &of_stream.starts {
                if start.topic.shard.index() == self.shape.traced_shard {
                    trace!(self, "    starts {} {} of {}", of_stream.stream, start.sequence.0, start.next.0);
                }
            }
        }
    }

    fn proxy_tick(&mut self, run: u64) {
        let now = self.proxy_clock.local(self.time);
        if let Some(proxy) = self.proxy.as_mut().filter(|_| run == self.proxy_run && self.time >= self.proxy_tick_at) {
            self.proxy_tick_at = BootTime::NEVER;
            proxy.on_tick(now);
            self.drain_proxy();
        }
    }

    fn drain_proxy(&mut self) {
        while let Some((peer, frame)) = self.proxy.as_mut().and_then(Coordinator::poll_output) {
            self.explain(&peer, &frame);
            let (party, index) = index_of(&peer);
            let bytes = frame.len();
            let (link, event) = match party {
                b'p' => (&mut self.publishers[index].control.1, Event::PublisherMessage(index, frame)),
                _ => (&mut self.members[index].control.1, Event::MemberMessage(index, frame)),
            };
            if let Some(at) = link.send(self.time, bytes, &mut self.random) {
                self.at(at, event);
            }
        }
        let Some(proxy) = &self.proxy else { return };
        let due = self.proxy_clock.time(proxy.next_deadline()).max(self.time);
        if due < self.proxy_tick_at {
            self.proxy_tick_at = due;
            self.at(due, Event::ProxyTick(self.proxy_run));
        }
    }

    fn member_data(&mut self, index: usize, data: &Data) {
        let stream = self.publishers[data.stream].stream.clone();
        let node = &mut self.members[index];
        let now = node.clock.local(self.time);
        let arrival = Arrival { first: data.first, count: data.count, bytes: data.bytes, batch: data.count };
        node.machine.on_batch(now, &stream, data.topic, arrival);
        self.drain_member(index);
    }

    fn drain_member(&mut self, index: usize) {
        while let Some(output) = self.members[index].machine.poll_output() {
            self.do_for_member(index, output);
        }
        let node = &mut self.members[index];
        if node.machine.reorder_bytes() > if self.shape.roomy { 64 << 20 } else { 256 << 10 } {
            let held = node.machine.reorder_bytes();
            self.fail(format!("member {index} buffers {held} bytes"));
        }
        let node = &mut self.members[index];
        if node.leaving && node.machine.has_left() && node.alive {
            node.alive = false;
            trace!(self, "member {index} has left");
        }
        let node = &mut self.members[index];
        let due = node.clock.time(node.machine.next_deadline()).max(self.time);
        if due < node.tick_at {
            node.tick_at = due;
            self.at(due, Event::MemberTick(index));
        }
    }

    fn do_for_member(&mut self, index: usize, output: MemberOutput<u32>) {
        match output {
            MemberOutput::Send(frame) => {
                if let Ok(Message::Repair(repair)) = Message::decode(&frame) {
                    trace!(
                        self,
                        "member {index} asks {} for {} ranges, {} starts",
                        repair.stream,
                        repair.ranges.len(),
                        repair.locate.len()
                    );
                    self.count_request(index);
                }
                let node = &mut self.members[index];
                if let Some(at) = node.control.0.send(self.time, frame.len(), &mut self.random) {
                    self.at(at, Event::ProxyMessage(member_peer(index), frame));
                }
            }
            MemberOutput::Subscribe(topic) => {
                let at = self.time + self.random.millis(1..30);
                self.at(at, Event::MemberSubscribed(index, topic, true));
            }
            MemberOutput::Unsubscribe(topic) => {
                let at = self.time + 30 * MILLISECOND;
                self.at(at, Event::MemberSubscribed(index, topic, false));
            }
            MemberOutput::Deliver { stream, topic, generation, first_sequence, skip, batch } => {
                let stream = self.publishers.iter().position(|node| node.stream == stream).unwrap();
                let to = first_sequence + u64::from(batch - skip);
                let slow = self.shape.slow_work && self.random.once_in(60);
                let delay = if slow { self.random.millis(200..1500) } else { self.random.millis(0..20) };
                let node = &mut self.members[index];
                node.worked_until = node.worked_until.max(self.time + delay);
                let at = node.worked_until;
                self.at(at, Event::Work(index, Delivery { stream, topic, generation, first: first_sequence, to }));
            }
            MemberOutput::Repaired { topic, header, body } => {
                let header = Header::decode(&header).unwrap();
                let stream = Stream::new(&Name::new(header.stream_name).unwrap(), header.stream_epoch);
                let node = &mut self.members[index];
                let now = node.clock.local(self.time);
                let first = header.first_sequence;
                let count = header.count;
                let arrival = Arrival { first, count, bytes: body.len(), batch: count };
                let taken = node.machine.on_batch(now, &stream, topic, arrival);
                if taken == Received::NotOwned {
                    trace!(self, "member {index} got a repair for a shard that it does not own");
                }
            }
            MemberOutput::GaveUp { stream, topic, from, to, reason } => {
                trace!(self, "member {index} gives up {stream} {topic} {from}..{to}: {reason:?}");
                let stream = self.publishers.iter().position(|node| node.stream == stream).unwrap();
                self.ledger.gave_up(stream, topic.index(), from, to, reason);
            }
            MemberOutput::Skipped { stream, topic, records, presenter } => {
                trace!(self, "member {index} skips {records} of {stream} {topic}, presented by {presenter:?}");
            }
            MemberOutput::Rejected(RejectionReason::Protocol) if self.shape.versions => {
                trace!(self, "member {index} is rejected");
                self.members[index].rejected_at = Some(self.time);
            }
            MemberOutput::Rejected(reason) => self.fail(format!("member {index} is rejected: {reason:?}")),
        }
    }

    fn count_request(&mut self, index: usize) {
        self.requests += 1;
        let second = (self.time - BootTime::ZERO).as_secs();
        let requests = &mut self.members[index].requests;
        *requests = if requests.0 == second { (second, requests.1 + 1) } else { (second, 1) };
        if requests.1 > 150 {
            self.fail(format!("member {index} made 150 requests per second"));
        }
    }

    /// A sending thread: checks its permission and sends. The send call takes no time.
    fn work(&mut self, index: usize, delivery: Delivery) {
        let node = &mut self.members[index];
        let now = node.clock.local(self.time);
        let shard = delivery.topic.shard;
        match node.permit.may_act(shard, delivery.generation, now) {
            Permission::Granted => {}
            Permission::Lapsed => return self.at(self.time + 20 * MILLISECOND, Event::Work(index, delivery)),
            Permission::Revoked => return,
        }
        if !node.machine.may_use_destinations(now) {
            return self.at(self.time + 20 * MILLISECOND, Event::Work(index, delivery));
        }
        if now < node.register_by {
            self.check_destinations(index);
        }
        self.acts += 1;
        if shard.index() == self.shape.traced_shard {
            let stream = &self.publishers[delivery.stream].stream;
            trace!(self, "member {index} acts on {stream} {}..{}", delivery.first, delivery.to);
        }
        self.ledger.acted(delivery.stream, delivery.topic.index(), delivery.first, delivery.to);
        let time = self.time;
        let topic = delivery.topic;
        let also = self.members.iter().enumerate().find(|(other, node)| {
            let owned = node.machine.owned().find(|(owned, _)| *owned == shard);
            let may =
                |(_, generation)| node.permit.may_act(shard, generation, node.clock.local(time)) == Permission::Granted;
            *other != index && node.alive && owned.is_some_and(may)
        });
        if let Some((other, _)) = also {
            self.fail(format!("two members act on {topic}: {index} did, and {other} may"));
        }
        if self.shape.single_active {
            self.check_alone(index);
        }
        let stream = self.publishers[delivery.stream].stream.clone();
        let node = &mut self.members[index];
        node.machine.handled(now, &stream, shard, delivery.generation, delivery.first);
        self.drain_member(index);
    }

    /// With a single active member no other member may act on any shard.
    fn check_alone(&mut self, index: usize) {
        let time = self.time;
        let also = self.members.iter().enumerate().find(|(other, node)| {
            let now = node.clock.local(time);
            let may = |(shard, generation)| node.permit.may_act(shard, generation, now) == Permission::Granted;
            *other != index && node.alive && node.machine.owned().any(may)
        });
        if let Some((other, _)) = also {
            self.fail(format!("two members are active: {index} did act, and {other} may"));
        }
    }

    /// A publisher that does not know a destination of a member would capture its output again.
    fn check_destinations(&mut self, index: usize) {
        let reachable = |node: &&PublisherNode| {
            let lost_until = node.control.0.loses_until.max(node.control.1.loses_until);
            node.alive
                && node.machine.may_publish()
                && (lost_until == BootTime::ZERO || self.time >= lost_until + UNREACHABLE_AFTER_LOSS)
        };
        let destinations = &self.members[index].destinations;
        let knows = |node: &PublisherNode| destinations.iter().all(|destination| node.filter.1.contains(destination));
        let unaware = self.publishers.iter().filter(reachable).find(|node| !knows(node));
        if let Some(stream) = unaware.map(|node| node.stream.clone()) {
            self.fail(format!("member {index} sends to a destination that {stream} does not know"));
        }
        self.checked_destinations += 1;
    }
}
