//! The anomaly detectors: what fires, and each series with its bands.

use maud::{Markup, html};

use super::{
    Page, drawing, live,
    text::{presence, wall},
};
use crate::model::{DetectorView, SeriesHistory, View};

/// The page.
pub(crate) fn page(view: &View) -> Markup {
    live(
        Page::Anomalies,
        view,
        &html! {
            @if view.detectors.is_empty() {
                p {
                    "No anomaly detector is running: start " code { "sekiwake-anomaly-detector" }
                    ". It needs nothing but the bus."
                }
            }
            @for detector in &view.detectors { (section(detector, view)) }
        },
    )
}

fn section(detector: &DetectorView, view: &View) -> Markup {
    let DetectorView { group, member, phase, firing, series, interval_seconds, .. } = detector;
    html! {
        section {
            h2 { (group) " · " (member) }
            p {
                (presence(detector.presence, view.now)) ", " (phase)
                @if *interval_seconds > 0.0 { ", intervals of " (format!("{interval_seconds} s")) }
            }
            @if phase.as_str() == "counting" {
                @if firing.is_empty() {
                    p.verdict.good { strong { "No alarm." } }
                } @else {
                    div.verdict.bad {
                        strong { "Alarms" }
                        ul {
                            @for event in firing.iter().take(50) {
                                li { @for (name, value) in event { span.pair { (name) " " (value) } " " } }
                            }
                        }
                    }
                }
                @if series.is_empty() { p { "No interval has been counted yet." } }
                @for (name, history) in series { (chart(name, history)) }
            }
        }
    }
}

fn chart(name: &str, history: &SeriesHistory) -> Markup {
    let last = history.points.back();
    html! {
        figure {
            figcaption {
                strong { (name) }
                @if let Some(point) = last {
                    ": "
                    @match point.count { Some(count) => (format!("{count:.0}")), None => "incomplete count" }
                    " in the interval from "
                    (wall(std::time::Duration::from_secs(point.start.max(0) as u64)))
                    @if let Some((lower, upper)) = point.bands {
                        ", between " (format!("{lower:.0}")) " and " (format!("{upper:.0}")) " expected"
                    }
                    @match point.verdict.as_str() {
                        "high" | "low" => { " – " strong.bad { (point.verdict) } }
                        "warm_up" => " – the window is not full yet",
                        _ => {}
                    }
                }
            }
            (drawing::chart(name, history))
        }
    }
}
