//! Records that somebody watches: tails and sources. What a page needs of them, without a socket.
//!
//! A watch exists while its page is open: each request for the page renews it. Nothing is
//! subscribed to otherwise. The number of watches, rows and sources is bounded, and what exceeds a
//! bound is counted.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    net::IpAddr,
    time::Duration,
};

use sekiwake_record::{Kind, Prefix};

use crate::model::Moment;

/// A page that has not been asked for this long is closed.
const TAIL_OPEN: Duration = Duration::from_secs(5);
/// A browser that shows a page asks every second, or less often in the background.
const LOOKING: Duration = Duration::from_secs(10);
/// Sources are counted for longer, so that silent ones are noticed.
const SOURCES_OPEN: Duration = Duration::from_secs(15 * 60);
/// The most tails.
const MAX_TAILS: usize = 4;
/// The most rows that are kept for a page.
pub(crate) const MAX_ROWS: usize = 200;
/// The most rows that are taken per second: more cannot be read.
const ROWS_PER_SECOND: u32 = 100;
/// The longest row, bytes.
const MAX_ROW: usize = 2000;
/// The most sources; the rest is counted together.
const MAX_SOURCES: usize = 20_000;
/// How long a rate is measured.
const RATE_WINDOW: Duration = Duration::from_secs(10);
/// A source that sends nothing for longer is silent.
pub(crate) const SILENT_AFTER: Duration = Duration::from_secs(60);

/// What a tail shows. Equal filters share a tail.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Filter {
    /// One kind, or all.
    pub(crate) kind: Option<Kind>,
    /// An address or prefix, as typed; empty for any.
    pub(crate) source: String,
    /// A text that the row contains, in lower case; empty for any.
    pub(crate) text: String,
}

/// What is watched.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Watched {
    Tail(Filter),
    Sources,
}

/// All watches.
#[derive(Debug, Default)]
pub(crate) struct Watches {
    tails: BTreeMap<Filter, Tail>,
    sources: Option<Sources>,
    /// The last request for any page.
    asked_at: Option<Moment>,
}

/// A live tail.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tail {
    /// The newest last.
    pub(crate) rows: VecDeque<Row>,
    /// Rows that are not shown, because there were too many.
    pub(crate) skipped: u64,
    /// Records that did not reach the console.
    pub(crate) lost: u64,
    /// Records that the subscription has brought.
    pub(crate) received: u64,
    /// Why there are no templates of flows, if there are none.
    pub(crate) note: Option<&'static str>,
    prefix: Option<Prefix>,
    asked_at: Moment,
    second: u64,
    in_second: u32,
}

/// A row of a tail.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Row {
    pub(crate) captured_at: Duration,
    pub(crate) kind: Kind,
    pub(crate) source: IpAddr,
    pub(crate) text: String,
}

/// The sources of records.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sources {
    pub(crate) sources: HashMap<IpAddr, Source>,
    /// Records of sources for which there was no room.
    pub(crate) others: u64,
    pub(crate) began_at: Moment,
    asked_at: Moment,
    window_began_at: Moment,
}

/// A source.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Source {
    /// Records, by kind.
    pub(crate) records: [u64; 3],
    pub(crate) first_at: Moment,
    pub(crate) last_at: Moment,
    /// Records in the present window.
    present: u64,
    /// Records per second in the last complete window.
    pub(crate) rate: f64,
}

impl Filter {
    /// Of the parameters of a request; an error says what would be accepted.
    pub(crate) fn parse<'a>(parameters: impl Iterator<Item = (&'a str, &'a [u8])>) -> Result<Filter, String> {
        let mut filter = Filter { kind: Some(Kind::Syslog), ..Filter::default() };
        for (name, value) in parameters {
            let value = String::from_utf8_lossy(value);
            let value = value.trim();
            match name {
                "kind" if value == "all" => filter.kind = None,
                "kind" => {
                    let kind = Kind::ALL.into_iter().find(|kind| kind.as_str() == value);
                    filter.kind = Some(kind.ok_or("kind: expected syslog, xflow, snmptrap or all")?);
                }
                "source" if value.is_empty() => filter.source.clear(),
                "source" => {
                    let prefix: Result<Prefix, ()> = value.parse();
                    let prefix = prefix.map_err(|()| "source: expected an address or prefix such as 10.0.0.0/8")?;
                    filter.source = prefix.to_string();
                }
                "text" if value.len() > 200 => return Err("text: expected at most 200 bytes".to_owned()),
                "text" => filter.text = value.to_lowercase(),
                _ => {}
            }
        }
        Ok(filter)
    }
}

