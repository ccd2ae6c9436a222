//! Drawings as SVG. Colours and fonts are in the style sheet; every drawing has its text beside it.

use maud::{Markup, html};

use super::text::{duration, number, plural, rate};
use crate::model::{DestinationView, Flow, GroupView, Point, Presence, SeriesHistory, View};

/// The most boxes of a column; the rest is in the tables.
const MAX_ROWS: usize = 14;
const ROW: f64 = 66.0;
const BOX_HEIGHT: f64 = 48.0;
const WIDTH: f64 = 1240.0;
/// The space for the text of an edge.
const TEXT_WIDTH: f64 = 92.0;

/// A column of boxes: where it begins, and how wide it is.
#[derive(Clone, Copy)]
struct Column {
    x: f64,
    width: f64,
}

const CAPTURES: Column = Column { x: 0.0, width: 200.0 };
const BUS: Column = Column { x: 345.0, width: 130.0 };
const GROUPS: Column = Column { x: 620.0, width: 220.0 };
const DESTINATIONS: Column = Column { x: 985.0, width: 255.0 };

/// A box.
struct Node {
    title: String,
    detail: String,
    state: State,
}

/// How a box or an edge is drawn. Each also has another sign, for those who see no colours.
#[derive(Clone, Copy, PartialEq)]
enum State {
    Good,
    Bad,
    Off,
}

/// What flows between two boxes.
struct Edge {
    from: f64,
    to: f64,
    flow: Flow,
    /// Besides the rate.
    note: String,
    lost: Flow,
}

impl State {
    fn class(self) -> &'static str {
        match self {
            State::Good => "good",
            State::Bad => "bad",
            State::Off => "off",
        }
    }

    fn sign(self) -> &'static str {
        match self {
            State::Good => "●",
            State::Bad => "▲",
            State::Off => "○",
        }
    }
}

/// Captures, bus, groups and destinations, from left to right.
pub(super) fn flow(view: &View) -> Markup {
    let groups: Vec<&GroupView> = view.groups.iter().take(MAX_ROWS).collect();
    let destinations: Vec<&DestinationView> = view.destinations.iter().take(MAX_ROWS).collect();
    let captures = view.captures.len().min(MAX_ROWS);
    let rows = captures.max(groups.len()).max(destinations.len()).max(1);
    let height = rows as f64 * ROW + 34.0;
    let bus_y = center(0, 1, rows);
    html! {
        svg viewBox=(format!("0 0 {WIDTH} {height}")) role="img" aria-labelledby="flow-title" {
            title #flow-title { "Captures, bus, groups and destinations; the tables below have the same figures" }
            (heading(CAPTURES, "Captures", view.captures.len()))
            (heading(BUS, "Bus", 0))
            (heading(GROUPS, "Groups", view.groups.len()))
            (heading(DESTINATIONS, "Destinations", view.destinations.len()))
            @for (index, capture) in view.captures.iter().take(MAX_ROWS).enumerate() {
                @let y = center(index, captures, rows);
                @let edge = capture_edge(capture, y, bus_y);
                (edge.draw(CAPTURES, BUS))
                @let is_up = capture.interfaces.iter().all(|interface| interface.state.as_str() == "up");
                @let interfaces: Vec<&str> = capture.interfaces.iter().map(|interface| interface.name.as_str()).collect();
                (Node {
                    title: capture.name.0.clone(),
                    detail: interfaces.join(", "),
                    state: state(capture.presence, is_up),
                }.draw(CAPTURES, y))
            }
            @for (index, group) in groups.iter().enumerate() {
                @let y = center(index, groups.len(), rows);
                @let lag = group.lag.unwrap_or(0);
                (Edge {
                    from: bus_y,
                    to: y,
                    flow: group.handled,
                    note: if lag > 0 { format!("lag {}", number(lag)) } else { String::new() },
                    lost: group.lost,
                }.draw(BUS, GROUPS))
            }
            @for (index, destination) in destinations.iter().enumerate() {
                @if let Some(from) = groups.iter().position(|group| group.name == destination.group) {
                    (Edge {
                        from: center(from, groups.len(), rows),
                        to: center(index, destinations.len(), rows),
                        flow: destination.sent,
                        note: String::new(),
                        lost: destination.lost,
                    }.draw(GROUPS, DESTINATIONS))
                }
            }
            @for (index, group) in groups.iter().enumerate() {
                @let live = group.members.iter().filter(|member| member.presence.is_live()).count();
                @let detail = match live == group.members.len() {
                    true => plural(live as u64, "member"),
                    false => format!("{live} of {}", plural(group.members.len() as u64, "member")),
                };
                @let is_good = live > 0 && group.unowned == 0 && group.store_error.is_none();
                (Node {
                    title: group.name.0.clone(),
                    detail: if group.unowned > 0 { format!("{detail}, {} unowned", group.unowned) } else { detail },
                    state: if is_good { State::Good } else { State::Bad },
                }.draw(GROUPS, center(index, groups.len(), rows)))
            }
            @for (index, destination) in destinations.iter().enumerate() {
                @let waiting = destination.queue.records.saturating_add(destination.spool.map_or(0, |spool| spool.datagrams));
                @let waits = if waiting > 0 { format!(", {} queued", number(waiting)) } else { String::new() };
                (Node {
                    title: destination.destination.0.clone(),
                    detail: match destination.is_old {
                        true => "no forwarder".to_owned(),
                        false => format!("{} {}{waits}", destination.state, duration(destination.in_state)),
                    },
                    state: match destination.state.as_str() {
                        _ if destination.is_old => State::Off,
                        "down" => State::Bad,
                        _ => State::Good,
                    },
                }.draw(DESTINATIONS, center(index, destinations.len(), rows)))
            }
            (bus_node(view).draw(BUS, bus_y))
        }
    }
}

