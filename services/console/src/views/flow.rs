//! The first view: captures, bus, groups and destinations as a drawing, and what is lost where.

use maud::{Markup, html};

use super::{
    Page, drawing, live,
    text::{bytes, duration, moment, number, plural, presence, rate},
};
use crate::model::{BusState, CaptureView, Flow, GroupView, LossView, ServiceView, View};

/// The page.
pub(crate) fn page(view: &View) -> Markup {
    live(
        Page::Flow,
        view,
        &html! {
            (verdict(view))
            @if view.services.is_empty() {
                @if view.bus == BusState::Live { p { "No service sends status." } }
            } @else {
                div.drawing role="region" aria-label="Drawing of the flow" tabindex="0" { (drawing::flow(view)) }
                (losses(view))
                (captures(view))
                (groups(view))
                (services(view))
            }
        },
    )
}

/// One line that answers: is anything lost, and where?
fn verdict(view: &View) -> Markup {
    if view.services.is_empty() {
        return html! {};
    }
    let is_old = !view.bus.is_live();
    let losing: Vec<&LossView> = view.losses.iter().filter(|loss| loss.is_now).collect();
    let missing = view.services.iter().filter(|service| !service.presence.is_live()).count() as u64;
    let down = view.destinations.iter().filter(|destination| destination.state.as_str() == "down").count() as u64;
    let unowned = view.groups.iter().fold(0u64, |sum, group| sum.saturating_add(group.unowned));
    let silent = || view.services.iter().filter(|service| service.hides_losses());
    let is_good = losing.is_empty() && silent().next().is_none() && !is_old;
    html! {
        p.verdict.good[is_good].bad[!is_good && !is_old].old[is_old] role="status" {
            @if is_old {
                strong { "Losses unknown: no status is arriving." }
            } @else if losing.is_empty() && !is_good {
                strong { "Unknown: " }
                @for (index, service) in silent().take(3).enumerate() {
                    @if index > 0 { "; " }
                    strong { (service.service) " (" (service.member) ")" } " is "
                    (presence(service.presence, view.now))
                }
                @if silent().count() > 3 { "; and " (plural(silent().count() as u64 - 3, "more service")) }
                "."
            } @else if losing.is_empty() {
                strong { "Nothing is being lost." }
            } @else {
                strong { "Datagrams are being lost." } " "
                @for (index, loss) in losing.iter().take(3).enumerate() {
                    @if index > 0 { "; " }
                    (loss.service) @if !loss.place.is_empty() { " → " (loss.place) } ": " (loss.reason)
                }
                @if losing.len() > 3 { "; and " (plural(losing.len() as u64 - 3, "more place")) }
                "."
            }
            @if view.lost() > 0 { " " (number(view.lost())) " lost in all since the services started." }
        }
        @if down + missing + unowned > 0 {
            ul.troubles {
                @if down > 0 {
                    li { a href=(Page::Destinations.path()) { (plural(down, "destination")) " down" } }
                }
                @if missing > 0 { li { (plural(missing, "service")) " stopped or silent" } }
                @if unowned > 0 { li { (plural(unowned, "shard")) " without an owner" } }
            }
        }
    }
}

fn losses(view: &View) -> Markup {
    html! {
        section aria-labelledby="losses" {
            h2 #losses { "Losses" }
            @if view.losses.is_empty() {
                p { "No service has counted a loss since it started." }
            } @else {
                div.wide tabindex="0" role="region" aria-label="Table of losses" {
                    table {
                        caption.hidden { "Losses by place and reason" }
                        thead { tr {
                            th scope="col" { "Where" } th scope="col" { "Reason" } th.number scope="col" { "Lost" }
                            th.number scope="col" { "Rate" } th scope="col" { "Since" } th scope="col" { "Last" }
                        } }
                        tbody {
                            @for loss in view.losses.iter().take(100) {
                                tr.bad[loss.is_now] {
                                    th scope="row" {
                                        (loss.service) @if !loss.place.is_empty() { " → " (loss.place) }
                                    }
                                    td { (loss.reason) }
                                    td.number { (number(loss.lost.total)) }
                                    td.number { (rate(loss.lost.rate)) }
                                    td { @match loss.began_at {
                                        Some(at) => (moment(at)), None => "before the console started",
                                    } }
                                    td { @match loss.last_at {
                                        Some(at) => { (duration(view.now.since(at))) " ago" }, None => "–",
                                    } }
                                }
                            }
                        }
                    }
                }
                @if view.losses.len() > 100 { p { "And " (plural(view.losses.len() as u64 - 100, "more place")) "." } }
            }
        }
    }
}

fn captures(view: &View) -> Markup {
    html! {
        section aria-labelledby="captures" {
            h2 #captures { "Captures" }
            @if view.captures.is_empty() {
                p { "No capture is running: nothing is taken off the wire. Start " code { "sekiwake-capture" } "." }
            } @else {
                div.wide tabindex="0" role="region" aria-label="Table of captures" {
                    table {
                        caption.hidden { "Captures and their interfaces" }
                        thead { tr {
                            th scope="col" { "Capture" } th scope="col" { "Interface" } th scope="col" { "State" }
                            th.number scope="col" { "Packets" } th.number scope="col" { "Rate" }
                            th scope="col" { "Published" } th.number scope="col" { "Lost" } th scope="col" { "Not published" }
                        } }
                        tbody { @for capture in &view.captures { (capture_rows(capture, view)) } }
                    }
                }
            }
        }
    }
}