impl Watches {
    /// A page is asked for.
    pub(crate) fn ask(&mut self, now: Moment) {
        self.asked_at = Some(now);
    }

    /// Whether somebody looks at a page.
    pub(crate) fn is_looked_at(&self, now: Moment) -> bool {
        self.asked_at.is_some_and(|at| now.since(at) <= LOOKING)
    }

    /// The tail of this filter, opened if it is not open yet; `None` if too many are open.
    pub(crate) fn tail(&mut self, filter: &Filter, now: Moment) -> Option<&Tail> {
        self.expire(now);
        if !self.tails.contains_key(filter) {
            if self.tails.len() >= MAX_TAILS {
                return None;
            }
            let prefix = filter.source.parse().ok();
            self.tails.insert(filter.clone(), Tail { prefix, ..Tail::default() });
        }
        let tail = self.tails.get_mut(filter)?;
        tail.asked_at = now;
        Some(tail)
    }

    /// The sources, counted from now on if they were not yet.
    pub(crate) fn sources(&mut self, now: Moment) -> &Sources {
        self.expire(now);
        let begun = || Sources { began_at: now, window_began_at: now, ..Sources::default() };
        let sources = self.sources.get_or_insert_with(begun);
        sources.asked_at = now;
        sources
    }

    fn expire(&mut self, now: Moment) {
        self.tails.retain(|_, tail| now.since(tail.asked_at) <= TAIL_OPEN);
        self.sources.take_if(|sources| now.since(sources.asked_at) > SOURCES_OPEN);
    }

    /// What is watched now.
    pub(crate) fn wanted(&mut self, now: Moment) -> Vec<Watched> {
        self.expire(now);
        let tails = self.tails.keys().cloned().map(Watched::Tail);
        tails.chain(self.sources.as_ref().map(|_| Watched::Sources)).collect()
    }

    pub(crate) fn tail_mut(&mut self, filter: &Filter) -> Option<&mut Tail> {
        self.tails.get_mut(filter)
    }

    pub(crate) fn sources_mut(&mut self) -> Option<&mut Sources> {
        self.sources.as_mut()
    }
}

impl Tail {
    /// Whether records of this source are shown.
    pub(crate) fn selects(&self, source: IpAddr) -> bool {
        self.prefix.is_none_or(|prefix| prefix.contains(source))
    }

    /// Adds a row, if it matches and there is room in this second.
    pub(crate) fn add(&mut self, filter: &Filter, mut row: Row, now: Moment) {
        if !filter.text.is_empty() && !row.text.to_lowercase().contains(&filter.text) {
            return;
        }
        let second = now.elapsed.as_secs();
        if self.second != second {
            (self.second, self.in_second) = (second, 0);
        }
        if self.in_second >= ROWS_PER_SECOND {
            self.skipped += 1;
            return;
        }
        self.in_second += 1;
        if row.text.len() > MAX_ROW {
            row.text.truncate(row.text.floor_char_boundary(MAX_ROW));
            row.text.push('…');
        }
        self.rows.push_back(row);
        while self.rows.len() > MAX_ROWS {
            self.rows.pop_front();
        }
    }
}

impl Sources {
    /// Counts a record that was captured at `at`.
    pub(crate) fn add(&mut self, source: IpAddr, kind: Kind, at: Moment) {
        let has_room = self.sources.len() < MAX_SOURCES;
        let known = match self.sources.get_mut(&source) {
            Some(known) => known,
            None if has_room => {
                self.sources.entry(source).or_insert(Source { first_at: at, last_at: at, ..Source::default() })
            }
            None => {
                self.others += 1;
                return;
            }
        };
        known.records[kind.index()] += 1;
        // Older ones, with which the page begins, are of no window.
        if at.elapsed >= self.window_began_at.elapsed {
            known.present += 1;
        }
        if at.elapsed > known.last_at.elapsed {
            known.last_at = at;
        }
    }

