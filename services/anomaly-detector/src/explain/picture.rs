//! Draws counts, average and bands as SVG, without scripts.
//!
//! Written by hand rather than with a plotting crate, because a picture consists of a few kinds of
//! elements and needs neither fonts nor image formats.

use std::{fmt::Write as _, time::Duration};

use sekiwake_record::WallTime;

use super::{Row, time};
use crate::detect::{Key, Settings, Verdict};

const WIDTH: f64 = 1200.0;
const HEIGHT: f64 = 460.0;
const LEFT: f64 = 76.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 64.0;
const BOTTOM: f64 = 48.0;

/// The most groups of intervals: more could not be distinguished.
const MAX_GROUPS: usize = 4000;

/// The most times below the time axis.
const MAX_TICKS: u64 = 8;

/// Distances between two of them, seconds.
const TICK_STEPS: [u64; 24] = [
    1,
    2,
    5,
    10,
    15,
    30,
    60,
    120,
    300,
    600,
    900,
    1800,
    3600,
    7200,
    10_800,
    21_600,
    43_200,
    86_400,
    172_800,
    604_800,
    2_592_000,
    7_776_000,
    31_536_000,
    315_360_000,
];

/// Range and grid of the axes.
struct Axes {
    /// Distance of the horizontal grid lines, messages.
    step: f64,
    /// The topmost grid line, messages.
    top: f64,
    /// First and last interval.
    first: WallTime,
    last: WallTime,
}

impl Axes {
    fn of(rows: &[Row]) -> Axes {
        let highest = rows.iter().map(|row| (row.count as f64).max(row.bands.map_or(0.0, |bands| bands.upper)));
        let highest = highest.fold(1.0, f64::max);
        let step = grid_step(highest);
        Axes {
            step,
            top: (highest / step).ceil() * step,
            first: rows.first().map_or(WallTime::EPOCH, |row| row.start),
            last: rows.last().map_or(WallTime::EPOCH, |row| row.start),
        }
    }

    fn x(&self, time: WallTime) -> f64 {
        let span = (self.last - self.first).max(Duration::from_nanos(1));
        LEFT + (time - self.first).div_duration_f64(span) * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, value: f64) -> f64 {
        TOP + (1.0 - (value / self.top).clamp(0.0, 1.0)) * (HEIGHT - TOP - BOTTOM)
    }
}

/// Draws a series.
pub(super) fn draw(key: Key, rows: &[Row], settings: &Settings) -> String {
    let rows = thinned(rows);
    let axes = Axes::of(&rows);
    let x = |time: WallTime| axes.x(time);
    let y = |value: f64| axes.y(value);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"13\" role=\"img\">\n\
         <style>\n\
         svg {{ background: #ffffff; color: #1f2933; --grid: #d9dee4; --band: #2f6fab; --count: #1f2933; --high: #c62828; --low: #b26a00; }}\n\
         @media (prefers-color-scheme: dark) {{ svg {{ background: #15191e; color: #e4e8ec; --grid: #333b44; --band: #6aa9e0; --count: #e4e8ec; --high: #ff7a70; --low: #ffb74d; }} }}\n\
         text {{ fill: currentColor; }} .grid {{ stroke: var(--grid); }} .band {{ fill: var(--band); opacity: 0.18; }}\n\
         .average {{ stroke: var(--band); fill: none; stroke-width: 1.5; stroke-dasharray: 5 3; }}\n\
         .count {{ stroke: var(--count); fill: none; stroke-width: 1.4; stroke-linejoin: round; stroke-linecap: round; }}\n\
         .high {{ fill: var(--high); }} .low {{ fill: var(--low); }} .soft {{ opacity: 0.75; }}\n\
         </style>\n\
         <title>Syslog, {key}: messages in {} s</title>\n",
        seconds(settings)
    );
    let bands = &settings.bands;
    let _ = writeln!(
        out,
        "<text x=\"{LEFT}\" y=\"24\" font-size=\"17\" font-weight=\"600\">Syslog, {key}: messages in {} s</text>\n\
         <text x=\"{LEFT}\" y=\"45\" class=\"soft\">average of {} intervals ± {} standard deviations, at least ± {} or {} %</text>",
        seconds(settings),
        bands.window,
        bands.sigma,
        bands.min_width,
        bands.min_width_percent
    );
    legend(&mut out);
    grid(&mut out, &axes);
    band_areas(&mut out, &rows, &axes);
    line(&mut out, "average", rows.iter().map(|row| row.bands.map(|bands| (x(row.start), y(bands.average)))));
    line(&mut out, "count", rows.iter().map(|row| Some((x(row.start), y(row.count as f64)))));
    for row in &rows {
        let (class, position) = match row.verdict {
            Verdict::High => ("high", "above the upper band"),
            Verdict::Low => ("low", "below the lower band"),
            _ => continue,
        };
        let _ = writeln!(
            out,
            "<circle class=\"{class}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"4.5\"><title>{}: {}, {position}</title></circle>",
            x(row.start),
            y(row.count as f64),
            time(row.start),
            row.count
        );
    }
    out.push_str("</svg>\n");
    out
}

fn seconds(settings: &Settings) -> f64 {
    settings.interval.as_secs_f64()
}

