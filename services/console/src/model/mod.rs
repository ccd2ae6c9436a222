//! What the console knows: status of all services and an explicit time go in, a [`View`] comes
//! out. No I/O, no clock.
//!
//! The number of services and parts is bounded, and so are their bytes. What exceeds a bound, or is
//! not what its name promises, is counted and skipped.

mod part;
mod rates;
mod series;
mod tally;
mod view;

use std::{
    collections::{BTreeMap, btree_map::Entry},
    time::Duration,
};

pub use self::{
    part::{Counts, Identity, LastError, Part, Queue, Received, Rejected, Spool, Text},
    series::{Point, SeriesHistory},
    view::{
        BusState, CaptureView, DestinationView, DetectorView, Flow, GroupView, InterfaceView, LossView, MemberView,
        Presence, ServiceView, View,
    },
};
use self::{rates::History, series::AllSeries, tally::Tally};

/// A service sends status every second; one that is silent for longer than this is unavailable.
pub const SILENT_AFTER: Duration = Duration::from_secs(4);
/// When a stopped service is forgotten.
const FORGET_STOPPED: Duration = Duration::from_secs(15 * 60);
/// When a silent service is forgotten. Until then it is not known whether it loses anything.
const FORGET_SILENT: Duration = Duration::from_secs(3 * 86_400);
/// When a part that its service no longer sends is forgotten.
const FORGET_PART: Duration = Duration::from_secs(10);
/// A loss that is followed by none for this long is over.
pub const LOSS_ENDS_AFTER: Duration = Duration::from_secs(60);

/// The most services, counting each run.
const MAX_SERVICES: usize = 1024;
/// The most parts of all services.
const MAX_PARTS: usize = 8192;
/// The most bytes of all parts as JSON.
const MAX_BYTES: usize = 16 << 20;

/// A time, on two clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Moment {
    /// Since some fixed time, on a clock that is never set.
    pub elapsed: Duration,
    /// Since 1970.
    pub wall: Duration,
}

/// What the console knows of all services.
#[derive(Debug, Default)]
pub struct Model {
    services: BTreeMap<Identity, Service>,
    series: AllSeries,
    bus: Bus,
    /// The bus has no proxy.
    is_on_jetstream: bool,
    /// Nothing is subscribed to, because nobody looks.
    is_paused: bool,
    parts: usize,
    bytes: usize,
    /// Messages that are not what their names promise.
    pub invalid: u64,
    /// Messages for which there was no room.
    pub no_room: u64,
}

#[derive(Debug, Default)]
struct Bus {
    is_connected: bool,
    /// Since the connection was made or broke.
    changed_at: Moment,
    heard_at: Option<Moment>,
    /// When the first message after an outage arrived: services were silent until then.
    back_at: Moment,
}

#[derive(Debug)]
struct Service {
    parts: BTreeMap<Text, Current>,
    first_heard_at: Moment,
    heard_at: Moment,
    stopping_at: Option<Moment>,
    /// What all parts of a divided list have counted.
    tally: Tally,
}

/// A part as last received.
#[derive(Debug)]
struct Current {
    part: Part,
    received_at: Moment,
    sent_at_ns: u64,
    bytes: usize,
    history: History,
    /// By reason.
    losses: BTreeMap<String, Loss>,
}

/// A count of lost datagrams.
#[derive(Clone, Copy, Debug, Default)]
struct Loss {
    count: u64,
    /// When the present or last loss began and was last seen, if the console has seen it grow.
    seen: Option<LossSpan>,
}

#[derive(Clone, Copy, Debug)]
struct LossSpan {
    began_at: Moment,
    last_at: Moment,
}

impl Moment {
    /// How long ago `earlier` was.
    pub fn since(self, earlier: Moment) -> Duration {
        self.elapsed.saturating_sub(earlier.elapsed)
    }
}

impl Model {
    /// Of services on servers of NATS, or of those around a proxy.
    pub fn new(is_on_jetstream: bool) -> Model {
        Model { is_on_jetstream, ..Model::default() }
    }

    /// Whether the console is connected to the bus.
    pub fn set_connected(&mut self, is_connected: bool, now: Moment) {
        if self.bus.is_connected != is_connected {
            self.bus.is_connected = is_connected;
            self.bus.changed_at = now;
        }
    }

    /// Nothing will be heard until [`Model::resume`], and nobody looks.
    pub fn pause(&mut self) {
        self.is_paused = true;
    }

    /// From now on there is status again, after a pause. Nothing was silent meanwhile.
    pub fn resume(&mut self, now: Moment) {
        if std::mem::take(&mut self.is_paused) {
            let is_connected = self.bus.is_connected;
            self.bus = Bus { is_connected, changed_at: now, heard_at: None, back_at: now };
        }
    }