    /// Ends the window of the rates when it is over.
    pub(crate) fn turn(&mut self, now: Moment) {
        let window = now.since(self.window_began_at);
        if window < RATE_WINDOW {
            return;
        }
        for source in self.sources.values_mut() {
            source.rate = std::mem::take(&mut source.present) as f64 / window.as_secs_f64();
        }
        self.window_began_at = now;
    }
}

impl Source {
    /// Records of all kinds.
    pub(crate) fn total(&self) -> u64 {
        self.records.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment { elapsed: Duration::from_secs(seconds), wall: Duration::from_secs(seconds) }
    }

    fn row(text: &str) -> Row {
        Row { captured_at: Duration::ZERO, kind: Kind::Syslog, source: [198, 51, 100, 7].into(), text: text.to_owned() }
    }

    fn filter(pairs: &[(&str, &str)]) -> Result<Filter, String> {
        Filter::parse(pairs.iter().map(|(name, value)| (*name, value.as_bytes())))
    }

    #[test]
    fn tail_takes_only_so_many_rows_per_second() {
        let mut watches = Watches::default();
        let wanted = filter(&[("text", "LINK")]).unwrap();
        watches.tail(&wanted, at(1)).unwrap();
        let tail = watches.tail_mut(&wanted).unwrap();
        for second in 1..=3 {
            for _ in 0..150 {
                tail.add(&wanted, row("%Link-3-UPDOWN"), at(second));
                tail.add(&wanted, row("%SYS-5"), at(second));
            }
        }
        assert_eq!((tail.rows.len(), tail.skipped), (MAX_ROWS, 150));
        tail.add(&wanted, row(&format!("link {}", "é".repeat(5000))), at(9));
        assert!(tail.rows.back().unwrap().text.len() <= MAX_ROW + 3);
    }

    #[test]
    fn tail_is_closed_when_nobody_asks() {
        let mut watches = Watches::default();
        let wanted = Filter::default();
        watches.tail(&wanted, at(1)).unwrap();
        assert_eq!(watches.wanted(at(6)), [Watched::Tail(wanted.clone())]);
        assert_eq!(watches.wanted(at(7)), []);
        for number in 0..MAX_TAILS {
            assert!(watches.tail(&Filter { text: number.to_string(), ..Filter::default() }, at(8)).is_some());
        }
        assert!(watches.tail(&wanted, at(8)).is_none());
        assert!(watches.tail(&wanted, at(20)).is_some());
    }

    #[test]
    fn sources_are_bounded_and_have_rates() {
        let mut watches = Watches::default();
        watches.sources(at(0));
        let sources = watches.sources_mut().unwrap();
        for number in 0..MAX_SOURCES as u32 + 5 {
            sources.add(IpAddr::V4(number.into()), Kind::Xflow, at(1));
        }
        for _ in 0..99 {
            sources.add(IpAddr::V4(7.into()), Kind::Syslog, at(3));
        }
        sources.turn(at(10));
        let source = sources.sources[&IpAddr::V4(7.into())];
        assert_eq!((source.total(), source.rate, source.last_at), (100, 10.0, at(3)));
        assert_eq!((sources.sources.len(), sources.others), (MAX_SOURCES, 5));
    }

    #[test]
    fn records_of_the_minute_before_are_no_rate() {
        let mut watches = Watches::default();
        watches.sources(at(100));
        let sources = watches.sources_mut().unwrap();
        let address = IpAddr::V4(7.into());
        for second in 40..110 {
            sources.add(address, Kind::Syslog, at(second));
        }
        sources.turn(at(110));
        assert_eq!((sources.sources[&address].total(), sources.sources[&address].rate), (70, 1.0));
    }

    #[test]
    fn filters_are_checked() {
        assert_eq!(filter(&[]).unwrap().kind, Some(Kind::Syslog));
        assert_eq!(filter(&[("kind", "all")]).unwrap().kind, None);
        assert_eq!(filter(&[("source", " 10.1.2.3/8 ")]).unwrap().source, "10.0.0.0/8");
        for wrong in [("kind", "other"), ("source", "host"), ("text", &"x".repeat(201))] {
            assert!(filter(&[wrong]).is_err(), "{wrong:?}");
        }
    }
}
