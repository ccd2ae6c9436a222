//! Input of `explain`: counts, or stored messages, which are counted here.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fs::File,
    io::{self, BufRead, BufReader, Cursor, Read},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use jiff::Timestamp;
use sekiwake_archive::{LineFormat, Lines, captured_at_of};
use sekiwake_record::WallTime;
use sekiwake_runtime::print_message;

use crate::detect::{Key, Settings};

/// Bytes examined to distinguish counts from messages.
const BEGINNING: usize = 4096;

/// The number of series that are not sources: the total and the severities.
const SERIES_WITHOUT_SOURCES: usize = 10;

/// The longest line of counts, bytes.
const MAX_LINE: u64 = 4096;

/// Counts by series and interval.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) series: BTreeMap<Key, BTreeMap<u64, u64>>,
    first: Option<u64>,
    last: u64,
    /// Intervals of all series together.
    intervals: u64,
}

impl Counts {
    pub(super) fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// The first and the last interval.
    pub(super) fn span(&self) -> (u64, u64) {
        (self.first.unwrap_or(0), self.last)
    }

    /// Adds to an interval. Fails if there are too many intervals, because the input may be endless
    /// and memory is not.
    fn add(&mut self, key: Key, interval: u64, count: u64) -> anyhow::Result<()> {
        let first = self.first.map_or(interval, |first| first.min(interval));
        let last = self.last.max(interval);
        if last - first >= super::MAX_INTERVALS {
            bail!(
                "{} intervals from the first to the last, expected at most {}",
                last - first + 1,
                super::MAX_INTERVALS
            );
        }
        self.first = Some(first);
        self.last = last;
        match self.series.entry(key).or_default().entry(interval) {
            Entry::Occupied(mut sum) => *sum.get_mut() = sum.get().saturating_add(count),
            Entry::Vacant(place) => {
                place.insert(count);
                self.intervals += 1;
            }
        }
        if self.intervals > super::MAX_INTERVALS {
            bail!("{} intervals in all series together, expected at most {}", self.intervals, super::MAX_INTERVALS);
        }
        Ok(())
    }
}

/// Reads all files in order.
pub(super) fn read(files: &[PathBuf], settings: &Settings) -> anyhow::Result<Counts> {
    let mut counts = Counts::default();
    for path in files {
        let shown = path.display().to_string();
        let reader: Box<dyn Read> = match path == Path::new("-") {
            true => Box::new(io::stdin().lock()),
            false => Box::new(File::open(path).with_context(|| format!("cannot open {shown}"))?),
        };
        read_one(reader, settings, &mut counts).with_context(|| format!("cannot explain {shown}"))?;
    }
    Ok(counts)
}

pub(super) fn read_one(mut reader: impl Read, settings: &Settings, counts: &mut Counts) -> anyhow::Result<()> {
    let mut beginning = Vec::new();
    reader.by_ref().take(BEGINNING as u64).read_to_end(&mut beginning)?;
    let is_stored = beginning.starts_with(&[0x28, 0xb5, 0x2f, 0xfd])
        || beginning.starts_with(b"{")
        || captured_at_of(LineFormat::Text, &beginning).is_some()
            && beginning.iter().take(200).filter(|&&byte| byte == b' ').count() > 3;
    let whole = Cursor::new(beginning).chain(reader);
    match is_stored {
        true => read_stored(whole, settings, counts),
        false => read_counts(BufReader::new(whole), settings, counts),
    }
}

fn read_stored(reader: impl Read, settings: &Settings, counts: &mut Counts) -> anyhow::Result<()> {
    let mut lines = Lines::read(reader)?;
    let mut skipped = 0_u64;
    while let Some((number, message)) = lines.next_line()? {
        let Some(message) = message else {
            skipped += 1;
            continue;
        };
        let interval = settings.interval_of(WallTime::from_nanos(message.captured_at_ns));
        let severity = || message.priority().map_or(8, |priority| priority.severity());
        let total = settings.total.then_some(Key::Total);
        let severity = settings.severities.then(|| Key::Severity(severity()));
        let source = settings.sources.then(|| Key::Source(message.source.to_canonical()));
        for key in [total, severity, source].into_iter().flatten() {
            counts.add(key, interval, 1).with_context(|| format!("line {number}"))?;
        }
        if counts.series.len() > settings.max_sources.saturating_add(SERIES_WITHOUT_SOURCES) {
            bail!(
                "line {number}: too many sources, expected at most {} (SEKIWAKE_ANOMALY_SOURCES)",
                settings.max_sources
            );
        }
    }
    if skipped > 0 {
        print_message(format_args!("sekiwake-anomaly-detector: skipped {skipped} lines that are not messages"));
    }
    Ok(())
}

/// One number per line, or a time and a number.
fn read_counts(mut reader: impl BufRead, settings: &Settings, counts: &mut Counts) -> anyhow::Result<()> {
    let mut line = Vec::new();
    let mut number = 0_u64;
    let mut next = counts.first.map_or(0, |_| counts.last + 1);
    let mut is_first = true;
    loop {
        line.clear();
        if reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        number += 1;
        let text = std::str::from_utf8(&line).with_context(|| format!("line {number} is not UTF-8 text"))?.trim();
        if line.len() as u64 >= MAX_LINE {
            bail!("line {number} is too long for a count");
        }
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        let fields: Vec<&str> = text
            .split(|character: char| character == ',' || character == ';' || character.is_whitespace())
            .filter(|field| !field.is_empty())
            .collect();
        let (interval, count) = match fields[..] {
            [count] => (Some(next), count_of(count)),
            [time, count] => (interval_of(time, settings), count_of(count)),
            _ => (None, None),
        };
        let (Some(interval), Some(count)) = (interval, count) else {
            // A table heading contains no number, not even an invalid one such as NaN.
            let is_heading =
                fields.iter().all(|field| field.parse::<f64>().is_err() && field.parse::<Timestamp>().is_err());
            if std::mem::take(&mut is_first) && is_heading {
                continue;
            }
            let shown: String = text.chars().take(60).collect();
            bail!("line {number}: {shown:?}, expected a count, or a time and a count");
        };
        next = interval + 1;
        is_first = false;
        counts.add(Key::Total, interval, count).with_context(|| format!("line {number}"))?;
    }
}

/// A count, also in floating-point notation.
fn count_of(text: &str) -> Option<u64> {
    if let Ok(count) = text.parse::<u64>() {
        return Some(count);
    }
    let count: f64 = text.parse().ok()?;
    (count.is_finite() && (0.0..=1e15).contains(&count)).then(|| count.round() as u64)
}

fn interval_of(text: &str, settings: &Settings) -> Option<u64> {
    let seconds = text.parse::<f64>().ok().filter(|seconds| seconds.is_finite() && (0.0..=1.7e10).contains(seconds));
    let ns = match seconds {
        Some(seconds) => (seconds * 1e9) as u64,
        None => u64::try_from(text.parse::<Timestamp>().ok()?.as_nanosecond()).ok()?,
    };
    Some(settings.interval_of(WallTime::from_nanos(ns)))
}
