//! Status: what services say of themselves once per second, while somebody reads it.
//!
//! ```text
//! StatusSender ── OfferStatus: who it is ──▶ StatusBoard (in the proxy)
//!              ◀─ StatusWanted ─────────────  answers; repeats it once per second while there are subscribers
//!              ── Status ─────────────────▶   a budget per peer and of all ─▶ published under the offered name
//! ```
//!
//! The machines stand beside those of member, publisher and coordinator: leases, positions and
//! repair do not depend on them. A coordinator of an earlier version does not answer an offer, so
//! that the sender repeats it with growing pauses and never sends anything else. Nothing is kept:
//! a status that is lost is followed by the next one.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use sekiwake_record::Name;

use crate::{
    BootTime, Peer,
    time::nanos,
    wire::{MAX_STATUS_BYTES, MAX_STATUS_PARTS, Message, OfferStatus, Status, StatusPart, StatusText, StatusWanted},
};

/// The beginning of every topic of status.
pub const STATUS_PREFIX: &str = "status/";

/// How often a sender sends its status.
const SEND_EVERY: Duration = Duration::from_secs(1);
/// How long a sender sends after it has heard that its status is wanted: the word is repeated every
/// second.
const WANTED_FOR: Duration = Duration::from_millis(3_500);
/// The pause between two offers to a coordinator that answers.
const OFFER_EVERY: Duration = Duration::from_secs(5);
/// The first pause between two offers to a coordinator that has not answered; it doubles.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// How often the board repeats that status is wanted.
const REPEAT_EVERY: Duration = Duration::from_secs(1);
/// How long the board remembers a peer without an offer.
const FORGET_AFTER: Duration = Duration::from_secs(30);
/// Maximum number of peers.
const MAX_PEERS: usize = 1_024;
/// Bytes that a peer may send per second, and in one burst: a forwarder with 64 destinations sends
/// 60 KiB.
const PEER_BYTES: u64 = 512 << 10;
/// The same for all peers together.
const ALL_BYTES: u64 = 4 << 20;
/// Counted for each part in addition to its bytes, so that a peer cannot fill the way to the relay,
/// which has room for 512 parts, with small ones.
const PART_OVERHEAD: usize = 1 << 10;
/// Bytes of a message before the first part.
const ENVELOPE: usize = 32;

/// The run of a service that sends status.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct StatusIdentity {
    /// The service.
    pub service: Name,
    /// The group, without the service's name; none for a service that is in no group.
    pub group: Option<Name>,
    /// The member's or publisher's name.
    pub member: Name,
    /// The random number of its run.
    pub incarnation: u64,
}

impl StatusIdentity {
    /// The topic of a part.
    pub fn topic(&self, part: &Name) -> String {
        let StatusIdentity { service, group, member, incarnation } = self;
        let group = group.as_ref().map_or("-", Name::as_str);
        format!("{STATUS_PREFIX}{service}.{group}.{member}.{incarnation:016x}/{part}")
    }
}

/// A service's side.
#[derive(Debug)]
pub struct StatusSender {
    identity: StatusIdentity,
    offer_at: BootTime,
    pause: Duration,
    /// Nobody reads status, or the end of the last word that somebody does.
    wanted_until: Option<BootTime>,
    send_at: BootTime,
    outputs: VecDeque<Vec<u8>>,
}

impl StatusSender {
    /// The sender of this service.
    pub fn new(identity: StatusIdentity, now: BootTime) -> StatusSender {
        StatusSender {
            identity,
            offer_at: now,
            pause: FIRST_PAUSE,
            wanted_until: None,
            send_at: now,
            outputs: VecDeque::new(),
        }
    }

    /// The service.
    pub fn identity(&self) -> &StatusIdentity {
        &self.identity
    }

