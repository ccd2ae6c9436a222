//! `/status`: the state of each part of each role, as JSON, on request.
//!
//! ```text
//! {
//!   "service": "all-in-one",
//!   "version": "0.1.0",
//!   "roles": {"capture": {"eth1": {...}, "cluster": {...}}, "proxy": {}}
//! }
//! ```
//!
//! A part is either a state machine that one worker owns, for which the worker answers between two
//! rounds of its loop ([`StatusResponder`]), or a function of shared state, which runs in a thread
//! of a small pool ([`StatusFunction`]). A part without an answer is shown as an object with the
//! member `error`, and delays no other part.
//!
//! The cost of requests is bounded, as the port may be open to a network: one page is made at a
//! time, all requests that arrive meanwhile get the same page, and there is a [`PAUSE`] between two
//! pages, so that a worker answers only a few times per second. The bytes of a page are shared by
//! its connections, and the bytes of all pages that are being sent are limited.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::body::Bytes;
use serde::Serialize;
use serde_json::{
    Value, json,
    value::{RawValue, to_raw_value},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    task::{JoinHandle, spawn_blocking},
    time::{Instant, sleep, timeout_at},
};

use crate::{VERSION, health::lock};

/// How many threads run the functions of [`Scope::status_with`](crate::Scope::status_with).
pub(crate) const MAX_FUNCTION_THREADS: usize = 2;

/// How many requests can wait for a page; further ones wait to be queued.
pub(crate) const MAX_WAITING: usize = 128;

/// The time limit of the parts of a page. Shorter than the time limit of an admin connection.
const ANSWER_TIME: Duration = Duration::from_secs(1);

/// The pause between two pages. Far shorter than the time for which a connection keeps its slot
/// although others wait for it.
const PAUSE: Duration = Duration::from_millis(20);

/// The largest page, bytes.
const MAX_PAGE_BYTES: usize = 4 * 1024 * 1024;

/// The limit for all pages that have been made and not yet sent, bytes.
const MAX_UNSENT_BYTES: usize = 8 * MAX_PAGE_BYTES;

/// An upper bound on what a part adds to a page besides its name and its text: indentation and
/// punctuation.
const PART_FRAME_BYTES: usize = 16;

/// An upper bound on what a page takes besides its parts.
const PAGE_FRAME_BYTES: usize = 512;

/// The indentation of a part's text: it stands in a role, in `roles`, in the page.
const LINE_BREAK: &str = "\n      ";

const TOO_LARGE: &str = "left out: the page would be over 4 MiB";

/// A page, or `None` while too many pages are being sent.
pub(crate) type StatusPage = Option<Bytes>;

/// Answers status requests for one part on behalf of the worker that owns it. Made by
/// [`Scope::status`](crate::Scope::status); when it is dropped because the worker ends, the part
/// shows that it has ended.
#[derive(Debug)]
pub struct StatusResponder {
    pending: Arc<PendingRequest>,
}

/// The request that a responder shares with the server, which has no other reference to it: it is
/// dropped with the responder.
#[derive(Debug, Default)]
pub(crate) struct PendingRequest {
    /// Read without the lock. Changed only under it.
    is_pending: AtomicBool,
    /// A page's and those of feeds.
    answers: Mutex<Vec<oneshot::Sender<Value>>>,
}

/// A function that makes a part's value.
pub(crate) struct StatusFunction {
    /// It is made of a few counters, within microseconds.
    is_brief: bool,
    make: Box<dyn Fn() -> Value + Send + Sync>,
    /// A call that was still running when the last page was made.
    late: Mutex<Option<JoinHandle<PartText>>>,
}

#[derive(Clone, Debug)]
pub(crate) enum Part {
    Worker(Weak<PendingRequest>),
    Function(Arc<StatusFunction>),
}

/// The parts of one role.
#[derive(Clone, Debug, Default)]
pub(crate) struct StatusParts {
    pub(crate) parts: Arc<Mutex<BTreeMap<String, Part>>>,
}

