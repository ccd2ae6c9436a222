//! The destinations: state, rate, queue, spool, last error.

use maud::{Markup, html};

use super::{
    Page, live,
    text::{bytes, duration, number, plural, rate},
};
use crate::model::{DestinationView, View};

/// The page.
pub(crate) fn page(view: &View) -> Markup {
    live(
        Page::Destinations,
        view,
        &html! {
            @if view.destinations.is_empty() {
                p {
                    "No destination is configured: set " code { "SEKIWAKE_SYSLOG_DESTINATIONS" } ", "
                    code { "SEKIWAKE_XFLOW_DESTINATIONS" } " or " code { "SEKIWAKE_TRAP_DESTINATIONS" }
                    ", such as " code { "udp://198.51.100.7:514" } ", and start the forwarder of that kind."
                }
            } @else {
                div.wide tabindex="0" role="region" aria-label="Table of destinations" {
                    table {
                        caption.hidden { "Destinations, those in trouble first" }
                        thead { tr {
                            th scope="col" { "Destination" } th scope="col" { "Group" } th scope="col" { "State" }
                            th.number scope="col" { "Sent" } th.number scope="col" { "Rate" }
                            th.number scope="col" { "Lost" } th scope="col" { "Reasons" }
                            th scope="col" { "Queue" } th scope="col" { "Spool" } th scope="col" { "Last error" }
                        } }
                        tbody { @for destination in &view.destinations { (row(destination)) } }
                    }
                }
            }
            @if !view.clients.is_empty() {
                h2 { "Not captured" }
                p { "Clients in no group have registered these destinations, and datagrams to them are not captured." }
                ul {
                    @for client in &view.clients {
                        li {
                            (client.client) ": "
                            @for destination in client.destinations.0.iter().take(64) { (destination) " " }
                            "(" (plural(client.left_alone_datagrams, "datagram")) ")"
                            @if client.ended { ", ended" }
                        }
                    }
                }
            }
        },
    )
}

fn row(destination: &DestinationView) -> Markup {
    let DestinationView { state, members, members_in_state, queue, .. } = destination;
    html! {
        tr.bad[destination.is_troubled()].old[destination.is_old] {
            th scope="row" {
                (destination.destination)
                @for address in &destination.addresses {
                    @if !destination.destination.as_str().contains(address.as_str()) { br; span.address { (address) } }
                }
            }
            td { (destination.group) }
            td {
                @if destination.is_old {
                    span.state.off { "no forwarder" }
                } @else {
                    span.state.up[state.as_str() == "up"].down[state.as_str() == "down"] { (state) }
                    " " (duration(destination.in_state))
                    @if members > &1 { " (" (members_in_state) " of " (members) " members)" }
                }
            }
            td.number { (number(destination.sent.total)) }
            td.number { (rate(destination.sent.rate)) }
            td.number { (number(destination.lost.total)) }
            td {
                @for (reason, count) in destination.dropped.nonzero() { span.pair { (reason) " " (number(count)) } " " }
                @if destination.filtered_out.total() > 0 {
                    span.pair.quiet { "filtered out " (number(destination.filtered_out.total())) }
                }
            }
            td { (number(queue.records)) @if queue.bytes > 0 { " (" (bytes(queue.bytes)) ")" } }
            td {
                @match destination.spool {
                    Some(spool) => {
                        (number(spool.datagrams)) " (" (bytes(spool.bytes)) ")"
                        @if spool.errors > 0 { " " strong { (plural(spool.errors, "error")) } }
                    }
                    None => "–",
                }
            }
            td.error {
                @match &destination.last_error {
                    Some(error) => {
                        (error.error) ", "
                        (duration(std::time::Duration::try_from_secs_f64(error.seconds_ago).unwrap_or_default())) " ago"
                    }
                    None => "–",
                }
            }
        }
    }
}
