//! The last hours of each series of the anomaly detectors, as far as the console has seen them.

use std::collections::{BTreeMap, VecDeque};

use super::{Identity, Moment, Text, part::Detector};

/// The most series.
const MAX_SERIES: usize = 128;
/// The most intervals of a series: six hours of one minute.
const MAX_POINTS: usize = 360;
/// When a series that is no longer sent is forgotten, seconds.
const FORGET_SECONDS: u64 = 6 * 3600;

/// The series of all detectors, by group and name.
#[derive(Debug, Default)]
pub(super) struct AllSeries {
    series: BTreeMap<(Text, Text), SeriesHistory>,
    /// The last closed interval of each group.
    closed: BTreeMap<Text, Interval>,
}

#[derive(Clone, Copy, Debug)]
struct Interval {
    start: i64,
    seconds: i64,
}

/// A series of a group of detectors.
#[derive(Clone, Debug, Default)]
pub struct SeriesHistory {
    /// Oldest first.
    pub points: VecDeque<Point>,
    changed_at: Moment,
}

/// An interval.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// Its start, seconds since 1970.
    pub start: i64,
    /// Messages, if they were counted completely.
    pub count: Option<f64>,
    /// The bands, once there are enough intervals.
    pub bands: Option<(f64, f64)>,
    /// The verdict.
    pub verdict: String,
}

impl AllSeries {
    pub(super) fn add(&mut self, identity: &Identity, detector: &Detector, now: Moment) {
        let group = identity.group.clone().unwrap_or_default();
        // Many series are a part of their own, which does not say which interval they are of.
        if detector.interval_seconds >= 1.0 {
            let seconds = detector.interval_seconds.min(86_400.0) as i64;
            let interval = Interval { start: detector.next_interval.saturating_sub(seconds), seconds };
            if self.closed.len() < MAX_SERIES || self.closed.contains_key(&group) {
                self.closed.insert(group.clone(), interval);
            }
        }
        let Some(Interval { start, seconds }) = self.closed.get(&group).copied() else { return };
        for (name, series) in &detector.series.0 {
            let key = (group.clone(), name.clone());
            if !self.series.contains_key(&key) && self.series.len() >= MAX_SERIES {
                continue;
            }
            let history = self.series.entry(key).or_default();
            history.changed_at = now;
            let last = history.points.back().map(|point| point.start);
            if last.is_some_and(|last| last >= start) {
                continue;
            }
            // The window ends with the last interval. It has those that were not seen.
            let window = &series.window.0;
            let before = window.len().saturating_sub(1);
            for (index, count) in window[..before].iter().enumerate() {
                let start = start.saturating_sub((before - index) as i64 * seconds);
                if last.is_none_or(|last| last < start) {
                    history.points.push_back(Point { start, count: Some(*count), bands: None, verdict: String::new() });
                }
            }
            let point = Point {
                start,
                count: series.count,
                bands: series.lower.zip(series.upper),
                verdict: verdict(&series.verdict),
            };
            history.points.push_back(point);
            while history.points.len() > MAX_POINTS {
                history.points.pop_front();
            }
        }
    }

    pub(super) fn expire(&mut self, now: Moment) {
        self.series.retain(|_, history| now.since(history.changed_at).as_secs() < FORGET_SECONDS);
        self.closed.retain(|group, _| self.series.keys().any(|(of, _)| of == group));
    }

    pub(super) fn of<'a>(&'a self, group: &'a Text) -> impl Iterator<Item = (&'a str, &'a SeriesHistory)> {
        self.series.iter().filter(move |((of, _), _)| of == group).map(|((_, name), series)| (name.as_str(), series))
    }
}

/// The verdict is a text, or an object with one member.
fn verdict(value: &serde_json::Value) -> String {
    let name = value.as_str().or_else(|| value.as_object()?.keys().next().map(String::as_str));
    Text::from(name.unwrap_or_default()).0
}
