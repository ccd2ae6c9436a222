//! `explain`: what the detector would have said, for those who tune its settings.

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
};

use anyhow::{Context, bail};
use jiff::Timestamp;
use sekiwake_settings::Environment;
use serde_json::json;

use crate::{
    detect::{Bands, Key, Series, Settings, Verdict},
    settings::read_detecting,
};
use input::Counts;

/// The most intervals that are looked at.
const MAX_INTERVALS: u64 = 1_000_000;

/// What to explain. How it is judged is said by `SEKIWAKE_ANOMALY_*`, as for the service, and by options that take their place.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// Files with stored syslog (JSON lines or text, plain or .zst), or with counts: a number a line, or a time and a number; - for standard input
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Seconds of an interval
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=3600))]
    interval: Option<u64>,
    /// Intervals in the window
    #[arg(long, value_parser = clap::value_parser!(u32).range(2..=1000))]
    window: Option<u32>,
    /// Standard deviations to either band
    #[arg(long)]
    sigma: Option<f64>,
    /// Messages to either band at least
    #[arg(long)]
    min_width: Option<f64>,
    /// The same in percent of the average
    #[arg(long)]
    min_width_percent: Option<f64>,
    /// Intervals that make an alarm, and that end it
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    consecutive: Option<u32>,
    /// What is counted apart: total, severity, source
    #[arg(long, value_parser = ["total", "severity", "source"])]
    by: Option<String>,
    /// JSON lines instead of a table
    #[arg(long)]
    json: bool,
    /// Only intervals outside of the bands
    #[arg(long)]
    anomalies: bool,
    /// Draws the first series as well
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// One interval of one series, judged.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    pub(crate) start_ns: u64,
    pub(crate) count: u64,
    pub(crate) bands: Option<Bands>,
    pub(crate) verdict: Verdict,
    /// An alarm is on at the end of it.
    pub(crate) is_firing: bool,
}

/// Prints what the detector would have said.
///
/// # Errors
/// Settings, options or input that are none; output that cannot be written.
pub fn run(arguments: &Arguments, environment: &Environment) -> anyhow::Result<ExitCode> {
    let mut settings = sekiwake_settings::read(environment, read_detecting)?;
    apply(&mut settings, arguments)?;
    let counts = input::read(&arguments.files, &settings)?;
    if counts.is_empty() {
        bail!("there is nothing to explain: no counts and no messages");
    }
    let judged: Vec<(Key, Vec<Row>)> = judge(&settings, &counts)?;
    // Before the table: who reads that may stop early.
    if let (Some(path), Some((key, rows))) = (&arguments.svg, judged.first()) {
        let picture = picture::draw(*key, rows, &settings);
        fs::write(path, picture).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let mut out = BufWriter::new(io::stdout().lock());
    let written = match arguments.json {
        true => write_json(&mut out, &judged, arguments.anomalies),
        false => write_table(&mut out, &judged, arguments.anomalies, &settings),
    };
    match written.and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(ExitCode::SUCCESS),
        result => result?,
    }
    Ok(ExitCode::SUCCESS)
}

fn apply(settings: &mut Settings, arguments: &Arguments) -> anyhow::Result<()> {
    let number = |name: &str, value: Option<f64>, range: std::ops::RangeInclusive<f64>| match value {
        Some(value) if !range.contains(&value) => bail!("--{name} {value}: from {} to {}", range.start(), range.end()),
        value => Ok(value),
    };
    if let Some(seconds) = arguments.interval {
        settings.interval_ns = seconds * 1_000_000_000;
    }
    let bands = &mut settings.bands;
    bands.window = arguments.window.map_or(bands.window, |window| window as usize);
    bands.sigma = number("sigma", arguments.sigma, 0.1..=100.0)?.unwrap_or(bands.sigma);
    bands.min_width = number("min-width", arguments.min_width, 0.0..=1e12)?.unwrap_or(bands.min_width);
    let percent = number("min-width-percent", arguments.min_width_percent, 0.0..=1000.0)?;
    bands.min_width_percent = percent.unwrap_or(bands.min_width_percent);
    settings.consecutive = arguments.consecutive.unwrap_or(settings.consecutive);
    if let Some(by) = &arguments.by {
        (settings.total, settings.severities, settings.sources) = (by == "total", by == "severity", by == "source");
    }
    Ok(())
}