fn bus_node(view: &View) -> Node {
    let proxies = view.services.iter().filter(|service| service.service.as_str() == "proxy");
    let has_proxy = proxies.filter(|service| service.presence.is_live()).count() > 0;
    let mut published = Flow::default();
    match view.is_on_jetstream {
        false => view.published.values().for_each(|flow| add(&mut published, flow)),
        true => {
            let interfaces = view.captures.iter().flat_map(|capture| &capture.interfaces);
            interfaces.flat_map(|interface| interface.published.values()).for_each(|flow| add(&mut published, flow));
        }
    }
    let is_live = view.bus.is_live() && (has_proxy || view.is_on_jetstream);
    Node {
        title: if view.is_on_jetstream { "NATS" } else { "proxy" }.to_owned(),
        detail: if is_live { rate(published.rate) } else { "silent".to_owned() },
        state: if is_live { State::Good } else { State::Bad },
    }
}

fn add(sum: &mut Flow, more: &Flow) {
    sum.total = sum.total.saturating_add(more.total);
    if let Some(more) = more.rate {
        sum.rate = Some(sum.rate.unwrap_or(0.0) + more);
    }
}

fn capture_edge(capture: &crate::model::CaptureView, from: f64, to: f64) -> Edge {
    let mut flow = Flow::default();
    let mut lost = Flow::default();
    for interface in &capture.interfaces {
        interface.published.values().for_each(|more| add(&mut flow, more));
        add(&mut lost, &interface.lost);
    }
    add(&mut lost, &capture.lost);
    Edge { from, to, flow, note: String::new(), lost }
}

fn state(presence: Presence, is_good: bool) -> State {
    match presence {
        Presence::Live if is_good => State::Good,
        Presence::Stopped { .. } => State::Off,
        Presence::Live | Presence::Silent { .. } => State::Bad,
    }
}

/// The middle of a box; few boxes are spread over the rows of the longest column.
fn center(index: usize, count: usize, rows: usize) -> f64 {
    let step = ROW * rows as f64 / count.max(1) as f64;
    34.0 + step * (index as f64 + 0.5)
}

fn heading(column: Column, name: &str, count: usize) -> Markup {
    html! {
        text.heading x=(column.x) y="16" {
            (name) @if count > MAX_ROWS { " (" (MAX_ROWS) " of " (count) ")" }
        }
    }
}

impl Node {
    fn draw(&self, column: Column, y: f64) -> Markup {
        let most = (column.width / 7.6) as usize;
        html! {
            g class=(format!("node {}", self.state.class())) {
                title { (self.title) ": " (self.detail) }
                rect x=(column.x) y=(y - BOX_HEIGHT / 2.0) width=(column.width) height=(BOX_HEIGHT) rx="6" {}
                text x=(column.x + 10.0) y=(y - 4.0) { (shortened(&self.title, most)) }
                text.detail x=(column.x + 10.0) y=(y + 14.0) {
                    tspan.sign { (self.state.sign()) } " " (shortened(&self.detail, most))
                }
            }
        }
    }
}

