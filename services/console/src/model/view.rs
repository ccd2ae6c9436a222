//! What is shown: the parts of all services, joined.

use std::{collections::BTreeMap, time::Duration};

use super::{
    Counts, Current, Identity, LOSS_ENDS_AFTER, LastError, Model, Moment, Part, Queue, SILENT_AFTER, SeriesHistory,
    Service, Spool, Text,
    part::{Control, ControlGroup, Detector, Elements, Process},
};

/// Everything that is shown, except records and stored messages.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// When it was made.
    pub now: Moment,
    /// The connection.
    pub bus: BusState,
    /// The bus is servers of NATS, and there is no proxy.
    pub is_on_jetstream: bool,
    /// The captures, those in trouble first.
    pub captures: Vec<CaptureView>,
    /// The proxy's streams: records published per second, by kind.
    pub published: BTreeMap<Text, Flow>,
    /// The groups of subscribers, those in trouble first.
    pub groups: Vec<GroupView>,
    /// The destinations of all forwarders, the troubled ones first.
    pub destinations: Vec<DestinationView>,
    /// All services.
    pub services: Vec<ServiceView>,
    /// What is or was lost, the latest first.
    pub losses: Vec<LossView>,
    /// The anomaly detectors.
    pub detectors: Vec<DetectorView>,
    /// Destinations that clients in no group registered.
    pub clients: Vec<super::part::Client>,
    /// Messages that are not what their names promise.
    pub invalid: u64,
    /// Messages for which there was no room.
    pub no_room: u64,
}

/// The state of the connection to the bus.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum BusState {
    /// Not connected yet.
    #[default]
    Connecting,
    /// Connected, and nothing has arrived yet.
    Waiting,
    /// Connected for a while, and no status has ever arrived.
    NoStatus,
    /// Status arrives.
    Live,
    /// No status arrives any more.
    Lost {
        /// Since this time.
        since: Moment,
        /// The connection exists.
        is_connected: bool,
    },
}

/// Whether a service is there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Presence {
    /// It sends status.
    Live,
    /// It was asked to stop.
    Stopped {
        /// Since this time.
        since: Moment,
    },
    /// It sends nothing.
    Silent {
        /// Since this time.
        since: Moment,
    },
}

/// A count and its rate.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Flow {
    /// Since the service started.
    pub total: u64,
    /// Per second, over the last ten; `None` if not known.
    pub rate: Option<f64>,
}

/// A capture.
#[derive(Clone, Debug)]
pub struct CaptureView {
    /// Its name.
    pub name: Text,
    /// Whether it is there.
    pub presence: Presence,
    /// Its interfaces.
    pub interfaces: Vec<InterfaceView>,
    /// Records that it captured and lost before the bus.
    pub lost: Flow,
}

/// An interface of a capture.
#[derive(Clone, Debug, Default)]
pub struct InterfaceView {
    /// Its name.
    pub name: Text,
    /// `up` or `down`.
    pub state: Text,
    /// For how long.
    pub in_state: Duration,
    /// The last error.
    pub last_error: Option<LastError>,
    /// Packets.
    pub packets: Flow,
    /// Datagrams published, by kind.
    pub published: BTreeMap<Text, Flow>,
    /// Datagrams that are not for the bus, by reason.
    pub not_published: Counts,
    /// Packets dropped, by reason.
    pub dropped: Counts,
    /// Lost datagrams.
    pub lost: Flow,
}

/// A group of subscribers.
#[derive(Clone, Debug, Default)]
pub struct GroupView {
    /// Its full name, as `syslog-forwarder.default`.
    pub name: Text,
    /// Its kind.
    pub kind: Text,
    /// Published and not yet committed, records; `None` without a proxy that says so.
    pub lag: Option<u64>,
    /// Shards without an owner.
    pub unowned: u64,
    /// Its members.
    pub members: Vec<MemberView>,
    /// Records handled since the console first saw its members.
    pub handled: Flow,
    /// Records lost, by reason.
    pub given_up: Counts,
    /// Lost records.
    pub lost: Flow,
    /// Records written, for a storer.
    pub written: Option<Flow>,
    /// Why writing fails, for a storer.
    pub store_error: Option<Text>,
}

/// A member of a group.
#[derive(Clone, Debug)]
pub struct MemberView {
    /// Its name.
    pub name: Text,
    /// Its run.
    pub incarnation: Text,
    /// Whether it is there.
    pub presence: Presence,
    /// How many shards it owns.
    pub shards: u64,
    /// Published and not yet handled by it, records.
    pub lag: u64,
    /// Records handled since the console first saw it.
    pub handled: Flow,
    /// Lost records.
    pub lost: Flow,
}