    /// Takes a message of the coordinator. Other messages are ignored.
    pub fn on_message(&mut self, now: BootTime, frame: &[u8]) {
        let Ok(Message::StatusWanted(StatusWanted { is_wanted, .. })) = Message::decode(frame) else { return };
        if is_wanted {
            if !self.is_wanted(now) {
                self.send_at = now;
            }
            self.wanted_until = Some(now + WANTED_FOR);
        } else {
            self.wanted_until = None;
        }
        // It answers. Offers keep it from forgetting this peer, and reach its successor.
        self.pause = FIRST_PAUSE;
        self.offer_at = now + OFFER_EVERY;
    }

    /// Does what is due.
    pub fn on_tick(&mut self, now: BootTime) {
        if !self.is_wanted(now) {
            self.wanted_until = None;
        }
        if now >= self.offer_at {
            let StatusIdentity { service, group, member, incarnation } = self.identity.clone();
            self.push(OfferStatus { service, group, member, incarnation });
            self.offer_at = now + self.pause;
            self.pause = (2 * self.pause).min(MAX_PAUSE);
        }
    }

    /// When [`StatusSender::on_tick`] or [`StatusSender::is_due`] has something to do.
    pub fn next_deadline(&self) -> BootTime {
        self.wanted_until.map_or(self.offer_at, |until| self.offer_at.min(self.send_at).min(until))
    }

    /// Whether somebody reads status.
    pub fn is_wanted(&self, now: BootTime) -> bool {
        self.wanted_until.is_some_and(|until| now < until)
    }

    /// Whether a status is due. The next one is due a second later.
    pub fn is_due(&mut self, now: BootTime) -> bool {
        let is_due = self.is_wanted(now) && now >= self.send_at;
        if is_due {
            self.send_at = now + SEND_EVERY;
        }
        is_due
    }

    /// Sends the parts of a status, each a JSON object of at most
    /// [`MAX_STATUS_PART`](crate::wire::MAX_STATUS_PART) bytes.
    pub fn send(&mut self, parts: Vec<(Name, Vec<u8>)>) {
        let mut message = Vec::new();
        let mut bytes = ENVELOPE;
        for (part, text) in parts {
            let cost = part.as_str().len() + text.len() + 8;
            if bytes + cost > MAX_STATUS_BYTES || message.len() >= MAX_STATUS_PARTS {
                self.send_message(std::mem::take(&mut message));
                bytes = ENVELOPE;
            }
            bytes += cost;
            message.push(StatusPart { part, text: StatusText(text) });
        }
        if !message.is_empty() {
            self.send_message(message);
        }
    }

    /// Whether a message waits to be sent.
    pub fn has_output(&self) -> bool {
        !self.outputs.is_empty()
    }

    /// The next message to the coordinator.
    pub fn poll_output(&mut self) -> Option<Vec<u8>> {
        self.outputs.pop_front()
    }

    fn send_message(&mut self, parts: Vec<StatusPart>) {
        self.push(Status { incarnation: self.identity.incarnation, parts });
    }

    fn push(&mut self, message: impl Into<Message>) {
        self.outputs.push_back(message.into().encode());
    }
}

/// Rejected messages about status, by reason. A rejection changes nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatusRejections {
    /// Malformed or too large messages, and messages that are not for a coordinator.
    pub malformed: u64,
    /// Status of a peer that has not offered it, or in the name of another peer; offers without
    /// room.
    pub foreign: u64,
    /// Status above the peer's rate, or the rate of all.
    pub over_rate: u64,
}

impl StatusRejections {
    /// The counts with their label values in metrics.
    pub fn by_reason(&self) -> [(&'static str, u64); 3] {
        [("malformed", self.malformed), ("foreign", self.foreign), ("status_rate", self.over_rate)]
    }
}

/// A part to be published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publication {
    /// Its topic.
    pub topic: String,
    /// A JSON object, unread.
    pub text: Vec<u8>,
}

