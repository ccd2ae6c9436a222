//! The sources of records: those that send most, new ones, and silent ones.

use std::{cmp::Reverse, net::IpAddr};

use maud::{Markup, html};

use super::{
    Page, live,
    text::{duration, moment, number, plural, rate},
};
use crate::{
    model::{Moment, View},
    watch::{SILENT_AFTER, Source, Sources},
};

/// How many sources a table lists.
const LISTED: usize = 50;

type Listed<'a> = Vec<(&'a IpAddr, &'a Source)>;

/// The page.
pub(crate) fn page(view: &View, sources: &Sources) -> Markup {
    let now = view.now;
    let mut top: Listed<'_> = sources.sources.iter().filter(|(_, source)| !is_silent(source, now)).collect();
    top.sort_by_key(|(address, source)| (Reverse((source.rate * 1e3) as u64), Reverse(source.total()), **address));
    let mut silent: Listed<'_> = sources.sources.iter().filter(|(_, source)| is_silent(source, now)).collect();
    silent.sort_by_key(|(address, source)| (Reverse(source.last_at.elapsed), **address));
    // Those seen in the first minute may have been there before.
    let is_new = |source: &Source| source.first_at.since(sources.began_at) > SILENT_AFTER;
    let mut new: Listed<'_> = sources.sources.iter().filter(|(_, source)| is_new(source)).collect();
    new.sort_by_key(|(address, source)| (Reverse(source.first_at.elapsed), **address));
    live(
        Page::Sources,
        view,
        &html! {
            p role="status" {
                (plural(sources.sources.len() as u64, "source")) ". Counting began at " (moment(sources.began_at))
                " with the records of the minute before, and ends 15 minutes after this page is closed."
            }
            @if sources.others > 0 {
                p.notice { (plural(sources.others, "record")) " of further sources, for which there is no room." }
            }
            @if sources.sources.is_empty() { p { "No record has arrived yet: see the flow for the captures." } }
            @else { (table("Top", "top", &top, now)) }
            @if !silent.is_empty() { (table("Silent for a minute or longer", "silent", &silent, now)) }
            @if !new.is_empty() { (table("New", "new", &new, now)) }
        },
    )
}

fn is_silent(source: &Source, now: Moment) -> bool {
    now.since(source.last_at) > SILENT_AFTER
}

fn table(title: &str, id: &str, listed: &Listed<'_>, now: Moment) -> Markup {
    html! {
        section aria-labelledby=(id) {
            h2 id=(id) {
                (title) " (" (number(listed.len() as u64)) @if listed.len() > LISTED { ", " (LISTED) " shown" } ")"
            }
            div.wide tabindex="0" role="region" aria-label=(format!("Table: {title}")) {
                table {
                    caption.hidden { (title) }
                    thead { tr {
                        th scope="col" { "Source" } th.number scope="col" { "Rate" } th.number scope="col" { "Syslog" }
                        th.number scope="col" { "Flows" } th.number scope="col" { "Traps" }
                        th scope="col" { "First seen" } th scope="col" { "Last seen" }
                    } }
                    tbody {
                        @for (address, source) in listed.iter().take(LISTED) {
                            tr {
                                th scope="row" { (address) }
                                td.number { (rate(Some(source.rate))) }
                                @for records in source.records { td.number { (number(records)) } }
                                td { (moment(source.first_at)) }
                                td { (duration(now.since(source.last_at))) " ago" }
                            }
                        }
                    }
                }
            }
        }
    }
}
