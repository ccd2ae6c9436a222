//! Counts, average, bands and what lies outside of them, as a picture: SVG by hand, no scripts.

use std::fmt::Write as _;

use super::{Row, time};
use crate::detect::{Key, Settings, Verdict};

const WIDTH: f64 = 1200.0;
const HEIGHT: f64 = 460.0;
const LEFT: f64 = 76.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 64.0;
const BOTTOM: f64 = 48.0;

/// So many groups of intervals are told apart: more cannot be seen.
const MAX_GROUPS: usize = 4000;

/// About so many times stand below.
const MAX_TICKS: u64 = 8;

/// What may lie between two of them, seconds.
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

/// Draws a series.
pub(super) fn draw(key: Key, rows: &[Row], settings: &Settings) -> String {
    let rows = thinned(rows);
    let highest = rows.iter().map(|row| (row.count as f64).max(row.bands.map_or(0.0, |bands| bands.upper)));
    let (step, top) = scale(highest.fold(1.0, f64::max));
    let (first, last) = (rows.first().map_or(0, |row| row.start_ns), rows.last().map_or(1, |row| row.start_ns));
    let span = last.saturating_sub(first).max(1) as f64;
    let x = |ns: u64| LEFT + (ns.saturating_sub(first) as f64 / span) * (WIDTH - LEFT - RIGHT);
    let y = |value: f64| TOP + (1.0 - (value / top).clamp(0.0, 1.0)) * (HEIGHT - TOP - BOTTOM);
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
    grid(&mut out, (step, top), (first, last), &x, &y);
    band_areas(&mut out, &rows, &x, &y);
    line(&mut out, "average", rows.iter().map(|row| row.bands.map(|bands| (x(row.start_ns), y(bands.average)))));
    line(&mut out, "count", rows.iter().map(|row| Some((x(row.start_ns), y(row.count as f64)))));
    for row in &rows {
        let (class, says) = match row.verdict {
            Verdict::High => ("high", "over the upper band"),
            Verdict::Low => ("low", "under the lower band"),
            _ => continue,
        };
        let _ = writeln!(
            out,
            "<circle class=\"{class}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"4.5\"><title>{}: {}, {says}</title></circle>",
            x(row.start_ns),
            y(row.count as f64),
            time(row.start_ns),
            row.count
        );
    }
    out.push_str("</svg>\n");
    out
}

fn seconds(settings: &Settings) -> f64 {
    settings.interval_ns as f64 / 1e9
}

/// Of very many intervals those that matter: of each group the first, the lowest, the highest, and one over and one under the bands.
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

/// As short as it can be read beside a line: 1500, 20k, 3M.
fn short(value: f64) -> String {
    let units = [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")];
    match units.into_iter().find(|(least, _)| value >= *least) {
        _ if value >= 1e15 => format!("{value:e}"),
        Some((1e4, unit)) => format!("{}{unit}", value / 1e3),
        Some((least, unit)) => format!("{}{unit}", value / least),
        None => value.to_string(),
    }
}

/// Round times from the first to the last interval; the first itself where there is none.
fn ticks(first: u64, last: u64) -> Vec<u64> {
    const NS: u64 = 1_000_000_000;
    let fits = |step: &u64| last.saturating_sub(first) / (step * NS) < MAX_TICKS;
    let step = TICK_STEPS.into_iter().find(fits).unwrap_or(u64::MAX / NS) * NS;
    let ticks: Vec<u64> = (first.div_ceil(step)..=last / step).filter_map(|number| number.checked_mul(step)).collect();
    if ticks.is_empty() { vec![first] } else { ticks }
}

/// The distance of the lines of the grid, and the topmost of them: 1, 2 or 5 times a power of ten.
fn scale(highest: f64) -> (f64, f64) {
    let rough = highest / 5.0;
    let power = 10_f64.powf(rough.log10().floor());
    let step =
        [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power).into_iter().find(|step| *step >= rough).unwrap_or(rough);
    let step = step.max(1.0);
    (step, (highest / step).ceil() * step)
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

fn grid(
    out: &mut String,
    (step, top): (f64, f64),
    (first, last): (u64, u64),
    x: &impl Fn(u64) -> f64,
    y: &impl Fn(f64) -> f64,
) {
    // Five lines or so, however high the numbers are.
    for number in 0..=(top / step).round() as u32 {
        let value = f64::from(number) * step;
        let at = y(value);
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
    for ns in ticks(first, last) {
        let at = x(ns);
        let anchor = match at {
            ..110.0 => "start",
            1150.0.. => "end",
            _ => "middle",
        };
        let shown = time(ns);
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

/// The space between the bands, as far as there are any without a break.
fn band_areas(out: &mut String, rows: &[Row], x: &impl Fn(u64) -> f64, y: &impl Fn(f64) -> f64) {
    for run in rows.split(|row| row.bands.is_none()).filter(|run| !run.is_empty()) {
        let mut path = String::new();
        let upper = run.iter().filter_map(|row| Some((x(row.start_ns), y(row.bands?.upper))));
        let lower = run.iter().rev().filter_map(|row| Some((x(row.start_ns), y(row.bands?.lower_shown()))));
        for (index, (x, y)) in upper.chain(lower).enumerate() {
            let _ = write!(path, "{}{x:.1} {y:.1}", if index == 0 { "M" } else { "L" });
        }
        let _ = writeln!(out, "<path class=\"band\" d=\"{path}Z\"/>");
    }
}

fn line(out: &mut String, class: &str, points: impl Iterator<Item = Option<(f64, f64)>>) {
    let (mut path, mut is_open) = (String::new(), false);
    for point in points {
        let Some((x, y)) = point else {
            is_open = false;
            continue;
        };
        // A point that stands alone is a line of no length.
        let _ = if is_open { write!(path, "L{x:.1} {y:.1}") } else { write!(path, "M{x:.1} {y:.1}h0") };
        is_open = true;
    }
    if !path.is_empty() {
        let _ = writeln!(out, "<path class=\"{class}\" d=\"{path}\"/>");
    }
}