/// Bytes that may be sent.
#[derive(Clone, Copy, Debug)]
struct Budget {
    per_second: u64,
    left: u64,
    refilled_at: BootTime,
}

impl Budget {
    fn new(per_second: u64, now: BootTime) -> Budget {
        Budget { per_second, left: per_second, refilled_at: now }
    }

    fn refill(&mut self, now: BootTime) {
        let elapsed = nanos(now - self.refilled_at).min(1_000_000_000);
        let earned = self.per_second * (elapsed / 1_000) / 1_000_000;
        if earned > 0 {
            self.refilled_at = now;
            self.left = (self.left + earned).min(self.per_second);
        }
    }
}

#[derive(Debug)]
struct Offered {
    identity: StatusIdentity,
    at: BootTime,
    budget: Budget,
}

/// The proxy's side.
#[derive(Debug)]
pub struct StatusBoard {
    epoch: u64,
    /// The name of the proxy's own status.
    reserved: Option<StatusIdentity>,
    is_wanted: bool,
    peers: BTreeMap<Peer, Offered>,
    identities: BTreeSet<StatusIdentity>,
    budget: Budget,
    repeat_at: BootTime,
    outputs: VecDeque<(Peer, Vec<u8>)>,
    publications: VecDeque<Publication>,
    rejections: StatusRejections,
}

impl StatusBoard {
    /// A board without peers. `epoch` is the coordinator's.
    pub fn new(epoch: u64, now: BootTime) -> StatusBoard {
        StatusBoard {
            epoch,
            reserved: None,
            is_wanted: false,
            peers: BTreeMap::new(),
            identities: BTreeSet::new(),
            budget: Budget::new(ALL_BYTES, now),
            repeat_at: now + REPEAT_EVERY,
            outputs: VecDeque::new(),
            publications: VecDeque::new(),
            rejections: StatusRejections::default(),
        }
    }

    /// Rejects offers in the proxy's own name.
    pub fn reserve(&mut self, own: StatusIdentity) {
        self.reserved = Some(own);
    }

    /// Says whether somebody subscribes to status. The services hear of it within a second.
    pub fn set_wanted(&mut self, is_wanted: bool) {
        self.is_wanted = is_wanted;
    }

    /// Whether somebody subscribes to status.
    pub fn is_wanted(&self) -> bool {
        self.is_wanted
    }

    /// Takes a message from a peer.
    pub fn on_message(&mut self, now: BootTime, peer: &Peer, frame: &[u8]) {
        if frame.len() > MAX_STATUS_BYTES {
            self.rejections.malformed += 1;
            return;
        }
        match Message::decode(frame) {
            Ok(Message::OfferStatus(offer)) => self.on_offer(now, peer, offer),
            Ok(Message::Status(status)) => self.on_status(now, peer, status),
            _ => self.rejections.malformed += 1,
        }
    }

    /// Does what is due.
    pub fn on_tick(&mut self, now: BootTime) {
        if now < self.repeat_at {
            return;
        }
        self.repeat_at = now + REPEAT_EVERY;
        let identities = &mut self.identities;
        self.peers.retain(|_, offered| {
            let stays = now < offered.at + FORGET_AFTER;
            if !stays {
                identities.remove(&offered.identity);
            }
            stays
        });
        if self.is_wanted {
            let peers: Vec<Peer> = self.peers.keys().cloned().collect();
            peers.iter().for_each(|peer| self.answer(peer));
        }
    }

    /// When [`StatusBoard::on_tick`] has something to do.
    pub fn next_deadline(&self) -> BootTime {
        if self.peers.is_empty() { BootTime::NEVER } else { self.repeat_at }
    }

    /// The next message, and its receiver.
    pub fn poll_output(&mut self) -> Option<(Peer, Vec<u8>)> {
        self.outputs.pop_front()
    }

    /// The next part to be published.
    pub fn poll_publication(&mut self) -> Option<Publication> {
        self.publications.pop_front()
    }

