//! The views, and how far each has come in each shard.

use std::time::Duration;

use sekiwake_group::{BootTime, Stream};
use sekiwake_record::{SHARDS, Shard};

use crate::StreamProgress;

/// The most views at a time: one bit each.
const MAX_VIEWS: usize = 64;
/// A view is live while it was heard of within this time. Time in which no view is heard does not
/// count, because then it is the connection that is silent.
const LIVE: Duration = Duration::from_secs(5);
/// The longest silence that counts: more than the time between two announcements.
const COUNTED_SILENCE: Duration = Duration::from_millis(1_500);
/// How often it is computed what all views have passed.
const UPDATE_EVERY: Duration = Duration::from_millis(5);

/// A view's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View(u8);

impl View {
    pub(crate) fn bit(self) -> u64 {
        1 << self.0
    }

    pub(crate) fn of_bit(bit: u64) -> View {
        View(bit.trailing_zeros() as u8)
    }
}

/// Running totals of a view.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ViewCounters {
    /// Records that another view had shown before.
    pub duplicates: u64,
    /// Datagrams that no other view has shown.
    pub only: u64,
    /// Whether it has been heard of recently.
    pub is_live: bool,
}

#[derive(Debug)]
struct Known {
    stream: Stream,
    interface: u8,
    /// By shard: everything up to this capture time has been received.
    passed_ns: Box<[u64; SHARDS]>,
    /// By shard: the latest capture time received.
    captured_ns: Box<[u64; SHARDS]>,
    heard_at: Duration,
    ended: bool,
    counters: ViewCounters,
}

/// All views.
#[derive(Debug)]
pub(crate) struct Views {
    known: Vec<Known>,
    /// What streams without a view have announced: they are live, and may be behind.
    silent: Vec<Known>,
    /// By shard: what all live views have passed.
    passed_ns: Box<[u64; SHARDS]>,
    /// The view that was used last.
    last: usize,
    /// The time in which views were heard.
    elapsed: Duration,
    heard_at: Option<BootTime>,
    updated_at: Option<BootTime>,
}

impl Default for Views {
    fn default() -> Views {
        Views {
            known: Vec::new(),
            silent: Vec::new(),
            passed_ns: Box::new([0; SHARDS]),
            last: 0,
            elapsed: Duration::ZERO,
            heard_at: None,
            updated_at: None,
        }
    }
}

impl Views {
    /// The view of this stream and interface. If another one is replaced, `taken` is called.
    pub(crate) fn get(
        &mut self,
        now: BootTime,
        stream: &Stream,
        interface: u8,
        taken: impl FnOnce(View),
    ) -> Option<View> {
        self.heard(now);
        let is_it = |known: &Known| known.interface == interface && known.stream == *stream;
        let index = match self.known.get(self.last) {
            Some(known) if is_it(known) => self.last,
            _ => match self.known.iter().position(is_it) {
                Some(index) => index,
                None => self.add(stream, interface, taken)?,
            },
        };
        self.last = index;
        self.known[index].heard_at = self.elapsed;
        Some(View(index as u8))
    }

    fn add(&mut self, stream: &Stream, interface: u8, taken: impl FnOnce(View)) -> Option<usize> {
        let (heard_at, elapsed) = (self.elapsed, self.elapsed);
        // What the stream has announced holds for the view.
        let announced = self.silent.iter().find(|known| known.stream == *stream);
        let announced = announced.or_else(|| self.known.iter().find(|known| known.stream == *stream));
        let known = Known {
            stream: stream.clone(),
            interface,
            passed_ns: announced.map_or_else(|| Box::new([0; SHARDS]), |announced| announced.passed_ns.clone()),
            captured_ns: Box::new([0; SHARDS]),
            heard_at,
            ended: false,
            counters: ViewCounters::default(),
        };
        self.silent.retain(|silent| silent.stream != *stream);
        if self.known.len() < MAX_VIEWS {
            self.known.push(known);
            return Some(self.known.len() - 1);
        }
        let index = self.known.iter().position(|known| !known.is_live(elapsed))?;
        self.known[index] = known;
        taken(View(index as u8));
        Some(index)
    }

    /// The latest capture time that the view has shown in a shard.
    pub(crate) fn watermark(&self, view: View, shard: Shard) -> u64 {
        self.known[usize::from(view.0)].captured_ns[shard.index()]
    }

