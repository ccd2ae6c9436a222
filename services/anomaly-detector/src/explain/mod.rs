//! `explain`: prints what the detector would have reported, for tuning its settings.

mod input;
mod picture;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fs,
    io::{self, BufWriter, Write},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, bail};
use jiff::Timestamp;
use sekiwake_record::WallTime;
use sekiwake_settings::Environment;
use serde_json::json;

use crate::{
    detect::{Alarm, Bands, Event, EventKind, EventState, Interval, Key, Reason, Series, Settings, Verdict},
    settings::read_detection,
};
use input::Counts;

/// The most intervals evaluated.
const MAX_INTERVALS: u64 = 1_000_000;

/// Characters of the longest verdict.
const VERDICT_WIDTH: usize = 10;

/// Options of `explain`. They override the settings `SEKIWAKE_ANOMALY_*` of the service.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// Files with stored syslog (JSON lines or text, plain or .zst), or with counts: one number per
    /// line, or a time and a number; - for standard input
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Length of an interval, in seconds
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    interval: Option<u64>,
    /// Intervals in the window
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(2..=1000))]
    window: Option<u32>,
    /// Distance of the bands from the average, in standard deviations
    #[arg(long, value_name = "NUMBER")]
    sigma: Option<f64>,
    /// Minimum distance of the bands from the average, in messages
    #[arg(long, value_name = "MESSAGES")]
    min_width: Option<f64>,
    /// Minimum distance of the bands, as a percentage of the average
    #[arg(long, value_name = "PERCENT")]
    min_width_percent: Option<f64>,
    /// Consecutive intervals that raise or resolve an alarm
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=1000))]
    consecutive: Option<u32>,
    /// Consecutive intervals on the same side after which a notification is sent
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=1000))]
    notify_consecutive: Option<u32>,
    /// Series to evaluate
    #[arg(long, value_name = "SERIES", value_parser = ["total", "severity", "source"])]
    by: Option<String>,
    /// Print JSON lines instead of a table
    #[arg(long)]
    json: bool,
    /// Print only intervals outside the bands
    #[arg(long)]
    anomalies: bool,
    /// Draw the first series as an SVG file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// One evaluated interval of a series.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    pub(crate) start: WallTime,
    pub(crate) count: u64,
    pub(crate) bands: Option<Bands>,
    pub(crate) verdict: Verdict,
    /// The alarm that is firing after it.
    pub(crate) alarm: Option<Alarm>,
    /// The alarm that it ended.
    pub(crate) ended: Option<Ended>,
}

/// The end of an alarm.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended {
    kind: EventKind,
    reason: Reason,
}

/// The evaluated intervals of a series.
#[derive(Debug)]
pub(crate) struct Evaluated {
    pub(crate) key: Key,
    pub(crate) rows: Vec<Row>,
}

/// Prints what the detector would have reported.
pub fn run(arguments: &Arguments, environment: &Environment) -> anyhow::Result<ExitCode> {
    let mut settings = sekiwake_settings::read(environment, read_detection)?;
    apply(&mut settings, arguments)?;
    let counts = input::read(&arguments.files, &settings)?;
    if counts.is_empty() {
        bail!("nothing to explain: the input has no counts and no messages");
    }
    let evaluated = evaluate(&settings, &counts)?;
    // Before the table, because its reader may close the pipe early.
    if let (Some(path), Some(first)) = (&arguments.svg, evaluated.first()) {
        let picture = picture::draw(first.key, &first.rows, &settings);
        fs::write(path, picture).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let mut out = BufWriter::new(io::stdout().lock());
    let written = match arguments.json {
        true => write_json(&mut out, &evaluated, arguments.anomalies, &settings),
        false => write_table(&mut out, &evaluated, arguments.anomalies, &settings),
    };
    match written.and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(ExitCode::SUCCESS),
        result => result?,
    }
    Ok(ExitCode::SUCCESS)
}