/// A destination, summed over the members of a group.
#[derive(Clone, Debug, Default)]
pub struct DestinationView {
    /// The group.
    pub group: Text,
    /// Its URI.
    pub destination: Text,
    /// The addresses in use.
    pub addresses: Vec<Text>,
    /// `down` if it is down for one of the members.
    pub state: Text,
    /// For how long.
    pub in_state: Duration,
    /// Of how many members.
    pub members: usize,
    /// How many of these have it in this state.
    pub members_in_state: usize,
    /// The latest error.
    pub last_error: Option<LastError>,
    /// Datagrams sent.
    pub sent: Flow,
    /// Datagrams dropped, by reason.
    pub dropped: Counts,
    /// Lost datagrams.
    pub lost: Flow,
    /// Datagrams not for it, by reason.
    pub filtered_out: Counts,
    /// What waits in memory.
    pub queue: Queue,
    /// What waits on disk.
    pub spool: Option<Spool>,
    /// The figures are old, because no member is there.
    pub is_old: bool,
}

/// A loss at one place, for one reason.
#[derive(Clone, Debug)]
pub struct LossView {
    /// Where, as the name of a service.
    pub service: String,
    /// Where exactly: an interface or a destination.
    pub place: String,
    /// Why.
    pub reason: String,
    /// How many datagrams.
    pub lost: Flow,
    /// Since when it has grown, if the console saw it.
    pub began_at: Option<Moment>,
    /// When it grew last.
    pub last_at: Option<Moment>,
    /// It still grows.
    pub is_now: bool,
}

/// A service.
#[derive(Clone, Debug)]
pub struct ServiceView {
    /// The service.
    pub service: Text,
    /// Its group.
    pub group: Option<Text>,
    /// Its member's name.
    pub member: Text,
    /// Whether it is there.
    pub presence: Presence,
    /// Its process; `None` until that part has arrived.
    pub process: Option<Process>,
    /// Processor time, as a share of one core.
    pub cpu: Option<f64>,
}

/// An anomaly detector.
#[derive(Clone, Debug)]
pub struct DetectorView {
    /// Its group.
    pub group: Text,
    /// Its name.
    pub member: Text,
    /// Whether it is there.
    pub presence: Presence,
    /// `standby`, `restoring` or `counting`.
    pub phase: Text,
    /// The length of an interval, seconds.
    pub interval_seconds: f64,
    /// The events that fire, as name and value.
    pub firing: Vec<Vec<(Text, String)>>,
    /// The series that it counts.
    pub series: Vec<(String, SeriesHistory)>,
}

impl Flow {
    fn of(current: &Current, name: &str, is_live: bool) -> Flow {
        Flow { total: current.history.last(name), rate: if is_live { current.history.rate(name) } else { None } }
    }

    /// Whether the count has grown in the last seconds.
    pub fn is_growing(self) -> bool {
        self.rate.is_some_and(|rate| rate > 0.0)
    }

    fn add(&mut self, other: Flow) {
        self.total = self.total.saturating_add(other.total);
        self.rate = match (self.rate, other.rate) {
            (Some(a), Some(b)) => Some(a + b),
            (a, b) => a.or(b),
        };
    }
}

impl MemberView {
    fn new(name: &Text, incarnation: &Text, presence: Presence, shards: u64) -> MemberView {
        let (name, incarnation) = (name.clone(), incarnation.clone());
        MemberView { name, incarnation, presence, shards, lag: 0, handled: Flow::default(), lost: Flow::default() }
    }
}

impl Presence {
    /// Whether it sends status.
    pub fn is_live(self) -> bool {
        self == Presence::Live
    }
}

impl BusState {
    /// Whether the figures are those of now.
    pub fn is_live(self) -> bool {
        self == BusState::Live
    }
}

impl View {
    /// What is being lost now, datagrams per second.
    pub fn loss_rate(&self) -> f64 {
        self.losses.iter().filter(|loss| loss.is_now).filter_map(|loss| loss.lost.rate).sum()
    }

    /// The sum of all losses.
    pub fn lost(&self) -> u64 {
        self.losses.iter().fold(0, |sum, loss| sum.saturating_add(loss.lost.total))
    }
}