impl Edge {
    fn draw(&self, left: Column, right: Column) -> Markup {
        let (x1, x2) = (left.x + left.width, right.x);
        let (y1, y2) = (self.from, self.to);
        // At the end where the boxes of the edges differ.
        let at_right = left.x != CAPTURES.x;
        // Level where the text stands.
        let level = if at_right { x2 - TEXT_WIDTH } else { x1 + TEXT_WIDTH };
        let (a, b) = if at_right { (x1, level) } else { (level, x2) };
        let bend = (b - a) / 2.0;
        let path =
            format!("M{x1:.0} {y1:.1}H{a:.0}C{:.0} {y1:.1} {:.0} {y2:.1} {b:.0} {y2:.1}H{x2:.0}", a + bend, b - bend);
        let per_second = self.flow.rate.unwrap_or(0.0);
        // A line ten times as busy is 1.5 pixels wider.
        let width: f64 = if per_second > 0.0 { (1.0 + 1.5 * f64::log10(1.0 + per_second)).min(9.0) } else { 1.0 };
        let is_losing = self.lost.rate.is_some_and(|rate| rate > 0.0);
        let class = match (is_losing, per_second > 0.0) {
            (true, _) => "edge bad",
            (false, true) => "edge good",
            (false, false) => "edge off",
        };
        let (x, y, anchor) = if at_right { (x2 - 8.0, y2, "end") } else { (x1 + 8.0, y1, "start") };
        html! {
            path class=(class) d=(path) stroke-width=(format!("{width:.1}")) {}
            text.flow x=(x) y=(y - 8.0) text-anchor=(anchor) {
                (rate(self.flow.rate)) @if !self.note.is_empty() { " · " (self.note) }
            }
            @if self.lost.total > 0 {
                text.lost x=(x) y=(y + 17.0) text-anchor=(anchor) {
                    "▲ " @if is_losing { (rate(self.lost.rate)) " lost" } @else { (number(self.lost.total)) " lost earlier" }
                }
            }
        }
    }
}

/// The text, or its beginning and an ellipsis.
fn shortened(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        None => text.to_owned(),
        Some(_) => text.chars().take(most.saturating_sub(1)).chain(['…']).collect(),
    }
}

/// A series and its bands over time.
pub(super) fn chart(name: &str, history: &SeriesHistory) -> Markup {
    const HEIGHT: f64 = 150.0;
    const LEFT: f64 = 60.0;
    let points = &history.points;
    let (Some(first), Some(last)) = (points.front(), points.back()) else { return html! {} };
    let highest = |point: &Point| point.bands.map_or(0.0, |(_, upper)| upper).max(point.count.unwrap_or(0.0));
    let top = points.iter().map(highest);
    let top = top.fold(1.0, f64::max) * 1.1;
    let since_first = |start: i64| start as f64 - first.start as f64;
    let span = since_first(last.start).max(1.0);
    let x = |start: i64| LEFT + since_first(start) / span * (WIDTH - LEFT - 10.0);
    let y = |count: f64| 8.0 + (1.0 - count.max(0.0) / top) * (HEIGHT - 16.0);
    let line = |points: &[(f64, f64)]| {
        let texts: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        texts.join(" ")
    };
    let counts: Vec<(f64, f64)> = points.iter().filter_map(|point| Some((x(point.start), y(point.count?)))).collect();
    let upper = points.iter().filter_map(|point| Some((x(point.start), y(point.bands?.1))));
    let lower = points.iter().rev().filter_map(|point| Some((x(point.start), y(point.bands?.0))));
    let band: Vec<(f64, f64)> = upper.chain(lower).collect();
    let unusual = points.iter().filter(|point| matches!(point.verdict.as_str(), "high" | "low"));
    html! {
        svg.chart viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) role="img" aria-label=(format!(
            "{name}: {} intervals, the last with {:.0} messages", points.len(), last.count.unwrap_or(0.0)
        )) {
            @for fraction in [0.0, 0.5, 1.0] {
                @let count = top / 1.1 * fraction;
                line.grid x1=(LEFT) x2=(WIDTH - 10.0) y1=(format!("{:.1}", y(count))) y2=(format!("{:.1}", y(count))) {}
                text.axis x=(LEFT - 6.0) y=(format!("{:.1}", y(count) + 4.0)) text-anchor="end" {
                    (number(count.round() as u64))
                }
            }
            @if band.len() > 2 { polygon.band points=(line(&band)) {} }
            polyline.count points=(line(&counts)) {}
            @for point in unusual {
                circle.unusual cx=(format!("{:.1}", x(point.start))) cy=(format!("{:.1}", y(point.count.unwrap_or(0.0)))) r="4" {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_shortened_between_characters() {
        assert_eq!(shortened("abc", 3), "abc");
        assert_eq!(shortened("äöüß", 3), "äö…");
    }
}