fn apply(settings: &mut Settings, arguments: &Arguments) -> anyhow::Result<()> {
    let number = |name: &str, value: Option<f64>, range: std::ops::RangeInclusive<f64>| match value {
        Some(value) if !range.contains(&value) => {
            bail!("--{name} {value}: expected {} to {}", range.start(), range.end())
        }
        value => Ok(value),
    };
    if let Some(seconds) = arguments.interval {
        settings.interval = Duration::from_secs(seconds);
    }
    let bands = &mut settings.bands;
    bands.window = arguments.window.map_or(bands.window, |window| window as usize);
    bands.sigma = number("sigma", arguments.sigma, 0.1..=100.0)?.unwrap_or(bands.sigma);
    bands.min_width = number("min-width", arguments.min_width, 0.0..=1e12)?.unwrap_or(bands.min_width);
    let percent = number("min-width-percent", arguments.min_width_percent, 0.0..=1000.0)?;
    bands.min_width_percent = percent.unwrap_or(bands.min_width_percent);
    settings.consecutive = arguments.consecutive.unwrap_or(settings.consecutive);
    settings.notify_consecutive = arguments.notify_consecutive.unwrap_or(settings.notify_consecutive);
    if let Some(by) = &arguments.by {
        settings.total = by == "total";
        settings.severities = by == "severity";
        settings.sources = by == "source";
    }
    Ok(())
}

/// Evaluates every interval from the first to the last, with the same code as the service.
fn evaluate(settings: &Settings, counts: &Counts) -> anyhow::Result<Vec<Evaluated>> {
    let (first, last) = counts.span();
    let intervals = last - first + 1;
    if intervals.saturating_mul(counts.series.len() as u64) > MAX_INTERVALS {
        bail!("{intervals} intervals of {} series, expected at most {MAX_INTERVALS} in all", counts.series.len());
    }
    let criteria = settings.criteria();
    let evaluated = counts.series.iter().map(|(key, by_interval)| {
        let mut series = Series::default();
        let rows = (first..=last).map(|interval| {
            let count = by_interval.get(&interval).copied().unwrap_or(0);
            let interval = Interval { number: interval, length: settings.interval };
            let evaluation = series.evaluate(*key, &criteria, interval, count);
            Row {
                start: interval.start(),
                count,
                bands: evaluation.bands,
                verdict: evaluation.verdict,
                alarm: series.firing_alarm().copied(),
                ended: series.take_announcements().find_map(|event| Ended::from_event(&event)),
            }
        });
        Evaluated { key: *key, rows: rows.collect() }
    });
    Ok(evaluated.collect())
}

impl Ended {
    fn from_event(event: &Event) -> Option<Ended> {
        let reason = event.reason.filter(|_| event.state == EventState::Resolved)?;
        Some(Ended { kind: event.kind, reason })
    }
}

fn is_shown(row: &Row, anomalies: bool) -> bool {
    !anomalies || matches!(row.verdict, Verdict::High | Verdict::Low)
}

fn write_json(out: &mut impl Write, evaluated: &[Evaluated], anomalies: bool, settings: &Settings) -> io::Result<()> {
    let start_of = |interval: u64| time(Interval { number: interval, length: settings.interval }.start());
    for Evaluated { key, rows } in evaluated {
        for row in rows.iter().filter(|row| is_shown(row, anomalies)) {
            let line = json!({
                "start": time(row.start),
                "series": key.to_string(),
                "count": row.count,
                "average": row.bands.map(|bands| bands.average),
                "lower": row.bands.map(|bands| bands.lower_shown()),
                "upper": row.bands.map(|bands| bands.upper),
                "verdict": name(row.verdict),
                "alarm": row.alarm.map(|alarm| json!({
                    "kind": EventKind::from(alarm.side),
                    "since": start_of(alarm.since),
                    "notified": alarm.is_notified,
                    "lower": alarm.usual.bands.lower_shown(),
                    "upper": alarm.usual.bands.upper,
                })),
                "ended": row.ended.map(|ended| json!({ "kind": ended.kind, "reason": ended.reason })),
            });
            writeln!(out, "{line}")?;
        }
    }
    Ok(())
}