    /// Rejected messages.
    pub fn rejections(&self) -> StatusRejections {
        self.rejections
    }

    /// Checks that the tables agree and are bounded, for tests and fuzz targets.
    ///
    /// # Panics
    /// When they do not.
    pub fn check(&self) {
        assert!(self.peers.len() <= MAX_PEERS && self.peers.len() == self.identities.len(), "one name per peer");
        assert!(self.peers.values().all(|offered| self.identities.contains(&offered.identity)), "the names of peers");
    }

    fn on_offer(&mut self, now: BootTime, peer: &Peer, offer: OfferStatus) {
        let OfferStatus { service, group, member, incarnation } = offer;
        let identity = StatusIdentity { service, group, member, incarnation };
        if self.reserved.as_ref() == Some(&identity) {
            return self.rejections.foreign += 1;
        }
        let has_room = self.peers.len() < MAX_PEERS;
        match self.peers.get_mut(peer) {
            Some(offered) if offered.identity == identity => offered.at = now,
            // A connection has one name, and a name has one connection.
            Some(_) => return self.rejections.foreign += 1,
            None if !has_room || self.identities.contains(&identity) => {
                return self.rejections.foreign += 1;
            }
            None => {
                if self.peers.is_empty() {
                    self.repeat_at = now + REPEAT_EVERY;
                }
                self.identities.insert(identity.clone());
                self.peers.insert(peer.clone(), Offered { identity, at: now, budget: Budget::new(PEER_BYTES, now) });
            }
        }
        self.answer(peer);
    }

    fn on_status(&mut self, now: BootTime, peer: &Peer, status: Status) {
        let known = self.peers.get_mut(peer).filter(|offered| offered.identity.incarnation == status.incarnation);
        let Some(offered) = known else { return self.rejections.foreign += 1 };
        offered.at = now;
        if !self.is_wanted {
            // It has not heard yet that nobody reads it any longer.
            return;
        }
        offered.budget.refill(now);
        self.budget.refill(now);
        let bytes: usize = status.parts.iter().map(|part| part.text.0.len() + PART_OVERHEAD).sum();
        let bytes = bytes as u64;
        if bytes > offered.budget.left || bytes > self.budget.left {
            return self.rejections.over_rate += 1;
        }
        offered.budget.left -= bytes;
        self.budget.left -= bytes;
        for StatusPart { part, text } in status.parts {
            self.publications.push_back(Publication { topic: offered.identity.topic(&part), text: text.0 });
        }
    }