impl ServiceView {
    /// It may lose datagrams, and does not say so.
    pub fn hides_losses(&self) -> bool {
        let service = self.service.as_str();
        let can_lose = matches!(service, "capture" | "proxy" | "storer") || service.ends_with("-forwarder");
        can_lose && matches!(self.presence, Presence::Silent { .. })
    }
}

/// Builds the view.
struct Builder<'a> {
    model: &'a Model,
    now: Moment,
    /// What counts as the present when silence is measured: the last message, if the bus is lost.
    heard_at: Moment,
    view: View,
    groups: BTreeMap<Text, GroupView>,
    destinations: BTreeMap<(Text, Text), DestinationView>,
}

pub(super) fn view(model: &Model, now: Moment) -> View {
    let bus = bus_state(model, now);
    let heard_at = match bus {
        BusState::Live => now,
        _ => model.bus.heard_at.unwrap_or(now),
    };
    let Model { is_on_jetstream, invalid, no_room, .. } = *model;
    let view = View { now, bus, is_on_jetstream, invalid, no_room, ..View::default() };
    let mut builder = Builder { model, now, heard_at, view, groups: BTreeMap::new(), destinations: BTreeMap::new() };
    // After a restart of the proxy, the former run may still be there for a few seconds.
    let has_control = |service: &&Service| {
        let is_control = |current: &Current| matches!(current.part, Part::Control(_));
        builder.presence(service).is_live() && service.parts.values().any(is_control)
    };
    let newest = model.services.values().filter(has_control).max_by_key(|service| service.first_heard_at.elapsed);
    if let Some(service) = newest {
        builder.add_control(service);
    }
    for (identity, service) in &model.services {
        builder.add(identity, service);
    }
    builder.finish()
}

fn bus_state(model: &Model, now: Moment) -> BusState {
    let super::Bus { is_connected, changed_at, heard_at, .. } = model.bus;
    match heard_at {
        Some(at) if now.since(at) <= SILENT_AFTER => BusState::Live,
        Some(since) => BusState::Lost { since, is_connected },
        None if !is_connected => BusState::Connecting,
        None if now.since(changed_at) > SILENT_AFTER => BusState::NoStatus,
        None => BusState::Waiting,
    }
}