    /// The view has shown a record of this capture time.
    pub(crate) fn captured(&mut self, view: View, shard: Shard, captured_at_ns: u64) {
        let known = &mut self.known[usize::from(view.0)];
        let captured_ns = &mut known.captured_ns[shard.index()];
        *captured_ns = captured_at_ns.max(*captured_ns);
        let passed_ns = &mut known.passed_ns[shard.index()];
        *passed_ns = captured_at_ns.max(*passed_ns);
    }

    pub(crate) fn count_duplicate(&mut self, view: View) {
        self.known[usize::from(view.0)].counters.duplicates += 1;
    }

    pub(crate) fn count_only(&mut self, view: View) {
        self.known[usize::from(view.0)].counters.only += 1;
    }

    /// What all live views have passed.
    pub(crate) fn passed(&self, shard: Shard) -> u64 {
        self.passed_ns[shard.index()]
    }

    pub(crate) fn passed_index(&self, shard: usize) -> u64 {
        self.passed_ns[shard]
    }

    /// Takes an announcement.
    pub(crate) fn announced(&mut self, now: BootTime, progress: &StreamProgress, margin_ns: u64) {
        self.heard(now);
        let StreamProgress { stream, ended, clock_ns, behind } = progress;
        let (elapsed, mut is_known) = (self.elapsed, false);
        for known in self.known.iter_mut().chain(&mut self.silent).filter(|known| known.stream == *stream) {
            is_known = true;
            known.heard_at = elapsed;
            known.ended = *ended;
            known.follow(*clock_ns, *behind, margin_ns);
        }
        if is_known || *ended {
            return;
        }
        self.silent.retain(|known| known.is_live(elapsed));
        if self.silent.len() < MAX_VIEWS {
            let mut silent = Known {
                stream: stream.clone(),
                interface: 0,
                passed_ns: Box::new([0; SHARDS]),
                captured_ns: Box::new([0; SHARDS]),
                heard_at: elapsed,
                ended: false,
                counters: ViewCounters::default(),
            };
            silent.follow(*clock_ns, *behind, margin_ns);
            self.silent.push(silent);
        }
    }

    /// Computes what all live views have passed, if it is due.
    pub(crate) fn update(&mut self, now: BootTime) {
        if self.updated_at.is_some_and(|at| now - at < UPDATE_EVERY) {
            return;
        }
        self.updated_at = Some(now);
        let mut least = [u64::MAX; SHARDS];
        for known in self.known.iter().chain(&self.silent).filter(|known| known.is_live(self.elapsed)) {
            for (least, passed) in least.iter_mut().zip(known.passed_ns.iter()) {
                *least = (*passed).min(*least);
            }
        }
        for (passed, least) in self.passed_ns.iter_mut().zip(least) {
            // Without a live view nothing is passed. A new view may be behind the others.
            *passed = if least == u64::MAX { *passed } else { least };
        }
    }

    /// The shards have another owner, or had one.
    pub(crate) fn forget_shards(&mut self, shards: u64) {
        for index in (0..SHARDS).filter(|index| shards >> index & 1 == 1) {
            self.passed_ns[index] = 0;
            for known in self.known.iter_mut().chain(&mut self.silent) {
                (known.passed_ns[index], known.captured_ns[index]) = (0, 0);
            }
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Stream, u8, ViewCounters)> {
        self.known.iter().map(|known| {
            let counters = ViewCounters { is_live: known.is_live(self.elapsed), ..known.counters };
            (&known.stream, known.interface, counters)
        })
    }

    pub(crate) fn live(&self) -> usize {
        self.known.iter().filter(|known| known.is_live(self.elapsed)).count()
    }

    fn heard(&mut self, now: BootTime) {
        if let Some(at) = self.heard_at {
            self.elapsed += (now - at).min(COUNTED_SILENCE);
        }
        self.heard_at = Some(now.max(self.heard_at.unwrap_or(now)));
    }
}

impl Known {
    fn is_live(&self, elapsed: Duration) -> bool {
        !self.ended && elapsed.saturating_sub(self.heard_at) < LIVE
    }

    /// Everything up to the announced clock has been received, of the shards that are not behind.
    fn follow(&mut self, clock_ns: Option<u64>, behind: u64, margin_ns: u64) {
        let Some(clock_ns) = clock_ns else { return };
        let until_ns = clock_ns.saturating_sub(margin_ns);
        for (shard, passed_ns) in self.passed_ns.iter_mut().enumerate() {
            if behind >> shard & 1 == 0 {
                *passed_ns = until_ns.max(*passed_ns);
            }
        }
    }
}