    /// Takes a message of the bus.
    pub fn apply(&mut self, topic: &str, json: &str, now: Moment) {
        if self.bus.heard_at.is_none_or(|at| now.since(at) > SILENT_AFTER) {
            self.bus.back_at = now;
        }
        self.bus.heard_at = Some(now);
        match Received::parse(topic, json) {
            Ok(received) => self.keep(received, json.len(), now),
            Err(Rejected::Invalid) => self.invalid += 1,
            Err(Rejected::Unused) => {}
        }
    }

    fn keep(&mut self, received: Received, bytes: usize, now: Moment) {
        let Received { identity, name, sent_at_ns, part } = received;
        if self.services.len() >= MAX_SERVICES && !self.services.contains_key(&identity) {
            self.forget_one(now);
        }
        let services = self.services.len();
        let service = match self.services.entry(identity.clone()) {
            Entry::Occupied(service) => service.into_mut(),
            Entry::Vacant(_) if services >= MAX_SERVICES => {
                self.no_room += 1;
                return;
            }
            Entry::Vacant(entry) => entry.insert(Service::new(now)),
        };
        service.heard_at = now;
        // A run that is stopping does not run again, though a part that was collected before may
        // follow.
        if let Part::Process(process) = &part
            && process.state.as_str() == "stopping"
        {
            service.stopping_at.get_or_insert(now);
        }
        let before = service.parts.get(&name).map_or(0, |current| current.bytes);
        let is_new = before == 0;
        if self.bytes - before + bytes > MAX_BYTES || (is_new && self.parts >= MAX_PARTS) {
            self.no_room += 1;
            return;
        }
        self.bytes = self.bytes - before + bytes;
        self.parts += usize::from(is_new);
        if let Part::Detector(detector) = &part {
            self.series.add(&identity, detector, now);
        }
        let mut sample = counts(&part);
        let mut is_gap = false;
        if matches!(name.as_str(), "group" | "control") {
            is_gap = !service.advance(&name, &part, sent_at_ns);
            sample.extend(service.tally.counts());
        }
        let current = match service.parts.entry(name) {
            // Another destination or interface may have this number after a reload.
            Entry::Occupied(current) if current.get().part.place() == part.place() => current.into_mut(),
            Entry::Occupied(mut current) => {
                current.insert(Current::new(&part, now));
                current.into_mut()
            }
            Entry::Vacant(entry) => entry.insert(Current::new(&part, now)),
        };
        if is_gap {
            current.history = History::default();
        }
        current.update(part, sample, sent_at_ns, bytes, now);
    }

    /// Makes room for another service: the one that has been silent or stopped for longest.
    fn forget_one(&mut self, now: Moment) {
        let back_at = self.bus.back_at;
        let absent = self.services.iter().filter(|(_, service)| !service.is_live(back_at, now));
        let oldest = absent.min_by_key(|(_, service)| service.heard_at.elapsed).map(|(identity, _)| identity.clone());
        let Some(service) = oldest.and_then(|identity| self.services.remove(&identity)) else { return };
        self.parts -= service.parts.len();
        self.bytes -= service.parts.values().map(|current| current.bytes).sum::<usize>();
    }

    /// Forgets what is out of date. To be called about once per second.
    pub fn expire(&mut self, now: Moment) {
        // While nothing is heard, nothing is known to have ended.
        let is_lost = self.bus.heard_at.is_none_or(|at| now.since(at) > SILENT_AFTER);
        if is_lost {
            return;
        }
        let back_at = self.bus.back_at;
        let runs: Vec<(Identity, Moment, bool)> = self
            .services
            .iter()
            .map(|(identity, service)| (identity.clone(), service.first_heard_at, service.is_live(back_at, now)))
            .collect();
        let is_replaced = |old: &Identity, began_at: Moment| {
            runs.iter().any(|(new, first_heard_at, is_live)| {
                let is_same = (&new.service, &new.group, &new.member) == (&old.service, &old.group, &old.member);
                *is_live && is_same && new.incarnation != old.incarnation && first_heard_at.elapsed >= began_at.elapsed
            })
        };
        self.services.retain(|identity, service| {
            let silence = service.silence(back_at, now);
            let is_over = !service.is_live(back_at, now) && is_replaced(identity, service.first_heard_at);
            let limit = if service.stopping_at.is_some() { FORGET_STOPPED } else { FORGET_SILENT };
            if is_over || silence > limit {
                return false;
            }
            // Parts of a silent service stay as they were.
            if now.since(service.heard_at) <= SILENT_AFTER {
                service
                    .parts
                    .retain(|_, current| now.since(current.received_at).min(now.since(back_at)) <= FORGET_PART);
            }
            true
        });
        let parts = || self.services.values().flat_map(|service| service.parts.values());
        (self.parts, self.bytes) = (parts().count(), parts().map(|current| current.bytes).sum());
        self.series.expire(now);
    }

    /// How many services are known.
    pub fn services(&self) -> usize {
        self.services.len()
    }

