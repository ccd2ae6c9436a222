//! Templates for readers that are in no group, from the hand-off state of a group of flows.
//!
//! ```text
//!                  GetTemplates: the first page, or where the last one ended
//! TemplateReader ────────────────────────────────────────────────────────────▶ HandoffStore: one request per reader waits,
//!                ◀──────────────────────────────────────────────────────────── a page per 10 ms in turn
//!                  Templates: a page, and whether there are more
//! ```
//!
//! The store keeps a reader's request until it is answered, and nothing else: a page is described
//! by the group, the shard and the version where the page before ended. An entry that changes
//! between two pages moves to the end of its shard, so that no key is left out that was there
//! all the time. All readers together get a page per 10 ms. A reader that requests more often
//! replaces its own request, which gives it no other turn.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use sekiwake_record::{Kind, Name, Shard};

use super::{
    HandoffStore,
    store::{ENVELOPE, GroupEntries},
};
use crate::{
    BootTime, Coordinator, Peer,
    wire::{
        GetTemplates, HandoffEntry, HandoffKey, MAX_HANDOFF_BYTES, MAX_HANDOFF_ENTRIES, Message, PageOutcome, Templates,
    },
};

/// The pause between two pages, of all readers together: 6.4 MB/s, so that a whole group of 16 MiB
/// takes less than three seconds.
const PAGE_EVERY: Duration = Duration::from_millis(10);
/// The most readers that wait for a page.
const MAX_WAITING: usize = 64;

/// How long a reader waits for an answer before it requests again.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How long a reader pauses when the store has no time for it.
const PAUSE: Duration = Duration::from_millis(300);
/// How long a reader waits for the first answer. The connection may have to be made first.
const FIRST_ANSWER_WITHIN: Duration = Duration::from_secs(4);
/// How long a reader takes in all.
const ALL_WITHIN: Duration = Duration::from_secs(30);
/// The most bytes of entries that a reader keeps: twice the store's own budget of a group.
const MAX_BYTES: usize = 32 << 20;

/// Requests that wait, one per reader. The first one is next.
#[derive(Debug, Default)]
pub(super) struct Readers {
    waiting: VecDeque<(Peer, GetTemplates)>,
    /// When the next page is due, if a request waits.
    next_at: BootTime,
}

impl Readers {
    pub(super) fn next_turn(&self) -> BootTime {
        if self.waiting.is_empty() { BootTime::NEVER } else { self.next_at }
    }

    pub(super) fn check(&self) {
        assert!(self.waiting.len() <= MAX_WAITING, "bounded number of readers");
    }

    fn take_due(&mut self, now: BootTime) -> Option<(Peer, GetTemplates)> {
        if now < self.next_at {
            return None;
        }
        let next = self.waiting.pop_front()?;
        self.next_at = now + PAGE_EVERY;
        Some(next)
    }
}

impl HandoffStore {
    pub(super) fn on_get_templates(&mut self, peer: &Peer, get: GetTemplates) {
        let waiting = &mut self.readers.waiting;
        if let Some((_, request)) = waiting.iter_mut().find(|(waiting, _)| waiting == peer) {
            *request = get;
            self.rejections.reader_requests += 1;
        } else if waiting.len() < MAX_WAITING {
            waiting.push_back((peer.clone(), get));
        } else {
            self.rejections.reader_requests += 1;
            self.send(peer, self.empty_page(&get, PageOutcome::Wait));
        }
    }

    /// Answers the next reader, if it is time.
    pub(super) fn answer_reader(&mut self, now: BootTime, coordinator: &Coordinator) {
        if let Some((peer, get)) = self.readers.take_due(now) {
            let page = self.page(now, &get, coordinator);
            self.send(&peer, page);
        }
    }

    fn page(&self, now: BootTime, get: &GetTemplates, coordinator: &Coordinator) -> Templates {
        let known = get.group.as_ref().filter(|_| get.coordinator == self.epoch);
        let continued =
            known.and_then(|name| self.groups.get_key_value(name)).filter(|(_, group)| group.kind == get.kind);
        let (name, group, after) = match continued {
            Some((name, group)) => (name, group, Some((get.shard, get.after))),
            None => match self.group_of(get.kind, coordinator) {
                Some((name, group)) => (name, group, None),
                None if coordinator.has_group_of(get.kind) => return self.empty_page(get, PageOutcome::Complete),
                None if !coordinator.grace_period_over(now) => return self.empty_page(get, PageOutcome::Wait),
                None => return self.empty_page(get, PageOutcome::NoGroup),
            },
        };
        let from = after.map_or((Shard::FIRST, 0), |(shard, version)| (shard, version.saturating_add(1)));
        let mut page = Templates { group: Some(name.clone()), ..self.empty_page(get, PageOutcome::Complete) };
        let mut bytes = ENVELOPE;
        for (&(shard, version), stored) in group.entries.range(from..) {
            let entry = stored.in_shard(shard);
            if bytes + entry.wire_bytes() > MAX_HANDOFF_BYTES || page.entries.len() >= MAX_HANDOFF_ENTRIES {
                page.outcome = PageOutcome::More;
                break;
            }
            bytes += entry.wire_bytes();
            page.entries.push(entry);
            (page.shard, page.after) = (shard, version);
        }
        page
    }