fn write_table(out: &mut impl Write, evaluated: &[Evaluated], anomalies: bool, settings: &Settings) -> io::Result<()> {
    let width = evaluated.iter().map(|series| series.key.to_string().len()).max().unwrap_or(5).max("series".len());
    let columns = ["count", "average", "lower", "upper"].map(|column| format!(" {column:>11}")).concat();
    writeln!(out, "{:<20}  {:<width$}{columns}  {:<VERDICT_WIDTH$}  alarm", "start", "series", "verdict")?;
    let mut has_alarm = false;
    let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
    for Evaluated { key, rows } in evaluated {
        for row in rows {
            *sums.entry(name(row.verdict)).or_default() += 1;
            if !is_shown(row, anomalies) {
                continue;
            }
            let number = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.1}"));
            let [average, lower, upper] = [
                number(row.bands.map(|bands| bands.average)),
                number(row.bands.map(|bands| bands.lower_shown())),
                number(row.bands.map(|bands| bands.upper)),
            ];
            has_alarm |= row.alarm.is_some();
            let alarm = describe(row, settings);
            let gap = if alarm.is_empty() { "" } else { "  " };
            let verdict = name(row.verdict);
            let width_of_verdict = if alarm.is_empty() { 0 } else { VERDICT_WIDTH };
            writeln!(
                out,
                "{:<20}  {:<width$} {:>11} {average:>11} {lower:>11} {upper:>11}  {verdict:<width_of_verdict$}{gap}{alarm}",
                time(row.start),
                key.to_string(),
                row.count
            )?;
        }
    }
    if has_alarm {
        writeln!(
            out,
            "The verdict compares the count with the bands of the row. An alarm recovers when counts are inside its usual range again."
        )?;
    }
    let sum = |verdict: &str| sums.get(verdict).copied().unwrap_or(0);
    writeln!(
        out,
        "{} intervals of {} s: {} high, {} low, {} normal, {} warming up",
        sums.values().sum::<u64>(),
        settings.interval.as_secs_f64(),
        sum("high"),
        sum("low"),
        sum("normal"),
        sum("warming up")
    )
}

/// The alarm that a row ended, and the one that fires after it.
fn describe(row: &Row, settings: &Settings) -> String {
    let ended = row.ended.map(|Ended { kind, reason }| {
        let reason = match reason {
            Reason::Recovered => "recovered",
            Reason::NewLevel => "new level",
            Reason::Forgotten => "forgotten",
            Reason::Reset => "reset",
        };
        format!("{} ended: {reason}", kind.as_str())
    });
    let firing = row.alarm.map(|alarm| {
        let since = time(Interval { number: alarm.since, length: settings.interval }.start());
        let bands = alarm.usual.bands;
        let notified = if alarm.is_notified { "notified" } else { "not notified" };
        let kind = EventKind::from(alarm.side).as_str();
        format!("{kind} since {since}, {notified}, usual {:.1} to {:.1}", bands.lower_shown(), bands.upper)
    });
    ended.into_iter().chain(firing).collect::<Vec<_>>().join("; ")
}

fn name(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::WarmUp { .. } => "warming up",
        Verdict::Normal => "normal",
        Verdict::High => "high",
        Verdict::Low => "low",
        Verdict::Unknown => "unknown",
    }
}

pub(crate) fn time(time: WallTime) -> String {
    // 64 bits of nanoseconds end in the year 2554, jiff's timestamps in 9999.
    Timestamp::from_nanosecond(i128::from(time.as_nanos()))
        .unwrap_or(Timestamp::MAX)
        .strftime("%Y-%m-%dT%H:%M:%SZ")
        .to_string()
}
