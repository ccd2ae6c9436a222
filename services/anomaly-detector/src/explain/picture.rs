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

/// About so many points are drawn: more cannot be seen.
const MAX_POINTS: usize = 4000;

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
         .count {{ stroke: var(--count); fill: none; stroke-width: 1.4; stroke-linejoin: round; }}\n\
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

/// Of very many intervals those that matter: of each group the first, and all that are outside of the bands.
fn thinned(rows: &[Row]) -> Vec<Row> {
    let every = rows.len().div_ceil(MAX_POINTS).max(1);
    let is_kept =
        |(index, row): &(usize, &Row)| index % every == 0 || matches!(row.verdict, Verdict::High | Verdict::Low);
    rows.iter().enumerate().filter(is_kept).map(|(_, row)| *row).collect()
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
        ("<rect class=\"band\" x=\"0\" y=\"-11\" width=\"22\" height=\"13\"/>", "bands", 82.0),
        ("<circle class=\"high\" cx=\"11\" cy=\"-4\" r=\"4.5\"/>", "high", 72.0),
        ("<circle class=\"low\" cx=\"11\" cy=\"-4\" r=\"4.5\"/>", "low", 40.0),
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
    let mut value = 0.0;
    while value <= top + step / 2.0 {
        let at = y(value);
        let _ = writeln!(
            out,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{value}</text>",
            WIDTH - RIGHT,
            LEFT - 8.0,
            at + 4.5
        );
        value += step;
    }
    const TICKS: u64 = 6;
    for tick in 0..=TICKS {
        let ns = first + (last.saturating_sub(first)) / TICKS * tick;
        let at = x(ns);
        let anchor = match tick {
            0 => "start",
            TICKS => "end",
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
        let _ = write!(path, "{}{x:.1} {y:.1}", if is_open { "L" } else { "M" });
        is_open = true;
    }
    if !path.is_empty() {
        let _ = writeln!(out, "<path class=\"{class}\" d=\"{path}\"/>");
    }
}