/// The parts of all roles of a process, from which the pages are made.
#[derive(Debug)]
pub(crate) struct StatusPages {
    service: &'static str,
    roles: Vec<(&'static str, StatusParts)>,
}

/// A part's value as text: indented for its place in the page, or an error.
type PartText = Box<RawValue>;

/// The content of a page.
#[derive(Serialize)]
struct PageContent {
    service: &'static str,
    version: &'static str,
    roles: BTreeMap<&'static str, BTreeMap<String, PartText>>,
}

impl StatusResponder {
    /// Answers the pending request, if there is one. Call it once per round of the worker's loop.
    /// Without a request it costs one atomic load. `make` runs in the worker, at most about fifty
    /// times per second, and if it panics the worker does.
    #[inline]
    pub fn answer(&self, make: impl FnOnce() -> Value) {
        if !self.pending.is_pending.load(Ordering::Relaxed) {
            return;
        }
        let mut requests = self.pending.take();
        let Some(last) = requests.pop() else { return };
        let value = make();
        for request in requests {
            // Fails only if the request has timed out meanwhile.
            let _ = request.send(value.clone());
        }
        let _ = last.send(value);
    }
}

impl PendingRequest {
    /// Stores a request. Receiving fails when the responder is dropped. Requests that have timed
    /// out are removed, so that there is at most one of each reader.
    pub(crate) fn put(&self) -> oneshot::Receiver<Value> {
        let (sender, answer) = oneshot::channel();
        let mut answers = lock(&self.answers);
        answers.retain(|answer| !answer.is_closed());
        answers.push(sender);
        self.is_pending.store(true, Ordering::Relaxed);
        answer
    }

    /// The requests that have not timed out.
    #[cold]
    fn take(&self) -> Vec<oneshot::Sender<Value>> {
        let mut answers = lock(&self.answers);
        self.is_pending.store(false, Ordering::Relaxed);
        let mut requests = std::mem::take(&mut *answers);
        requests.retain(|answer| !answer.is_closed());
        requests
    }
}

impl StatusFunction {
    /// The value, if it is made within microseconds.
    pub(crate) fn brief(&self) -> Option<Value> {
        self.is_brief.then(|| (self.make)())
    }

    /// The call that is still running because the last page did not wait for it, or else a new one:
    /// never two at a time. A call that has ended since then is not used, because its result would
    /// be out of date.
    fn start(self: &Arc<StatusFunction>) -> JoinHandle<PartText> {
        let late = lock(&self.late).take().filter(|late| !late.is_finished());
        late.unwrap_or_else(|| {
            let function = self.clone();
            spawn_blocking(move || part_text(&(function.make)()))
        })
    }
}

impl fmt::Debug for StatusFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StatusFunction").field("late", &self.late).finish_non_exhaustive()
    }
}

impl Part {
    async fn text(self, deadline: Instant) -> PartText {
        match self {
            Part::Worker(pending) => {
                let Some(answer) = pending.upgrade().map(|pending| pending.put()) else { return error_text("ended") };
                match timeout_at(deadline, answer).await {
                    Ok(Ok(value)) => part_text(&value),
                    Ok(Err(_)) => error_text("ended"),
                    Err(_) => error_text("no answer within 1 s"),
                }
            }
            Part::Function(function) => {
                let mut call = function.start();
                match timeout_at(deadline, &mut call).await {
                    Ok(Ok(text)) => text,
                    Ok(Err(_)) => error_text("panicked"),
                    Err(_) => {
                        *lock(&function.late) = Some(call);
                        error_text("no answer within 1 s")
                    }
                }
            }
        }
    }
}

impl StatusParts {
    pub(crate) fn add_worker(&self, name: String) -> StatusResponder {
        let pending = Arc::default();
        self.put(name, Part::Worker(Arc::downgrade(&pending)));
        StatusResponder { pending }
    }

    pub(crate) fn add_function(&self, name: String, is_brief: bool, make: impl Fn() -> Value + Send + Sync + 'static) {
        let function = StatusFunction { is_brief, make: Box::new(make), late: Mutex::default() };
        self.put(name, Part::Function(Arc::new(function)));
    }

