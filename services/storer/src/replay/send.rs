//! The sending thread: stored datagrams into the engines, each at its time.
//!
//! ```text
//!          ┌───────────────────── run ─────────────────────┐
//!          │ may_send   registered, and no destination     │
//!          │            is behind or down                  │
//!          │ round      what is due ─▶ batches ─▶ engines  │
//!          └───────────────────────────────────────────────┘
//!            drain      until every batch is sent, or the stop's deadline
//! ```

use std::{
    io::{IsTerminal, Write, stderr},
    net::SocketAddr,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use sekiwake_archive::Origin;
use sekiwake_forward::{Engine, Parcel};
use sekiwake_record::{BatchBuilder, Kind, Record, WallTime};
use sekiwake_runtime::Worker;
use sekiwake_sys::clock::wall_now_ns;

use super::{
    account::{Account, Delivered},
    outstanding::{Outstanding, Place, time},
    registration::{Registration, refusal, sent_to},
    schedule::Schedule,
    shift::{Shift, Shifted},
};
use crate::stored::{Datagram, Peeked, Stored};

/// The most datagrams that are sent before anything else is looked at.
const ROUND: usize = 1024;

/// The longest sleep.
const IDLE: Duration = Duration::from_millis(20);

/// How soon it is checked again whether destinations have caught up.
const CATCH_UP: Duration = Duration::from_millis(1);

/// How often it is checked whether destinations are down, and how often one of these gets a
/// datagram.
const CHECK_EVERY: Duration = Duration::from_millis(200);
const PROBE_EVERY: Duration = Duration::from_secs(1);

/// How often progress is shown.
const SHOW_EVERY: Duration = Duration::from_millis(500);

/// How long before the deadline of a stop workers have given up, and how long before that it is
/// still known what they have not sent.
const GIVEN_UP: Duration = Duration::from_millis(200);
const KNOWN: Duration = Duration::from_secs(1);

/// How often the place to continue from is noted, for the case that workers give up at once.
const NOTE_EVERY: Duration = Duration::from_millis(500);

/// A replay, once its destinations are known.
pub(super) struct Sending<'a> {
    pub(super) worker: &'a Worker,
    pub(super) stored: Stored,
    pub(super) outlets: Vec<Outlet>,
    /// `None`: no capture sees the traffic.
    pub(super) registration: Option<Registration>,
    /// Datagrams of devices to the destinations are replayed, too.
    pub(super) allows_gap: bool,
    pub(super) schedule: Schedule,
    pub(super) shift: Option<Shift>,
    /// The first datagram, of which `--skip` were sent before.
    pub(super) start: Place,
}

/// The engine of one kind, and what it is to get next.
pub(super) struct Outlet {
    kind: Kind,
    engine: Engine<Vec<u8>>,
    batch: BatchBuilder,
    /// The first datagram of the batch.
    place: Place,
    learned: BatchBuilder,
}

/// What may be sent now.
enum May {
    /// At most this many datagrams.
    Send(usize),
    Wait,
}

/// How a round ended.
enum Round {
    /// There may be more that is due.
    Full,
    /// Nothing is due for so long.
    Idle(Duration),
    End,
}

/// What the thread remembers from round to round.
struct Progress {
    outstanding: Outstanding,
    /// The next datagram.
    place: Place,
    account: Account,
    has_ended: bool,
    is_down: bool,
    checked_at: Instant,
    probed_at: Instant,
    shown_at: Instant,
    /// The newest places that were noted, the older one first, and when.
    noted: [Place; 2],
    noted_at: Instant,
    payload: Vec<u8>,
}

impl Outlet {
    pub(super) fn new(kind: Kind, engine: Engine<Vec<u8>>) -> Outlet {
        let [batch, learned] = [(); 2].map(|()| BatchBuilder::new(Vec::new()));
        Outlet { kind, engine, batch, place: Place::default(), learned }
    }

    fn push(&mut self, record: &Record<'_>, place: Place, outstanding: &Outstanding) {
        if !self.batch.has_room_for(record) {
            self.offer(outstanding);
        }
        if self.batch.count() == 0 {
            self.place = place;
        }
        self.batch.push(record);
    }

    /// Reads the templates of a datagram that is not to be sent.
    fn learn(&mut self, record: &Record<'_>) {
        if !self.learned.has_room_for(record) {
            self.teach();
        }
        self.learned.push(record);
    }

    fn teach(&mut self) {
        let learned = std::mem::replace(&mut self.learned, BatchBuilder::new(Vec::new()));
        if let Some(batch) = learned.into_batch() {
            self.engine.learn_templates(&Parcel::from(batch));
        }
    }

