//! The paths of the site, and what every response carries.

use std::sync::{Arc, Mutex};

use maud::Markup;
use sekiwake_runtime::{SiteRequest, SiteResponse};

use crate::{
    ConsoleSettings, clock,
    guard::{Access, Verdict},
    lock,
    metrics::ConsoleMetrics,
    model::{Model, View},
    search::{Query, search},
    views::{self, Page, tail::Shown},
    watch::{Filter, Watches},
};

/// The path below which everything but the first page is.
pub(crate) const PREFIX: &str = "/console/";
/// Where the form with the token is sent.
pub(crate) const ENTER: &str = "/console/enter";

const CSS: &str = include_str!("../assets/console.css");
const SCRIPT: &str = include_str!("../assets/console.js");
const ICON: &str = include_str!("../assets/icon.svg");

const HTML: &str = "text/html; charset=utf-8";

/// Nothing from another host, nothing inline, no frame around the page.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; \
    form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// Answers requests.
pub(crate) struct Site {
    access: Access,
    storers: Vec<String>,
    model: Arc<Mutex<Model>>,
    watches: Arc<Mutex<Watches>>,
    metrics: ConsoleMetrics,
}

impl Site {
    pub(crate) fn new(
        settings: ConsoleSettings,
        model: Arc<Mutex<Model>>,
        watches: Arc<Mutex<Watches>>,
        metrics: ConsoleMetrics,
    ) -> Site {
        Site { access: settings.access, storers: settings.storers, model, watches, metrics }
    }

    pub(crate) fn answer(&self, request: &SiteRequest) -> SiteResponse {
        let verdict = self.access.check(request);
        if verdict == Verdict::WrongHost {
            self.metrics.wrong_host.inc();
            let host = request.host.as_deref().unwrap_or_default();
            return html(421, views::access::wrong_host(host));
        }
        // Without content of the site, and needed by the form.
        match request.path.as_str() {
            "/console/console.css" => return asset("text/css; charset=utf-8", CSS),
            "/console/console.js" => return asset("text/javascript; charset=utf-8", SCRIPT),
            "/console/icon.svg" => return asset("image/svg+xml", ICON),
            _ => {}
        }
        if request.is_post {
            return self.enter(request);
        }
        match verdict {
            Verdict::NotEnabled => return html(403, views::access::not_enabled()),
            Verdict::NeedsToken => return html(401, views::access::form(false)),
            Verdict::Allowed | Verdict::WrongHost => {}
        }
        lock(&self.watches).ask(clock::now());
        let page = Page::ALL.into_iter().find(|page| page.path() == request.path);
        match page {
            Some(Page::Flow) => html(200, views::flow::page(&self.view())),
            Some(Page::Destinations) => html(200, views::destinations::page(&self.view())),
            Some(Page::Sources) => {
                let sources = lock(&self.watches).sources(clock::now()).clone();
                html(200, views::sources::page(&self.view(), &sources))
            }
            Some(Page::Tail) => self.tail(request),
            Some(Page::Search) => {
                let query = Query::parse(request.parameters.parameters());
                // The form was sent, perhaps empty.
                let is_asked = request.parameters.parameters().next().is_some() && !self.storers.is_empty();
                let found = is_asked.then(|| search(&self.storers, &query));
                html(200, views::search::page(&self.storers, &query, found.as_ref()))
            }
            Some(Page::Anomalies) => html(200, views::anomalies::page(&self.view())),
            None => html(404, views::access::not_found()),
        }
    }

    fn tail(&self, request: &SiteRequest) -> SiteResponse {
        let view = self.view();
        let filter = match Filter::parse(request.parameters.parameters()) {
            Ok(filter) => filter,
            Err(wrong) => return html(200, views::tail::page(&view, &Filter::default(), &Shown::Wrong(&wrong))),
        };
        // Cloned, so that the reader of records does not wait while the page is made.
        let tail = lock(&self.watches).tail(&filter, clock::now()).cloned();
        let shown = tail.as_ref().map_or(Shown::Busy, Shown::Tail);
        html(200, views::tail::page(&view, &filter, &shown))
    }

    fn view(&self) -> View {
        let (mut model, now) = (lock(&self.model), clock::now());
        model.resume(now);
        model.view(now)
    }

    /// The form with the token.
    fn enter(&self, request: &SiteRequest) -> SiteResponse {
        if request.path != ENTER {
            return html(404, views::access::not_found());
        }
        if !self.access.is_own_form(request) {
            return html(403, views::access::foreign_form());
        }
        if self.access.token_is_unneeded() {
            let mut response = html(303, views::access::form(false));
            response.headers.push(("location", "/".to_owned()));
            return response;
        }
        let token = request.parameters.parameters().find(|(name, _)| *name == "token");
        let token = token.map(|(_, value)| String::from_utf8_lossy(value).into_owned()).unwrap_or_default();
        match self.access.cookie(&token) {
            Some(cookie) => {
                let mut response = html(303, views::access::form(false));
                response.headers.push(("location", "/".to_owned()));
                response.headers.push(("set-cookie", cookie));
                response
            }
            None => {
                self.metrics.wrong_token.inc();
                html(401, views::access::form(true))
            }
        }
    }
}

fn html(status: u16, markup: Markup) -> SiteResponse {
    respond(status, HTML, markup.into_string().into_bytes(), "no-store")
}

fn asset(content_type: &str, text: &str) -> SiteResponse {
    respond(200, content_type, text.as_bytes().to_vec(), "no-cache")
}

fn respond(status: u16, content_type: &str, body: Vec<u8>, cache: &str) -> SiteResponse {
    let headers = [
        ("content-type", content_type),
        ("cache-control", cache),
        ("content-security-policy", POLICY),
        ("x-content-type-options", "nosniff"),
        // With no-referrer, browsers send `Origin: null` with the form.
        ("referrer-policy", "same-origin"),
        ("cross-origin-opener-policy", "same-origin"),
        ("cross-origin-resource-policy", "same-origin"),
        ("x-frame-options", "DENY"),
    ];
    SiteResponse { status, headers: headers.map(|(name, value)| (name, value.to_owned())).to_vec(), body }
}