fn capture_rows(capture: &CaptureView, view: &View) -> Markup {
    html! {
        @for interface in &capture.interfaces {
            tr {
                th scope="row" { (capture.name) " " (presence(capture.presence, view.now)) }
                td { (interface.name) }
                td {
                    span.state.up[interface.state.as_str() == "up"].down[interface.state.as_str() != "up"] {
                        (interface.state)
                    }
                    " " (duration(interface.in_state))
                    @if let Some(error) = &interface.last_error { br; (error.error) }
                }
                td.number { (number(interface.packets.total)) }
                td.number { (rate(interface.packets.rate)) }
                td { @for (kind, flow) in &interface.published { (kind_flow(kind.as_str(), flow)) } }
                td.number { (number(interface.lost.total)) }
                td {
                    @for (reason, count) in interface.not_published.nonzero().chain(interface.dropped.nonzero()) {
                        span.pair { (reason) " " (number(count)) } " "
                    }
                }
            }
        }
        @if capture.lost.total > 0 {
            tr {
                th scope="row" { (capture.name) " " (presence(capture.presence, view.now)) }
                td colspan="5" { "captured, but not taken by the bus" }
                td.number { (number(capture.lost.total)) }
                td {}
            }
        }
        @if capture.interfaces.is_empty() {
            tr { th scope="row" { (capture.name) " " (presence(capture.presence, view.now)) } td colspan="7" { "no interface" } }
        }
    }
}

fn kind_flow(kind: &str, flow: &Flow) -> Markup {
    html! { span.pair { (kind) " " (number(flow.total)) " (" (rate(flow.rate)) ")" } " " }
}

fn groups(view: &View) -> Markup {
    html! {
        section aria-labelledby="groups" {
            h2 #groups { "Groups" }
            @if view.groups.is_empty() {
                p {
                    "No group subscribes to the bus, so no record is delivered. Set "
                    code { "SEKIWAKE_SYSLOG_DESTINATIONS" } ", " code { "SEKIWAKE_XFLOW_DESTINATIONS" } " or "
                    code { "SEKIWAKE_TRAP_DESTINATIONS" } " and start that forwarder."
                }
            } @else {
                div.wide tabindex="0" role="region" aria-label="Table of groups" {
                    table {
                        caption.hidden { "Groups and their members" }
                        thead { tr {
                            th scope="col" { "Group" } th scope="col" { "Member" } th.number scope="col" { "Shards" }
                            th.number scope="col" { "Handled since first seen" } th.number scope="col" { "Rate" }
                            th.number scope="col" { "Lag" } th.number scope="col" { "Lost" }
                        } }
                        tbody { @for group in &view.groups { (group_rows(group, view)) } }
                    }
                }
            }
        }
    }
}

fn group_rows(group: &GroupView, view: &View) -> Markup {
    let lag =
        group.lag.unwrap_or_else(|| group.members.iter().fold(0u64, |sum, member| sum.saturating_add(member.lag)));
    html! {
        tr.sum {
            th scope="row" { (group.name) " " span.kind { (group.kind) } }
            td {
                (plural(group.members.len() as u64, "member"))
                @if group.unowned > 0 { " " strong.bad { (plural(group.unowned, "shard")) " without an owner" } }
                @if let Some(error) = &group.store_error { " " strong.bad { (error) } }
                @if let Some(written) = &group.written { " · " (number(written.total)) " records written" }
            }
            td.number { (number(group.members.iter().fold(0u64, |sum, member| sum.saturating_add(member.shards)))) }
            td.number { (number(group.handled.total)) }
            td.number { (rate(group.handled.rate)) }
            td.number { (number(lag)) }
            td.number { (number(group.lost.total)) }
        }
        @for member in &group.members {
            tr {
                td {}
                th scope="row" { (member.name) " " (presence(member.presence, view.now)) }
                td.number { (number(member.shards)) }
                td.number { (number(member.handled.total)) }
                td.number { (rate(member.handled.rate)) }
                td.number { (number(member.lag)) }
                td.number { (number(member.lost.total)) }
            }
        }
    }
}

fn services(view: &View) -> Markup {
    html! {
        section aria-labelledby="services" {
            h2 #services { "Services" }
            div.wide tabindex="0" role="region" aria-label="Table of services" {
                table {
                    caption.hidden { "Services and their processes" }
                    thead { tr {
                        th scope="col" { "Service" } th scope="col" { "Group" } th scope="col" { "Member" }
                        th scope="col" { "State" } th scope="col" { "Version" } th.number scope="col" { "Running for" }
                        th.number scope="col" { "Processor" } th.number scope="col" { "Memory" }
                    } }
                    tbody { @for service in &view.services { (service_row(service, view)) } }
                }
            }
        }
    }
}

fn service_row(service: &ServiceView, view: &View) -> Markup {
    html! {
        tr {
            th scope="row" { (service.service) }
            td { @if let Some(group) = &service.group { (group) } @else { "–" } }
            td { (service.member) }
            td {
                (presence(service.presence, view.now))
                @if let Some(process) = service.process.as_ref().filter(|process| !process.is_ready) {
                    @if service.presence.is_live() && !process.waits_for.0.is_empty() {
                        " not ready, waits for "
                        @for (index, what) in process.waits_for.0.iter().take(8).enumerate() {
                            @if index > 0 { ", " } (what)
                        }
                    }
                }
            }
            @match &service.process {
                Some(process) => {
                    td { (process.version) }
                    td.number { (duration(std::time::Duration::try_from_secs_f64(process.uptime_seconds).unwrap_or_default())) }
                    td.number { @match service.cpu { Some(cpu) => (format!("{:.1} %", cpu * 100.0)), None => "–" } }
                    td.number { (bytes(process.memory_bytes)) }
                }
                None => { td {} td {} td {} td {} }
            }
        }
    }
}