impl Builder<'_> {
    fn presence(&self, service: &Service) -> Presence {
        match service.stopping_at {
            Some(since) => Presence::Stopped { since },
            None if service.silence(self.model.bus.back_at, self.heard_at) > SILENT_AFTER => {
                Presence::Silent { since: service.heard_at }
            }
            None => Presence::Live,
        }
    }

    /// Groups and streams, as a live proxy knows them.
    fn add_control(&mut self, service: &Service) {
        let whole = service.parts.get(&Text("control".to_owned()));
        for (name, current) in &service.parts {
            let Part::Control(Control { groups, streams, clients }) = &current.part else { continue };
            if !service.is_present(name, current) {
                continue;
            }
            for group in &groups.0 {
                self.add_group(group);
            }
            for kind in streams.0.iter().flat_map(|stream| stream.published.0.keys()) {
                if let (Some(whole), false) = (whole, self.view.published.contains_key(kind)) {
                    self.view.published.insert(kind.clone(), Flow::of(whole, &format!("published.{kind}"), true));
                }
            }
            self.view.clients.extend(clients.0.iter().cloned());
        }
    }

    fn add_group(&mut self, group: &ControlGroup) {
        let ControlGroup { name, kind, members: Elements(members), unowned_shards, lag_records } = group;
        let view = self.groups.entry(name.clone()).or_default();
        view.name = name.clone();
        view.kind = kind.clone();
        view.lag = Some(*lag_records);
        view.unowned = *unowned_shards;
        for member in members {
            if view.members.iter().any(|known| known.incarnation == member.incarnation) {
                continue;
            }
            view.members.push(MemberView::new(&member.label, &member.incarnation, Presence::Live, member.shards));
        }
    }

    fn add(&mut self, identity: &Identity, service: &Service) {
        let presence = self.presence(service);
        let is_live = presence.is_live() && self.view.bus.is_live();
        let full_name = match &identity.group {
            Some(group) => Text(format!("{}.{group}", identity.service)),
            None => identity.service.clone(),
        };
        let mut interfaces = Vec::new();
        let mut process = None;
        let mut cpu = None;
        let mut detector = None;
        let mut unpublished = Flow::default();
        for (name, current) in &service.parts {
            if !service.is_present(name, current) {
                continue;
            }
            let lost = self.add_losses(identity, &full_name, current, is_live);
            match &current.part {
                Part::Process(part) => {
                    process = Some(part.clone());
                    cpu = Flow::of(current, "cpu", is_live).rate.map(|milliseconds| milliseconds / 1e3);
                }
                Part::Interface(part) => {
                    let published = part.published.0.keys();
                    let published = published
                        .map(|kind| (kind.clone(), Flow::of(current, &format!("published.{kind}"), is_live)))
                        .collect();
                    interfaces.push(InterfaceView {
                        name: part.interface.clone(),
                        state: part.state.clone(),
                        in_state: seconds(part.seconds_in_state),
                        last_error: part.last_error.clone(),
                        packets: Flow::of(current, "packets", is_live),
                        published,
                        not_published: part.not_published.clone(),
                        dropped: part.dropped_packets.clone(),
                        lost,
                    });
                }
                Part::Group(part) => {
                    let owned = part.shards.0.iter().filter(|shard| shard.state.as_str() == "owned").count() as u64;
                    // The part that comes last has the sum of all.
                    let is_whole = name.as_str() == "group";
                    let handled = if is_whole { Flow::of(current, "handled", is_live) } else { Flow::default() };
                    let lag = part.streams.0.iter().fold(0u64, |sum, stream| sum.saturating_add(stream.lag_records));
                    let group = self.groups.entry(full_name.clone()).or_default();
                    group.name = full_name.clone();
                    group.handled.add(handled);
                    group.given_up.add(&part.given_up);
                    group.lost.add(lost);
                    let known = group.members.iter().position(|member| member.incarnation == identity.incarnation);
                    let index = known.unwrap_or_else(|| {
                        let shards = if presence.is_live() { owned } else { 0 };
                        let member = MemberView::new(&identity.member, &identity.incarnation, presence, shards);
                        group.members.push(member);
                        group.members.len() - 1
                    });
                    let member = &mut group.members[index];
                    member.presence = presence;
                    member.lag = member.lag.saturating_add(lag);
                    member.handled.add(handled);
                    member.lost.add(lost);
                }
                Part::Destination(_) => self.add_destination(&full_name, current, lost, presence),
                Part::Store(part) => {
                    let group = self.groups.entry(full_name.clone()).or_default();
                    group.name = full_name.clone();
                    group.written.get_or_insert_default().add(Flow::of(current, "written", is_live));
                    group.store_error = part.error.clone().or(group.store_error.take());
                }
                // Without a phase it is only a list of series, which are kept elsewhere.
                Part::Detector(part) if !part.phase.as_str().is_empty() => detector = Some(part),
                Part::Stream(_) => unpublished = lost,
                Part::Detector(_) | Part::Control(_) => {}
            }
        }
        if let Some(part) = detector {
            self.add_detector(identity, part, presence);
        }
        if identity.service.as_str() == "capture" {
            let capture = CaptureView { name: identity.member.clone(), presence, interfaces, lost: unpublished };
            self.view.captures.push(capture);
        }
        self.view.services.push(ServiceView {
            service: identity.service.clone(),
            group: identity.group.clone(),
            member: identity.member.clone(),
            presence,
            process,
            cpu,
        });
    }

    /// Adds the losses of a part, and returns their sum.
    fn add_losses(&mut self, identity: &Identity, full_name: &Text, current: &Current, is_live: bool) -> Flow {
        let place = match &current.part {
            Part::Interface(part) => part.interface.0.clone(),
            Part::Destination(part) => part.destination.0.clone(),
            _ => String::new(),
        };
        let mut sum = Flow { total: 0, rate: is_live.then_some(0.0) };
        for (reason, loss) in &current.losses {
            let lost = Flow { total: loss.count, ..Flow::of(current, &format!("lost.{reason}"), is_live) };
            sum.add(lost);
            let last_at = loss.seen.map(|span| span.last_at);
            self.view.losses.push(LossView {
                service: format!("{full_name} ({})", identity.member),
                place: place.clone(),
                reason: reason.clone(),
                lost,
                began_at: loss.seen.map(|span| span.began_at),
                last_at,
                is_now: is_live && last_at.is_some_and(|at| self.now.since(at) <= LOSS_ENDS_AFTER / 6),
            });
        }
        sum
    }

    fn add_destination(&mut self, full_name: &Text, current: &Current, lost: Flow, presence: Presence) {
        let Part::Destination(part) = &current.part else { return };
        let is_live = presence.is_live();
        let key = (full_name.clone(), part.destination.clone());
        let view = self.destinations.entry(key).or_insert_with(|| DestinationView { is_old: true, ..<_>::default() });
        view.group = full_name.clone();
        view.destination = part.destination.clone();
        view.sent.add(Flow::of(current, "sent", is_live && self.view.bus.is_live()));
        view.lost.add(lost);
        view.dropped.add(&part.dropped);
        view.filtered_out.add(&part.filtered_out);
        if !is_live {
            return;
        }
        view.is_old = false;
        view.members += 1;
        view.addresses.extend(part.address.clone());
        view.addresses.sort();
        view.addresses.dedup();
        let badness = |state: &str| ["up", "unknown", "down"].iter().position(|known| *known == state).unwrap_or(1);
        if view.members == 1 || badness(part.state.as_str()) > badness(view.state.as_str()) {
            view.state = part.state.clone();
            view.in_state = seconds(part.seconds_in_state);
            view.members_in_state = 1;
        } else if part.state == view.state {
            view.members_in_state += 1;
            view.in_state = view.in_state.max(seconds(part.seconds_in_state));
        }
        let age = self.now.since(current.received_at).as_secs_f64();
        let error = part.last_error.clone().map(|error| LastError { seconds_ago: error.seconds_ago + age, ..error });
        if error
            .as_ref()
            .is_some_and(|new| view.last_error.as_ref().is_none_or(|old| new.seconds_ago < old.seconds_ago))
        {
            view.last_error = error;
        }
        view.queue.records = view.queue.records.saturating_add(part.queue.records);
        view.queue.bytes = view.queue.bytes.saturating_add(part.queue.bytes);
        if let Some(spool) = part.spool {
            let sum = view.spool.get_or_insert_default();
            sum.datagrams = sum.datagrams.saturating_add(spool.datagrams);
            sum.bytes = sum.bytes.saturating_add(spool.bytes);
            sum.errors = sum.errors.saturating_add(spool.errors);
        }
    }

    fn add_detector(&mut self, identity: &Identity, part: &Detector, presence: Presence) {
        let group = identity.group.clone().unwrap_or_default();
        let firing = part.firing.0.iter().map(|event| {
            let shown = |value: &serde_json::Value| match value.as_str() {
                Some(text) => text.to_owned(),
                None => value.to_string(),
            };
            event.iter().map(|(name, value)| (name.clone(), Text::from(&*shown(value)).0)).collect()
        });
        let mut series = Vec::new();
        if part.phase.as_str() == "counting" {
            series.extend(self.model.series.of(&group).map(|(name, history)| (name.to_owned(), history.clone())));
        }
        self.view.detectors.push(DetectorView {
            presence,
            phase: part.phase.clone(),
            interval_seconds: part.interval_seconds,
            firing: firing.collect(),
            series,
            member: identity.member.clone(),
            group,
        });
    }

    fn finish(self) -> View {
        let Builder { mut view, groups, destinations, .. } = self;
        view.captures.sort_by_key(|capture| !capture.is_troubled());
        view.groups = groups.into_values().collect();
        view.groups.sort_by_key(|group| !group.is_troubled());
        view.destinations = destinations.into_values().collect();
        view.destinations.sort_by_key(|destination| (!destination.is_troubled(), destination.is_old));
        view.losses.sort_by_key(|loss| {
            (!loss.is_now, std::cmp::Reverse(loss.last_at.map(|at| at.elapsed)), std::cmp::Reverse(loss.lost.total))
        });
        view
    }
}

impl CaptureView {
    /// It or one of its interfaces is unavailable, or it loses datagrams now.
    pub fn is_troubled(&self) -> bool {
        let is_bad = |interface: &InterfaceView| interface.state.as_str() != "up" || interface.lost.is_growing();
        !self.presence.is_live() || self.interfaces.iter().any(is_bad)
    }
}

impl GroupView {
    /// A member or an owner is missing, it cannot write, or it loses records now.
    pub fn is_troubled(&self) -> bool {
        let is_missing = self.members.iter().any(|member| !member.presence.is_live());
        is_missing || self.unowned > 0 || self.store_error.is_some() || self.lost.is_growing()
    }
}

impl DestinationView {
    /// It is down, or loses datagrams now.
    pub fn is_troubled(&self) -> bool {
        self.state.as_str() == "down" || self.lost.is_growing()
    }
}

/// A duration from a number that may be anything.
fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}