    /// What is shown at this time.
    pub fn view(&self, now: Moment) -> View {
        view::view(self, now)
    }
}

impl Service {
    fn new(now: Moment) -> Service {
        Service {
            parts: BTreeMap::new(),
            first_heard_at: now,
            heard_at: now,
            stopping_at: None,
            tally: Tally::default(),
        }
    }

    /// For how long it has been silent while the bus was there.
    fn silence(&self, back_at: Moment, now: Moment) -> Duration {
        now.since(self.heard_at).min(now.since(back_at))
    }

    fn is_live(&self, back_at: Moment, now: Moment) -> bool {
        self.stopping_at.is_none() && self.silence(back_at, now) <= SILENT_AFTER
    }

    /// Adds what was counted since the last part of this name. Large lists are in parts of their
    /// own, which are sent before it. `false` if the counts cannot be compared.
    fn advance(&mut self, name: &Text, part: &Part, sent_at_ns: u64) -> bool {
        let chunks = self.parts.iter().filter(|(other, current)| {
            other.as_str().split('.').next() == Some(name.as_str())
                && *other != name
                && current.sent_at_ns >= sent_at_ns
        });
        let parts = chunks.map(|(_, current)| &current.part).chain([part]);
        self.tally.advance(parts)
    }

    /// Whether a part is of the last status: a list that has become shorter leaves parts behind.
    fn is_present(&self, name: &Text, current: &Current) -> bool {
        let family = name.as_str().split('.').next().unwrap_or_default();
        let is_divided = matches!(family, "group" | "control") && family != name.as_str();
        let whole = || self.parts.get(&Text(family.to_owned()));
        !is_divided || whole().is_none_or(|whole| current.sent_at_ns >= whole.sent_at_ns)
    }
}

impl Current {
    /// Without any count yet. What was lost before cannot be dated.
    fn new(part: &Part, now: Moment) -> Current {
        let losses = losses(part).into_iter().map(|(reason, count)| (reason, Loss { count, seen: None })).collect();
        Current {
            part: Part::Process(part::Process::default()),
            received_at: now,
            sent_at_ns: 0,
            bytes: 0,
            history: History::default(),
            losses,
        }
    }

    fn update(&mut self, part: Part, sample: Vec<(String, u64)>, sent_at_ns: u64, bytes: usize, now: Moment) {
        let lost = losses(&part);
        self.losses.retain(|reason, _| lost.iter().any(|(present, _)| present == reason));
        for (reason, count) in lost {
            let loss = self.losses.entry(reason).or_default();
            if count > loss.count {
                let is_same = loss.seen.filter(|span| now.since(span.last_at) <= LOSS_ENDS_AFTER);
                let began_at = is_same.map_or(now, |span| span.began_at);
                loss.seen = Some(LossSpan { began_at, last_at: now });
            }
            loss.count = count;
        }
        self.history.add(sent_at_ns, sample);
        self.part = part;
        self.received_at = now;
        self.sent_at_ns = sent_at_ns;
        self.bytes = bytes;
    }
}

/// Reasons of dropped packets and of records not published that are no loss of telemetry.
const NO_LOSS: [&str; 6] =
    ["not_ip", "not_udp", "unclaimed_offload", "fragment_duplicate", "no_subscriber", "own_destination"];

/// Lost datagrams of a part by reason.
fn losses(part: &Part) -> Vec<(String, u64)> {
    let counts = match part {
        Part::Interface(interface) => &interface.dropped_packets,
        Part::Stream(stream) => &stream.unpublished,
        Part::Group(group) => &group.given_up,
        Part::Destination(destination) => &destination.dropped,
        _ => return Vec::new(),
    };
    let lost = counts.nonzero().filter(|(reason, _)| !NO_LOSS.contains(reason));
    lost.map(|(reason, count)| (reason.to_owned(), count)).collect()
}

/// The counts of a part of which there are rates.
fn counts(part: &Part) -> Vec<(String, u64)> {
    let mut counts = Vec::new();
    let mut add = |name: &str, count: u64| {
        if count > 0 {
            counts.push((name.to_owned(), count));
        }
    };
    match part {
        Part::Interface(interface) => {
            add("packets", interface.packets);
            add("bytes", interface.bytes);
            for (kind, formats) in &interface.published.0 {
                add(&format!("published.{kind}"), formats.total());
            }
        }
        Part::Destination(destination) => add("sent", destination.sent),
        Part::Store(store) => add("written", store.written_records),
        // In milliseconds, because counts are whole numbers.
        Part::Process(process) => add("cpu", (process.cpu_seconds.clamp(0.0, 1e12) * 1e3) as u64),
        Part::Stream(_) | Part::Detector(_) | Part::Group(_) | Part::Control(_) => {}
    }
    for (reason, count) in losses(part) {
        add(&format!("lost.{reason}"), count);
    }
    counts
}

#[cfg(test)]
mod tests;