    fn answer(&mut self, peer: &Peer) {
        let answer = StatusWanted { coordinator: self.epoch, is_wanted: self.is_wanted };
        self.outputs.push_back((peer.clone(), Message::from(answer).encode()));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::time::{MILLISECOND, SECOND};

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn identity(number: u64) -> StatusIdentity {
        StatusIdentity {
            service: name("xflow-forwarder"),
            group: Some(name("default")),
            member: name("m"),
            incarnation: number,
        }
    }

    fn peer(number: u64) -> Peer {
        Peer::new(&number.to_be_bytes()).unwrap()
    }

    /// A board and some senders.
    struct World {
        now: BootTime,
        board: StatusBoard,
        senders: BTreeMap<u64, StatusSender>,
        /// Parts published, by the sender's number.
        published: BTreeMap<u64, u64>,
        offers: u64,
        statuses: u64,
    }

    impl World {
        fn new(senders: u64) -> World {
            World {
                now: BootTime::ZERO,
                board: StatusBoard::new(1, BootTime::ZERO),
                senders: (0..senders)
                    .map(|number| (number, StatusSender::new(identity(number), BootTime::ZERO)))
                    .collect(),
                published: BTreeMap::new(),
                offers: 0,
                statuses: 0,
            }
        }

        fn run(&mut self, duration: Duration, mut is_lost: impl FnMut() -> bool) {
            let until = self.now + duration;
            while self.now < until {
                self.now += 50 * MILLISECOND;
                for (&number, sender) in &mut self.senders {
                    sender.on_tick(self.now);
                    if sender.is_due(self.now) {
                        sender.send(vec![(name("process"), b"{}".to_vec()), (name("group"), b"{}".to_vec())]);
                    }
                    assert!(sender.next_deadline() > self.now, "nothing is due any longer: {sender:?}");
                    while let Some(frame) = sender.poll_output() {
                        match Message::decode(&frame) {
                            Ok(Message::OfferStatus(_)) => self.offers += 1,
                            _ => self.statuses += 1,
                        }
                        if !is_lost() {
                            self.board.on_message(self.now, &peer(number), &frame);
                        }
                    }
                }
                if self.now >= self.board.next_deadline() {
                    self.board.on_tick(self.now);
                }
                self.board.check();
                while let Some((to, frame)) = self.board.poll_output() {
                    let sender = self.senders.iter_mut().find(|(number, _)| peer(**number) == to);
                    if let Some((_, sender)) = sender.filter(|_| !is_lost()) {
                        sender.on_message(self.now, &frame);
                    }
                }
                while let Some(Publication { topic, .. }) = self.board.poll_publication() {
                    let (_, number) = topic.split_once(".m.").unwrap();
                    let number = u64::from_str_radix(number.split('/').next().unwrap(), 16).unwrap();
                    *self.published.entry(number).or_default() += 1;
                }
            }
        }
    }

    #[test]
    fn status_is_sent_only_while_it_is_wanted() {
        let mut world = World::new(20);
        world.run(100 * SECOND, || false);
        assert_eq!((world.statuses, world.published.len()), (0, 0));
        assert!(world.offers <= 20 * 21, "{} offers", world.offers);
        world.board.set_wanted(true);
        world.run(10 * SECOND, || false);
        assert_eq!(world.published.len(), 20);
        assert!(world.published.values().all(|parts| (16..=20).contains(parts)), "{:?}", world.published);
        world.board.set_wanted(false);
        world.run(5 * SECOND, || false);
        let before = (world.statuses, world.published.clone());
        world.run(60 * SECOND, || false);
        assert_eq!((world.statuses, world.published), before);
    }

    #[test]
    fn proxys_own_name_is_rejected() {
        let mut board = StatusBoard::new(1, BootTime::ZERO);
        board.reserve(identity(1));
        for number in [1, 2] {
            let StatusIdentity { service, group, member, incarnation } = identity(number);
            let offer = OfferStatus { service, group, member, incarnation };
            board.on_message(BootTime::ZERO, &peer(number), &Message::from(offer).encode());
        }
        let answered: Vec<Peer> = std::iter::from_fn(|| board.poll_output()).map(|(peer, _)| peer).collect();
        assert_eq!((answered, board.rejections().foreign), (vec![peer(2)], 1));
    }

    #[test]
    fn older_coordinator_gets_few_offers_and_nothing_else() {
        let mut sender = StatusSender::new(identity(1), BootTime::ZERO);
        let mut now = BootTime::ZERO;
        let mut offers = 0;
        while now < BootTime::ZERO + 600 * SECOND {
            now += SECOND;
            sender.on_tick(now);
            assert!(!sender.is_due(now));
            offers += std::iter::from_fn(|| sender.poll_output()).count();
        }
        assert!((10..=20).contains(&offers), "{offers} offers");
    }

    #[test]
    fn new_coordinator_hears_of_every_service() {
        let mut world = World::new(3);
        world.board.set_wanted(true);
        world.run(20 * SECOND, || false);
        world.board = StatusBoard::new(2, world.now);
        world.board.set_wanted(true);
        world.published.clear();
        world.run(20 * SECOND, || false);
        assert_eq!(world.published.len(), 3);
    }

    #[test]
    fn topics_of_equal_names_do_not_collide() {
        let topics: BTreeSet<String> = (0..3).map(|number| identity(number).topic(&name("group"))).collect();
        assert_eq!(topics.len(), 3);
        let capture = StatusIdentity { group: None, ..identity(255) };
        assert_eq!(
            capture.topic(&name("destinations.0")),
            "status/xflow-forwarder.-.m.00000000000000ff/destinations.0"
        );
    }

    #[test]
    fn hostile_sender_is_limited_and_takes_no_other_name() {
        let now = BootTime::ZERO + SECOND;
        let mut board = StatusBoard::new(1, BootTime::ZERO);
        board.set_wanted(true);
        let offer = |of: StatusIdentity| {
            let StatusIdentity { service, group, member, incarnation } = of;
            Message::from(OfferStatus { service, group, member, incarnation }).encode()
        };
        let status = |incarnation| {
            let parts = vec![StatusPart { part: name("p"), text: StatusText(vec![b' '; 16 << 10]) }; 3];
            Message::from(Status { incarnation, parts }).encode()
        };
        board.on_message(now, &peer(1), &offer(identity(1)));
        // Another connection cannot take the name, send under it, or have two names.
        board.on_message(now, &peer(2), &offer(identity(1)));
        board.on_message(now, &peer(2), &status(1));
        board.on_message(now, &peer(1), &offer(identity(5)));
        board.on_message(now, &peer(1), &status(5));
        assert_eq!((board.rejections().foreign, board.poll_publication()), (4, None));
        board.on_message(now, &peer(2), &offer(identity(2)));
        (0..1_000).for_each(|_| board.on_message(now, &peer(2), &status(2)));
        let published = std::iter::from_fn(|| board.poll_publication()).count() as u64;
        assert!((20..=3 * PEER_BYTES / (48 << 10)).contains(&published), "{published} parts");
        assert!(board.rejections().over_rate > 900);
        // It leaves room for the others.
        board.on_message(now, &peer(1), &status(1));
        assert_eq!(std::iter::from_fn(|| board.poll_publication()).count(), 3);
        board.on_message(now, &peer(1), b"no message");
        board.on_message(now, &peer(1), &vec![0; MAX_STATUS_BYTES + 1]);
        assert_eq!(board.rejections().malformed, 2);
        (0..2 * MAX_PEERS as u64).for_each(|number| board.on_message(now, &peer(number), &offer(identity(number))));
        board.check();
    }

    #[test]
    fn large_status_is_sent_in_several_messages() {
        let mut sender = StatusSender::new(identity(1), BootTime::ZERO);
        let parts = (0..200).map(|number| (name(&format!("p.{number}")), vec![b'x'; 100 * (number % 160)])).collect();
        sender.send(parts);
        let frames: Vec<Vec<u8>> = std::iter::from_fn(|| sender.poll_output()).collect();
        assert!(frames.iter().all(|frame| frame.len() <= MAX_STATUS_BYTES));
        let parts = frames.iter().map(|frame| match Message::decode(frame).unwrap() {
            Message::Status(status) => status.parts.len(),
            other => panic!("{other:?}"),
        });
        assert_eq!(parts.sum::<usize>(), 200);
    }

    proptest! {
        #[test]
        fn lost_messages_only_delay(seed in any::<u64>()) {
            let mut world = World::new(4);
            let mut state = seed | 1;
            let mut is_lost = move || {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state % 3 == 0
            };
            world.board.set_wanted(true);
            world.run(60 * SECOND, &mut is_lost);
            world.published.clear();
            world.run(20 * SECOND, || false);
            prop_assert_eq!(world.published.len(), 4);
            world.board.set_wanted(false);
            world.run(20 * SECOND, &mut is_lost);
            let before = world.statuses;
            world.run(20 * SECOND, &mut is_lost);
            prop_assert_eq!(world.statuses, before);
        }
    }
}