    fn put(&self, name: String, part: Part) {
        // Dropped after the lock is released, because a function may own anything.
        let _replaced = lock(&self.parts).insert(name, part);
    }
}

impl StatusPages {
    pub(crate) fn new(service: &'static str, roles: impl Iterator<Item = (&'static str, StatusParts)>) -> StatusPages {
        StatusPages { service, roles: roles.collect() }
    }

    /// Makes pages on request, until the other end of the channel is dropped.
    pub(crate) async fn serve(self, mut requests: mpsc::Receiver<oneshot::Sender<StatusPage>>) {
        let budget = Arc::new(Semaphore::new(MAX_UNSENT_BYTES));
        while let Some(first) = requests.recv().await {
            let page = budgeted(self.content().await.into_text(), &budget);
            let meanwhile = std::iter::from_fn(|| requests.try_recv().ok()).take(MAX_WAITING);
            for request in std::iter::once(first).chain(meanwhile) {
                // Fails only if the connection has been closed.
                let _ = request.send(page.clone());
            }
            // So that it is freed as soon as it has been sent.
            drop(page);
            sleep(PAUSE).await;
        }
    }

    async fn content(&self) -> PageContent {
        let deadline = Instant::now() + ANSWER_TIME;
        let mut answers = Vec::new();
        for (service, role) in &self.roles {
            for (name, part) in lock(&role.parts).iter() {
                // One task per part: all are asked at once, and the server answers other requests
                // between two parts.
                answers.push((*service, name.clone(), tokio::spawn(part.clone().text(deadline))));
            }
        }
        let mut roles: BTreeMap<_, BTreeMap<_, _>> =
            self.roles.iter().map(|(service, _)| (*service, BTreeMap::new())).collect();
        for (service, name, answer) in answers {
            let text = answer.await.unwrap_or_else(|_| error_text("panicked"));
            roles.entry(service).or_default().insert(name, text);
        }
        PageContent { service: self.service, version: VERSION, roles }
    }
}

impl PageContent {
    /// The text of the page, without its largest parts if they would make it too large.
    fn into_text(mut self) -> Vec<u8> {
        let too_large = error_text(TOO_LARGE);
        while PAGE_FRAME_BYTES + self.part_bytes() > MAX_PAGE_BYTES {
            let largest = self.roles.values_mut().flat_map(BTreeMap::values_mut).max_by_key(|text| text.get().len());
            match largest {
                Some(text) if text.get().len() > too_large.get().len() => *text = too_large.clone(),
                // Only names are left, which take more memory where they are registered.
                _ => break,
            }
        }
        let mut text = serde_json::to_vec_pretty(&self).unwrap_or_default();
        text.push(b'\n');
        text
    }

    fn part_bytes(&self) -> usize {
        let parts = self.roles.values().flatten();
        parts.map(|(name, text)| PART_FRAME_BYTES + name.len() + text.get().len()).sum()
    }
}

fn part_text(value: &Value) -> PartText {
    // Line feeds inside strings are escaped, so this indents lines without changing a value.
    match serde_json::to_string_pretty(value).map(|text| text.replace('\n', LINE_BREAK)) {
        Ok(text) if text.len() > MAX_PAGE_BYTES => error_text(TOO_LARGE),
        Ok(text) => RawValue::from_string(text).unwrap_or_default(),
        Err(error) => error_text(&error.to_string()),
    }
}

fn error_text(error: &str) -> PartText {
    // Writing a map of strings cannot fail.
    to_raw_value(&json!({ "error": error })).unwrap_or_default()
}

/// A page that returns its bytes to the budget when the last connection has sent it.
struct BudgetedPage {
    text: Vec<u8>,
    _permit: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for BudgetedPage {
    fn as_ref(&self) -> &[u8] {
        &self.text
    }
}

fn budgeted(text: Vec<u8>, budget: &Arc<Semaphore>) -> StatusPage {
    let bytes = u32::try_from(text.len()).ok()?;
    let permit = budget.clone().try_acquire_many_owned(bytes).ok()?;
    Some(Bytes::from_owner(BudgetedPage { text, _permit: permit }))
}