    fn offer(&mut self, outstanding: &Outstanding) {
        // A datagram may need the templates before it.
        self.teach();
        let batch = std::mem::replace(&mut self.batch, BatchBuilder::new(Vec::new()));
        if let Some(batch) = batch.into_batch() {
            self.engine.offer(&Arc::new(Parcel::patient(batch, outstanding.add(self.place))));
        }
    }

    fn flush(&mut self, outstanding: &Outstanding) {
        self.offer(outstanding);
        self.engine.flush();
    }
}

impl Sending<'_> {
    /// Sends everything, until the end or a stop. The account is what was done, also after an
    /// error.
    pub(super) fn run(mut self) -> (Account, anyhow::Result<()>) {
        let now = Instant::now();
        let mut progress = Progress {
            outstanding: Outstanding::default(),
            place: Place { skip: 0, ..self.start },
            account: Account::default(),
            has_ended: false,
            is_down: false,
            checked_at: now,
            probed_at: now,
            shown_at: now,
            noted: [self.start; 2],
            noted_at: now,
            payload: Vec::new(),
        };
        let mut outcome = self.send_all(&mut progress);
        for outlet in &mut self.outlets {
            outlet.flush(&progress.outstanding);
        }
        let next = self.drain(&mut progress);
        let (delivered, is_down) = delivered(&self.outlets);
        if stderr().is_terminal() {
            let _ = write!(stderr(), "\r\x1b[K");
        }
        let mut account = progress.account;
        account.delivered = delivered;
        account.outages += u64::from(is_down && !progress.is_down);
        account.delayed = self.schedule.delayed();
        account.elapsed = now.elapsed();
        account.next = next;
        match self.stored.finish() {
            Ok(summary) => {
                account.read = summary.lines;
                account.damaged = summary.corrupt;
                account.unreadable = summary.failed.len() as u64;
            }
            Err(error) => outcome = outcome.and(Err(error.into())),
        }
        (account, outcome)
    }

    fn send_all(&mut self, progress: &mut Progress) -> anyhow::Result<()> {
        while !self.worker.stopping() {
            self.worker.beat();
            let now = Instant::now();
            self.note(progress, now);
            self.show(progress, now);
            let mut addresses = Vec::new();
            let round = match self.may_send(progress, &mut addresses, now)? {
                May::Wait => Round::Idle(CATCH_UP),
                May::Send(most) => self.round(progress, &addresses, most)?,
            };
            match round {
                Round::Full => {}
                Round::Idle(duration) => thread::sleep(duration.min(IDLE)),
                Round::End => {
                    progress.has_ended = true;
                    break;
                }
            }
        }
        Ok(())
    }

    /// `addresses` are those that captures leave alone.
    fn may_send(
        &mut self,
        progress: &mut Progress,
        addresses: &mut Vec<SocketAddr>,
        now: Instant,
    ) -> anyhow::Result<May> {
        if let Some(registration) = &self.registration {
            match registration.addresses()? {
                Some(registered) => *addresses = registered,
                None => return Ok(May::Wait),
            }
        }
        if self.outlets.iter().any(|outlet| outlet.engine.is_any_behind()) {
            return Ok(May::Wait);
        }
        if now.duration_since(progress.checked_at) >= CHECK_EVERY {
            progress.checked_at = now;
            let (_, is_down) = delivered(&self.outlets);
            if is_down && !progress.is_down {
                progress.account.outages += 1;
                progress.probed_at = now;
            }
            progress.is_down = is_down;
        }
        if !progress.is_down {
            return Ok(May::Send(ROUND));
        }
        // Only a datagram can show that the destination is back.
        if now.duration_since(progress.probed_at) < PROBE_EVERY {
            return Ok(May::Wait);
        }
        progress.probed_at = now;
        Ok(May::Send(1))
    }

    fn round(&mut self, progress: &mut Progress, addresses: &[SocketAddr], most: usize) -> anyhow::Result<Round> {
        let Sending { stored, outlets, schedule, shift, start, allows_gap, .. } = self;
        let mut taken = 0;
        let mut examined = 0;
        let round = loop {
            if taken >= most || examined >= 4 * ROUND {
                break Round::Full;
            }
            examined += 1;
            let patience = if taken == 0 { IDLE } else { Duration::ZERO };
            let Datagram { origin, kind, record } = match stored.peek(patience) {
                Peeked::Datagram(datagram) => datagram,
                Peeked::Nothing => break Round::Full,
                Peeked::End => break Round::End,
            };
            let Some(outlet) = outlets.iter_mut().find(|outlet| outlet.kind == kind) else {
                stored.advance();
                continue;
            };
            if origin != Origin::Selected {
                outlet.learn(&record);
                if let Some(shift) = shift {
                    shift.learn(&record);
                }
                stored.advance();
                continue;
            }
            let captured_at = WallTime::from_nanos(record.captured_at_ns);
            let place = progress.place;
            // What an earlier replay has sent.
            if captured_at == start.from && place.skip < start.skip {
                progress.place = place.after(captured_at);
                stored.advance();
                continue;
            }
            let now = Instant::now();
            let due = schedule.due(captured_at, now);
            if due > now {
                break Round::Idle(due - now);
            }
            if !*allows_gap && let Some(address) = sent_to(addresses, record.destination, record.destination_port) {
                return Err(refusal(address, &format!("{} did in what was selected", record.source)));
            }
            progress.account.late += u64::from(schedule.take(due, now));
            progress.account.matched += 1;
            progress.place = place.after(captured_at);
            match shift {
                None => outlet.push(&record, place, &progress.outstanding),
                Some(shift) => {
                    let shifted = shift.apply(&record, wall_now_ns(), &mut progress.payload);
                    progress.account.unshifted += u64::from(shifted == Shifted::Absolute);
                    let record = Record { payload: &progress.payload, ..record };
                    outlet.push(&record, place, &progress.outstanding);
                }
            }
            taken += 1;
            stored.advance();
        };
        for outlet in outlets {
            outlet.flush(&progress.outstanding);
        }
        Ok(round)
    }

    /// Waits until everything is sent or dropped. From where to continue, if something is left.
    fn drain(&mut self, progress: &mut Progress) -> Option<Place> {
        let mut known = None;
        while !progress.outstanding.is_empty() {
            self.worker.beat();
            let now = Instant::now();
            self.show(progress, now);
            if let Some(deadline) = self.worker.deadline() {
                if known.is_none() && now + KNOWN >= deadline {
                    known = progress.outstanding.first();
                }
                if now + GIVEN_UP >= deadline {
                    break;
                }
            }
            thread::sleep(CATCH_UP);
        }
        let left = self.outlets.iter().flat_map(|outlet| statuses(&outlet.engine)).any(|status| {
            let dropped = &status["dropped"]["shutdown"];
            dropped.as_u64().unwrap_or_default() > 0
        });
        match known.or(progress.outstanding.first()) {
            Some(place) => Some(place),
            None if left => Some(progress.noted[0]),
            None if progress.has_ended => None,
            None => Some(progress.place),
        }
    }

    /// Notes from where to continue if workers give up what they have as soon as they are stopped.
    fn note(&self, progress: &mut Progress, now: Instant) {
        if now.duration_since(progress.noted_at) >= NOTE_EVERY {
            progress.noted_at = now;
            progress.noted = [progress.noted[1], progress.outstanding.first().unwrap_or(progress.place)];
        }
    }

    fn show(&self, progress: &mut Progress, now: Instant) {
        let elapsed = now.duration_since(progress.shown_at);
        if elapsed < SHOW_EVERY || !stderr().is_terminal() {
            return;
        }
        progress.shown_at = now;
        let (delivered, is_down) = delivered(&self.outlets);
        let state = match progress.outstanding.first() {
            Some(_) if is_down => ", waiting for a destination",
            _ if self.registration.as_ref().is_some_and(|one| !matches!(one.addresses(), Ok(Some(_)))) => {
                ", waiting for the registration"
            }
            _ => "",
        };
        let rate = delivered.sent.saturating_sub(progress.account.delivered.sent) as f64 / elapsed.as_secs_f64();
        let (at, sent) = (time(progress.place.from), delivered.sent);
        let _ = write!(stderr(), "\r\x1b[K{at}: {sent} sent, {rate:.0} per second{state}");
        progress.account.delivered = delivered;
    }
}

/// What the destinations have done, and whether one that cannot acknowledge is down.
fn delivered(outlets: &[Outlet]) -> (Delivered, bool) {
    let mut delivered = Delivered::default();
    let mut is_down = false;
    let mut seen: Vec<serde_json::Value> = Vec::new();
    for status in outlets.iter().flat_map(|outlet| statuses(&outlet.engine)) {
        // The same destination of several kinds has the same counters.
        if seen.contains(&status["destination"]) {
            continue;
        }
        let is_udp = status["destination"].as_str().is_some_and(|label| label.starts_with("udp://"));
        is_down |= is_udp && status["state"] == "down";
        delivered.add(&status);
        seen.push(status["destination"].clone());
    }
    (delivered, is_down)
}

fn statuses(engine: &Engine<Vec<u8>>) -> Vec<serde_json::Value> {
    match engine.status() {
        serde_json::Value::Array(all) => all,
        _ => Vec::new(),
    }
}