/// Judges every interval from the first to the last, as the service would have: with the same machine.
fn judge(settings: &Settings, counts: &Counts) -> anyhow::Result<Vec<(Key, Vec<Row>)>> {
    let (first, last) = counts.span();
    let intervals = last - first + 1;
    if intervals.saturating_mul(counts.series.len() as u64) > MAX_INTERVALS {
        bail!("{intervals} intervals of {} series: more than {MAX_INTERVALS} are not looked at", counts.series.len());
    }
    let judged = counts.series.iter().map(|(key, by_interval)| {
        let mut series = Series::default();
        let rows = (first..=last).map(|interval| {
            let count = by_interval.get(&interval).copied().unwrap_or(0);
            let how = (&settings.bands, settings.consecutive);
            let (bands, verdict) = series.judge(*key, how, (interval, settings.interval_ns), count);
            let start_ns = interval.saturating_mul(settings.interval_ns);
            Row { start_ns, count, bands, verdict, is_firing: series.is_firing() }
        });
        (*key, rows.collect())
    });
    Ok(judged.collect())
}

fn is_shown(row: &Row, anomalies: bool) -> bool {
    !anomalies || matches!(row.verdict, Verdict::High | Verdict::Low)
}

fn write_json(out: &mut impl Write, judged: &[(Key, Vec<Row>)], anomalies: bool) -> io::Result<()> {
    for (key, rows) in judged {
        for row in rows.iter().filter(|row| is_shown(row, anomalies)) {
            let line = json!({
                "start": time(row.start_ns),
                "series": key.to_string(),
                "count": row.count,
                "average": row.bands.map(|bands| bands.average),
                "lower": row.bands.map(|bands| bands.lower_shown()),
                "upper": row.bands.map(|bands| bands.upper),
                "verdict": name(row.verdict),
                "firing": row.is_firing,
            });
            writeln!(out, "{line}")?;
        }
    }
    Ok(())
}

fn write_table(
    out: &mut impl Write,
    judged: &[(Key, Vec<Row>)],
    anomalies: bool,
    settings: &Settings,
) -> io::Result<()> {
    let width = judged.iter().map(|(key, _)| key.to_string().len()).max().unwrap_or(5).max("series".len());
    let columns = ["count", "average", "lower", "upper"].map(|column| format!(" {column:>11}")).concat();
    writeln!(out, "{:<20}  {:<width$}{columns}  verdict", "begin", "series")?;
    let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
    for (key, rows) in judged {
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
            let alarm = if row.is_firing { "  alarm" } else { "" };
            writeln!(
                out,
                "{:<20}  {:<width$} {:>11} {average:>11} {lower:>11} {upper:>11}  {}{alarm}",
                time(row.start_ns),
                key.to_string(),
                row.count,
                name(row.verdict)
            )?;
        }
    }
    let of = |verdict: &str| sums.get(verdict).copied().unwrap_or(0);
    writeln!(
        out,
        "{} intervals of {} s: {} high, {} low, {} normal, {} warming up",
        sums.values().sum::<u64>(),
        settings.interval_ns as f64 / 1e9,
        of("high"),
        of("low"),
        of("normal"),
        of("warming up")
    )
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

pub(crate) fn time(ns: u64) -> String {
    // 64 bits of nanoseconds end in the year 2554, jiff's timestamps in 9999.
    Timestamp::from_nanosecond(i128::from(ns)).unwrap_or(Timestamp::MAX).strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
