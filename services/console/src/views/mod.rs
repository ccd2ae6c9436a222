//! The views, one file each, and the frame around them.
//!
//! Text is escaped by the templates, wherever it comes from. Only this crate's own files and
//! drawings are markup.

pub(crate) mod access;
pub(crate) mod anomalies;
pub(crate) mod destinations;
mod drawing;
pub(crate) mod flow;
pub(crate) mod search;
pub(crate) mod sources;
pub(crate) mod tail;
mod text;

use maud::{DOCTYPE, Markup, html};

use self::text::{moment, plural};
use crate::model::{BusState, View};

/// The pages of the site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Page {
    Flow,
    Destinations,
    Sources,
    Tail,
    Search,
    Anomalies,
}

impl Page {
    pub(crate) const ALL: [Page; 6] =
        [Page::Flow, Page::Destinations, Page::Sources, Page::Tail, Page::Search, Page::Anomalies];

    pub(crate) fn path(self) -> &'static str {
        match self {
            Page::Flow => "/",
            Page::Destinations => "/console/destinations",
            Page::Sources => "/console/sources",
            Page::Tail => "/console/tail",
            Page::Search => "/console/search",
            Page::Anomalies => "/console/anomalies",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Page::Flow => "Flow",
            Page::Destinations => "Destinations",
            Page::Sources => "Sources",
            Page::Tail => "Tail",
            Page::Search => "Search",
            Page::Anomalies => "Anomalies",
        }
    }
}

/// The frame of every page. The script keeps `main` of a live page up to date.
fn frame(title: &str, page: Option<Page>, is_live: bool, main: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) " – Sekiwake" }
                link rel="icon" href="/console/icon.svg" type="image/svg+xml";
                link rel="stylesheet" href="/console/console.css";
                script src="/console/console.js" defer {}
            }
            body {
                a.skip href="#main" { "Skip to content" }
                header {
                    p.name { "Sekiwake" }
                    @if page.is_some() {
                        nav aria-label="Views" {
                            ul {
                                @for other in Page::ALL {
                                    li {
                                        a href=(other.path()) aria-current=[(page == Some(other)).then_some("page")] {
                                            (other.name())
                                        }
                                    }
                                }
                            }
                        }
                    }
                    @if is_live {
                        button #pause type="button" aria-pressed="false" { "Pause" }
                    }
                }
                p #unreachable role="alert" {}
                main #main tabindex="-1" data-live=[is_live.then_some("")] { (main) }
            }
        }
    }
}

/// A page of the view, with the state of the bus above it.
fn live(page: Page, view: &View, content: &Markup) -> Markup {
    frame(
        page.name(),
        Some(page),
        true,
        &html! {
            h1 { (page.name()) }
            (bus_notice(view))
            (content)
            p.asof { "As of " (moment(view.now)) "." }
        },
    )
}

/// What keeps the figures from being those of now.
fn bus_notice(view: &View) -> Markup {
    let text = match view.bus {
        BusState::Live => return rejected_notice(view),
        BusState::Connecting if view.is_on_jetstream => html! {
            strong { "Not connected to the bus yet." }
            " Is a server running, and does " code { "SEKIWAKE_BUS" } " name it?"
        },
        BusState::NoStatus if view.is_on_jetstream => html! {
            strong { "No service sends status." }
            " The console is connected to the bus. Is any service running on it?"
        },
        BusState::Lost { since, is_connected } if view.is_on_jetstream => html! {
            strong { "No status has arrived since " (moment(since)) "." }
            @if is_connected { " A server is connected." } @else { " No server is connected." }
            " All figures below are out of date."
        },
        BusState::Connecting => html! {
            strong { "Not connected to the bus yet." }
            " Is the proxy running, and is " code { "SEKIWAKE_BUS_SUBSCRIBE" } " its address?"
        },
        BusState::Waiting => html! { strong { "Connected to the bus." } " Waiting for the first status." },
        BusState::NoStatus => html! {
            strong { "The proxy sends no status." }
            " The console is connected to the bus, but the proxy there is of an earlier version that does not \
             carry status. Update the proxy."
        },
        BusState::Lost { since, is_connected } => html! {
            strong { "No status has arrived since " (moment(since)) "." }
            @if is_connected { " The connection to the proxy is up." } @else { " The connection to the proxy is down." }
            " All figures below are out of date."
        },
    };
    html! { p.notice.bad role="status" { (text) } }
}

fn rejected_notice(view: &View) -> Markup {
    html! {
        @if view.no_room > 0 {
            p.notice { (plural(view.no_room, "message")) " of status found no room: not all services are shown." }
        }
        @if view.invalid > 0 {
            p.notice { (plural(view.invalid, "message")) " of status could not be read and "
                "were skipped. Some program on the bus is not of this version." }
        }
    }
}