/// Thins out many intervals: of each group keeps the first, the lowest, the highest, and one above
/// and one below the bands.
pub(super) fn thinned(rows: &[Row]) -> Vec<Row> {
    let each = rows.len().div_ceil(MAX_GROUPS).max(1);
    let mut kept = Vec::new();
    for group in rows.chunks(each) {
        let mut indices = vec![0];
        indices.extend((0..group.len()).min_by_key(|&index| group[index].count));
        indices.extend((0..group.len()).max_by_key(|&index| group[index].count));
        indices.extend(group.iter().position(|row| row.verdict == Verdict::High));
        indices.extend(group.iter().position(|row| row.verdict == Verdict::Low));
        indices.sort_unstable();
        indices.dedup();
        kept.extend(indices.into_iter().map(|index| group[index]));
    }
    kept
}

/// A number as an axis label: 1500, 20k, 3M.
fn short(value: f64) -> String {
    let units = [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")];
    match units.into_iter().find(|(least, _)| value >= *least) {
        _ if value >= 1e15 => format!("{value:e}"),
        Some((1e4, unit)) => format!("{}{unit}", value / 1e3),
        Some((least, unit)) => format!("{}{unit}", value / least),
        None => value.to_string(),
    }
}

/// Round times from the first to the last interval; the first interval if no round time is in the
/// range.
fn ticks(first: WallTime, last: WallTime) -> Vec<WallTime> {
    const NS: u64 = 1_000_000_000;
    let fits = |step: &u64| (last - first).as_secs() / step < MAX_TICKS;
    let step = TICK_STEPS.into_iter().find(fits).unwrap_or(u64::MAX / NS) * NS;
    let numbers = first.as_nanos().div_ceil(step)..=last.as_nanos() / step;
    let ticks: Vec<WallTime> =
        numbers.filter_map(|number| number.checked_mul(step)).map(WallTime::from_nanos).collect();
    if ticks.is_empty() { vec![first] } else { ticks }
}

/// The distance of the grid lines: 1, 2 or 5 times a power of ten.
fn grid_step(highest: f64) -> f64 {
    let rough = highest / 5.0;
    let power = 10_f64.powf(rough.log10().floor());
    let step =
        [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power).into_iter().find(|step| *step >= rough).unwrap_or(rough);
    step.max(1.0)
}

fn legend(out: &mut String) {
    let items = [
        ("<line class=\"count\" x1=\"0\" x2=\"22\" y1=\"-4\" y2=\"-4\"/>", "count", 82.0),
        ("<line class=\"average\" x1=\"0\" x2=\"22\" y1=\"-4\" y2=\"-4\"/>", "average", 92.0),
        ("<rect class=\"band\" x=\"0\" y=\"-11\" width=\"22\" height=\"13\"/>", "bands", 88.0),
        ("<circle class=\"high\" cx=\"11\" cy=\"-4\" r=\"4.5\"/>", "high", 72.0),
        ("<circle class=\"low\" cx=\"11\" cy=\"-4\" r=\"4.5\"/>", "low", 54.0),
    ];
    let mut at = WIDTH - RIGHT - items.iter().map(|(_, _, width)| width).sum::<f64>();
    for (mark, name, width) in items {
        let _ = writeln!(out, "<g transform=\"translate({at} 24)\">{mark}<text x=\"28\" y=\"0\">{name}</text></g>");
        at += width;
    }
}

fn grid(out: &mut String, axes: &Axes) {
    // About five lines, regardless of the range.
    for number in 0..=(axes.top / axes.step).round() as u32 {
        let value = f64::from(number) * axes.step;
        let at = axes.y(value);
        let _ = writeln!(
            out,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            WIDTH - RIGHT,
            LEFT - 8.0,
            at + 4.5,
            short(value)
        );
    }
    for tick in ticks(axes.first, axes.last) {
        let at = axes.x(tick);
        let anchor = match at {
            ..110.0 => "start",
            1150.0.. => "end",
            _ => "middle",
        };
        let shown = time(tick);
        let (date, clock) = shown.split_once('T').unwrap_or((&shown, ""));
        let _ = writeln!(
            out,
            "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{:.1}\" y2=\"{:.1}\"/>\
             <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{clock}</text>\
             <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\" class=\"soft\" font-size=\"11\">{date}</text>",
            HEIGHT - BOTTOM,
            HEIGHT - BOTTOM + 5.0,
            HEIGHT - BOTTOM + 20.0,
            HEIGHT - BOTTOM + 35.0
        );
    }
}

/// The areas between the bands, one per unbroken run of them.
fn band_areas(out: &mut String, rows: &[Row], axes: &Axes) {
    for run in rows.split(|row| row.bands.is_none()).filter(|run| !run.is_empty()) {
        let mut path = String::new();
        let upper = run.iter().filter_map(|row| Some((axes.x(row.start), axes.y(row.bands?.upper))));
        let lower = run.iter().rev().filter_map(|row| Some((axes.x(row.start), axes.y(row.bands?.lower_shown()))));
        for (index, (x, y)) in upper.chain(lower).enumerate() {
            let _ = write!(path, "{}{x:.1} {y:.1}", if index == 0 { "M" } else { "L" });
        }
        let _ = writeln!(out, "<path class=\"band\" d=\"{path}Z\"/>");
    }
}

fn line(out: &mut String, class: &str, points: impl Iterator<Item = Option<(f64, f64)>>) {
    let mut path = String::new();
    let mut is_open = false;
    for point in points {
        let Some((x, y)) = point else {
            is_open = false;
            continue;
        };
        // An isolated point is a line of zero length.
        let _ = if is_open { write!(path, "L{x:.1} {y:.1}") } else { write!(path, "M{x:.1} {y:.1}h0") };
        is_open = true;
    }
    if !path.is_empty() {
        let _ = writeln!(out, "<path class=\"{class}\" d=\"{path}\"/>");
    }
}