    /// The group of this kind with the most entries; groups with members come first.
    fn group_of(&self, kind: Kind, coordinator: &Coordinator) -> Option<(&Name, &GroupEntries)> {
        let of_kind = self.groups.iter().filter(|(_, group)| group.kind == kind);
        of_kind.max_by_key(|(name, group)| (coordinator.has_members(name), group.entries.len()))
    }

    fn empty_page(&self, get: &GetTemplates, outcome: PageOutcome) -> Templates {
        Templates {
            kind: get.kind,
            request: get.request,
            coordinator: self.epoch,
            outcome,
            group: None,
            shard: get.shard,
            after: get.after,
            entries: Vec::new(),
        }
    }
}

/// The result of a [`TemplateReader`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TemplatesRead {
    /// All entries were received.
    Complete,
    /// No group works on the kind.
    NoGroup,
    /// The coordinator did not answer: it is of a version that does not know the request, or there
    /// is no connection.
    Unanswered,
    /// The coordinator answered, but not with everything in time.
    Late,
    /// There are more entries than a group may have.
    TooMany,
}

/// Requests the templates of a kind, page by page.
#[derive(Debug)]
pub struct TemplateReader {
    kind: Kind,
    request: u64,
    /// The coordinator and the group of the pages so far.
    source: Option<(u64, Option<Name>)>,
    shard: Shard,
    after: u64,
    entries: BTreeMap<(Shard, HandoffKey), HandoffEntry>,
    bytes: usize,
    /// When the next request is due.
    request_at: BootTime,
    answer_by: BootTime,
    all_by: BootTime,
    has_answer: bool,
    output: Option<Vec<u8>>,
    result: Option<TemplatesRead>,
}

impl TemplateReader {
    /// A reader of the templates of this kind.
    pub fn new(kind: Kind, now: BootTime) -> TemplateReader {
        TemplateReader {
            kind,
            request: 1,
            source: None,
            shard: Shard::FIRST,
            after: 0,
            entries: BTreeMap::new(),
            bytes: 0,
            request_at: now,
            answer_by: now + FIRST_ANSWER_WITHIN,
            all_by: now + ALL_WITHIN,
            has_answer: false,
            output: None,
            result: None,
        }
    }

    /// Takes a message of the coordinator. Others than the answer to the last request are ignored.
    /// A request that is repeated is the same one, so that a late answer counts.
    pub fn on_message(&mut self, now: BootTime, frame: &[u8]) {
        let Ok(Message::Templates(page)) = Message::decode(frame) else { return };
        if self.result.is_some() || page.kind != self.kind || page.request != self.request {
            return;
        }
        self.has_answer = true;
        self.request += 1;
        match page.outcome {
            PageOutcome::Wait => return self.request_at = now + PAUSE,
            PageOutcome::NoGroup => return self.result = Some(TemplatesRead::NoGroup),
            PageOutcome::More | PageOutcome::Complete => {}
        }
        let source = (page.coordinator, page.group);
        if self.source.as_ref() != Some(&source) {
            // The first page, perhaps of another coordinator.
            self.source = Some(source);
            self.entries.clear();
            self.bytes = 0;
        }
        for entry in page.entries {
            self.bytes += entry.key.as_bytes().len() + entry.value.as_bytes().len();
            self.entries.insert((entry.shard, entry.key.clone()), entry);
        }
        (self.shard, self.after) = (page.shard, page.after);
        if page.outcome == PageOutcome::Complete {
            self.result = Some(TemplatesRead::Complete);
        } else if self.bytes > MAX_BYTES {
            self.result = Some(TemplatesRead::TooMany);
        } else {
            self.request_at = now;
        }
    }

    /// Does what is due.
    pub fn on_tick(&mut self, now: BootTime) {
        if self.result.is_some() {
            return;
        }
        if !self.has_answer && now >= self.answer_by {
            self.result = Some(TemplatesRead::Unanswered);
        } else if now >= self.all_by {
            self.result = Some(TemplatesRead::Late);
        } else if now >= self.request_at {
            self.request_at = now + RETRY_AFTER;
            let (coordinator, group) = self.source.clone().unwrap_or_default();
            let get = GetTemplates {
                kind: self.kind,
                request: self.request,
                coordinator,
                group,
                shard: self.shard,
                after: self.after,
            };
            self.output = Some(Message::from(get).encode());
        }
    }

    /// When [`TemplateReader::on_tick`] has something to do.
    pub fn next_deadline(&self) -> BootTime {
        match self.result {
            Some(_) => BootTime::NEVER,
            None if self.has_answer => self.request_at.min(self.all_by),
            None => self.request_at.min(self.answer_by),
        }
    }

    /// The next message to the coordinator.
    pub fn poll_output(&mut self) -> Option<Vec<u8>> {
        self.output.take()
    }

    /// The result, once there is one.
    pub fn result(&self) -> Option<TemplatesRead> {
        self.result
    }

    /// The entries that were received, by shard and key.
    pub fn into_entries(self) -> impl Iterator<Item = HandoffEntry> {
        self.entries.into_values()
    }
}
