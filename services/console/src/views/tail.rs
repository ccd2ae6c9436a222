//! Live records, decoded.

use maud::{Markup, html};
use sekiwake_record::Kind;

use super::{
    Page, live,
    text::{number, plural, wall},
};
use crate::{
    model::View,
    watch::{Filter, Tail},
};

/// What there is to show.
pub(crate) enum Shown<'a> {
    /// The filter is not valid.
    Wrong(&'a str),
    /// Too many tails are open.
    Busy,
    /// The tail.
    Tail(&'a Tail),
}

/// The page.
pub(crate) fn page(view: &View, filter: &Filter, shown: &Shown<'_>) -> Markup {
    live(
        Page::Tail,
        view,
        &html! {
            (form(filter))
            @match shown {
                Shown::Wrong(wrong) => p.notice.bad role="status" { (wrong) },
                Shown::Busy => p.notice.bad role="status" {
                    "Four other tails are open. Close one of them, and this one begins within a few seconds."
                },
                Shown::Tail(tail) => (rows(tail)),
            }
        },
    )
}

fn form(filter: &Filter) -> Markup {
    let kind = filter.kind.map_or("all", Kind::as_str);
    html! {
        form method="get" action=(Page::Tail.path()) {
            label {
                "Kind"
                select name="kind" {
                    @for (value, name) in [
                        ("syslog", "syslog"), ("xflow", "flows"), ("snmptrap", "traps"), ("all", "all kinds"),
                    ] {
                        option value=(value) selected[value == kind] { (name) }
                    }
                }
            }
            label { "Source" input name="source" value=(filter.source) placeholder="10.0.0.0/8"; }
            label { "Text" input name="text" value=(filter.text) maxlength="200"; }
            button type="submit" { "Show" }
        }
    }
}

fn rows(tail: &Tail) -> Markup {
    html! {
        p role="status" {
            @if tail.rows.is_empty() {
                @if tail.received == 0 { "No record has arrived yet." }
                @else { "None of " (plural(tail.received, "record")) " matches." }
            } @else {
                "The last " (tail.rows.len()) " rows, the newest first."
            }
        }
        @if tail.skipped > 0 {
            p.notice { (plural(tail.skipped, "row")) " skipped: at most 100 per second are shown. Narrow the filter." }
        }
        @if tail.lost > 0 {
            p.notice { (plural(tail.lost, "record")) " lost: the console did not keep up with the bus." }
        }
        @if let Some(note) = tail.note { p.notice { (note) } }
        div.wide tabindex="0" role="region" aria-label="Table of records" {
            table.rows {
                caption.hidden { "Records, the newest first" }
                thead { tr {
                    th scope="col" { "Time" } th scope="col" { "Kind" } th scope="col" { "Source" }
                    th scope="col" { "Content" }
                } }
                tbody {
                    @for row in tail.rows.iter().rev() {
                        tr {
                            td { (wall(row.captured_at)) }
                            td { (row.kind.as_str()) }
                            td { (row.source) }
                            td { (row.text) }
                        }
                    }
                }
            }
        }
        p.asof { (number(tail.received)) " records received since the page was opened." }
    }
}
