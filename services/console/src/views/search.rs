//! The search of stored messages.

use maud::{Markup, html};

use super::{Page, frame, text::plural};
use crate::search::{Found, Query};

/// The page. It is not refreshed, because a search costs the storers something.
pub(crate) fn page(storers: &[String], query: &Query, found: Option<&Found>) -> Markup {
    frame(
        "Search",
        Some(Page::Search),
        false,
        &html! {
            h1 { "Search" }
            @if storers.is_empty() {
                p {
                    "No storer is configured: set " code { "SEKIWAKE_CONSOLE_STORERS" } " to the admin addresses of "
                    "storers, such as " code { "127.0.0.1:9605" } "."
                }
            } @else {
                (form(query))
                @if let Some(found) = found { (results(found)) } @else {
                    p { "Stored syslog of " (plural(storers.len() as u64, "storer")) ", the newest message first." }
                }
            }
        },
    )
}

fn form(query: &Query) -> Markup {
    let severities = ["", "emerg", "alert", "crit", "err", "warning", "notice", "info", "debug"];
    html! {
        form method="get" action=(Page::Search.path()) {
            label { "Text" input name="text" value=(query.value("text")); }
            label { "Source" input name="source" value=(query.value("source")) placeholder="10.0.0.0/8"; }
            label {
                "Severity at least"
                select name="severity" {
                    @for severity in severities {
                        option value=(severity) selected[severity == query.value("severity")] {
                            @if severity.is_empty() { "any" } @else { (severity) }
                        }
                    }
                }
            }
            label { "From" input name="from" value=(query.value("from")) placeholder="-1h"; }
            label { "To" input name="to" value=(query.value("to")) placeholder="now"; }
            button type="submit" { "Search" }
        }
    }
}

fn results(found: &Found) -> Markup {
    html! {
        @for (storer, error) in &found.failures {
            p.notice.bad role="alert" { (storer) ": " (error) }
        }
        p role="status" {
            (plural(found.messages.len() as u64, "message")) " of " (plural(found.storers as u64, "storer"))
            @if found.is_limited { "; there may be more: narrow the search" } "."
        }
        @if !found.messages.is_empty() {
            div.wide tabindex="0" role="region" aria-label="Table of messages" {
                table.rows {
                    caption.hidden { "Messages, the newest first" }
                    thead { tr {
                        th scope="col" { "Time" } th scope="col" { "Source" } th scope="col" { "Severity" }
                        th scope="col" { "Message" }
                    } }
                    tbody {
                        @for message in &found.messages {
                            tr {
                                td { time datetime=(message.captured_at) { (message.captured_at) } }
                                td { (message.source) }
                                td {
                                    @if let (Some(facility), Some(severity)) = (&message.facility, &message.severity) {
                                        (facility) "." (severity)
                                    }
                                }
                                td {
                                    @match (&message.payload, &message.payload_base64) {
                                        (Some(payload), _) => (payload),
                                        (None, Some(bytes)) => { "(base64) " (bytes) }
                                        (None, None) => "",
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}
