//! `/status`: what each part of each role says of itself, as JSON, when somebody asks.
//!
//! ```text
//! {"service": "all-in-one", "version": "0.1.0", "roles": {"capture": {"eth1": {...}, "cluster": {...}}, "proxy": {}}}
//! ```
//!
//! A part is a state machine that one worker owns, which the worker answers for between two rounds of its loop (a
//! [`StatusDesk`]), or a function of shared state, which runs in a thread of its own (a [`Maker`]). A part without an answer
//! has an object with a member `error` in its place, and does not keep the others from theirs.
//!
//! Whoever can reach the port may ask as often as they like. So one page is made at a time, whoever asks meanwhile gets the
//! same one, and there is a [`PAUSE`] between two: a worker is asked for few answers a second. The bytes of a page are shared,
//! and those of all pages that somebody has yet to read are bounded.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Bytes;
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::{JoinHandle, spawn_blocking, yield_now};
use tokio::time::{Instant, sleep, timeout_at};

use crate::VERSION;
use crate::health::lock;

/// How many threads run the functions of [`Scope::status_with`](crate::Scope::status_with).
pub(crate) const MAX_MAKER_THREADS: usize = 2;

/// How many requests wait to be told their page; who brings more waits as well.
pub(crate) const MAX_WAITING: usize = 128;

/// How long a page waits for its parts. Shorter than the time in which an admin connection must begin to answer.
const ANSWER_TIME: Duration = Duration::from_secs(1);

/// How long after a page the next one is begun. Far shorter than the time that a connection has while others want its slot.
const PAUSE: Duration = Duration::from_millis(20);

/// The largest page, bytes.
const MAX_PAGE_BYTES: usize = 4 * 1024 * 1024;

/// How much all pages may have that are made and not yet sent, bytes.
const MAX_HELD_BYTES: usize = 8 * MAX_PAGE_BYTES;

/// What a part's lines begin with, below the first: it stands in a role, which stands in `roles`, which stands in the page.
const INDENT: &[u8] = b"      ";

/// A page, or nothing while too many pages are yet to be read.
pub(crate) type Page = Option<Bytes>;

/// Where a worker answers for one part of `/status`. Made by [`Scope::status`](crate::Scope::status); when it is dropped, as
/// the worker ends, the part shows that it has ended.
#[derive(Debug)]
pub struct StatusDesk {
    counter: Arc<Counter>,
}

/// What a desk and those who ask at it share.
#[derive(Debug)]
struct Counter {
    /// Whether somebody has asked, to be looked at without the lock. Changes only under it.
    is_asked: AtomicBool,
    visitor: Mutex<Visitor>,
}

#[derive(Debug)]
enum Visitor {
    Nobody,
    Waits(oneshot::Sender<Value>),
    /// The desk is gone, and with it any who waited.
    Refused,
}

/// A function that makes a part's value.
struct Maker {
    make: Box<dyn Fn() -> Value + Send + Sync>,
    /// What the last page did not wait for to its end.
    late: Mutex<Option<JoinHandle<PartText>>>,
}

#[derive(Clone, Debug)]
enum Part {
    Desk(Arc<Counter>),
    Maker(Arc<Maker>),
}

/// The parts of one role.
#[derive(Clone, Debug, Default)]
pub(crate) struct Board {
    parts: Arc<Mutex<BTreeMap<String, Part>>>,
}

/// The parts of all roles of a process.
#[derive(Debug)]
pub(crate) struct Boards {
    service: &'static str,
    roles: Vec<(&'static str, Board)>,
}

/// A part's value as it stands in the page, or why there is none.
type PartText = Result<Vec<u8>, Missing>;

#[derive(Clone, Copy, Debug)]
enum Missing {
    Late,
    Ended,
    Panicked,
    TooLarge,
}

/// A part that was asked.
enum Asked {
    Desk(oneshot::Receiver<Value>),
    Maker(Arc<Maker>, JoinHandle<PartText>),
}

impl StatusDesk {
    /// Answers whoever has asked, if somebody has; to be called once in each round of the worker's loop. Costs the load of an
    /// atomic while nobody asks. `make` takes the worker's time, at most about fifty times a second, and a panic in it is the
    /// worker's.
    #[inline]
    pub fn answer(&self, make: impl FnOnce() -> Value) {
        if !self.counter.is_asked.load(Ordering::Relaxed) {
            return;
        }
        if let Some(visitor) = self.counter.next() {
            // Refused by one who has left meanwhile.
            let _ = visitor.send(make());
        }
    }
}

impl Drop for StatusDesk {
    fn drop(&mut self) {
        *lock(&self.counter.visitor) = Visitor::Refused;
    }
}

impl Counter {
    /// Asks, in the place of any who asked before. The receiver fails when the desk is gone.
    fn ask(&self) -> oneshot::Receiver<Value> {
        let (sender, answer) = oneshot::channel();
        let mut visitor = lock(&self.visitor);
        if !matches!(*visitor, Visitor::Refused) {
            *visitor = Visitor::Waits(sender);
            self.is_asked.store(true, Ordering::Relaxed);
        }
        answer
    }

    /// The one to answer; not one who has given up.
    #[cold]
    fn next(&self) -> Option<oneshot::Sender<Value>> {
        let mut visitor = lock(&self.visitor);
        self.is_asked.store(false, Ordering::Relaxed);
        match std::mem::replace(&mut *visitor, Visitor::Nobody) {
            Visitor::Waits(sender) => (!sender.is_closed()).then_some(sender),
            Visitor::Nobody | Visitor::Refused => None,
        }
    }
}

impl Maker {
    /// The computation that runs already, because the last page had no time for it, or else a new one: never two at a time.
    /// One that has ended since then is of no use, as its value may be old.
    fn start(self: &Arc<Maker>) -> JoinHandle<PartText> {
        let late = lock(&self.late).take().filter(|late| !late.is_finished());
        late.unwrap_or_else(|| {
            let maker = self.clone();
            spawn_blocking(move || render(&(maker.make)()))
        })
    }
}

impl fmt::Debug for Maker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Maker").field("late", &self.late).finish_non_exhaustive()
    }
}

impl Part {
    fn ask(self) -> Asked {
        match self {
            Part::Desk(counter) => Asked::Desk(counter.ask()),
            Part::Maker(maker) => {
                let computation = maker.start();
                Asked::Maker(maker, computation)
            }
        }
    }
}

impl Asked {
    async fn answer(self, deadline: Instant) -> PartText {
        match self {
            Asked::Desk(answer) => match timeout_at(deadline, answer).await {
                Ok(Ok(value)) => render(&value),
                Ok(Err(_)) => Err(Missing::Ended),
                Err(_) => Err(Missing::Late),
            },
            Asked::Maker(maker, mut computation) => match timeout_at(deadline, &mut computation).await {
                Ok(Ok(text)) => text,
                Ok(Err(_)) => Err(Missing::Panicked),
                Err(_) => {
                    *lock(&maker.late) = Some(computation);
                    Err(Missing::Late)
                }
            },
        }
    }
}

impl Board {
    pub(crate) fn desk(&self, part: String) -> StatusDesk {
        let counter = Arc::new(Counter { is_asked: AtomicBool::new(false), visitor: Mutex::new(Visitor::Nobody) });
        self.put(part, Part::Desk(counter.clone()));
        StatusDesk { counter }
    }

    pub(crate) fn maker(&self, part: String, make: impl Fn() -> Value + Send + Sync + 'static) {
        self.put(part, Part::Maker(Arc::new(Maker { make: Box::new(make), late: Mutex::default() })));
    }

    fn put(&self, name: String, part: Part) {
        // Dropped only after the lock, as a function may own anything.
        let _replaced = lock(&self.parts).insert(name, part);
    }

    /// Asks all parts, in the order of their names.
    fn ask(&self) -> Vec<(String, Asked)> {
        let parts: Vec<_> = lock(&self.parts).iter().map(|(name, part)| (name.clone(), part.clone())).collect();
        parts.into_iter().map(|(name, part)| (name, part.ask())).collect()
    }
}

impl Boards {
    pub(crate) fn new(service: &'static str, roles: impl Iterator<Item = (&'static str, Board)>) -> Boards {
        Boards { service, roles: roles.collect() }
    }

    /// Makes pages for all who ask, until nobody can ask any more.
    pub(crate) async fn serve(self, mut requests: mpsc::Receiver<oneshot::Sender<Page>>) {
        let budget = Arc::new(Semaphore::new(MAX_HELD_BYTES));
        while let Some(first) = requests.recv().await {
            let page = held(self.page().await, &budget);
            let meanwhile = std::iter::from_fn(|| requests.try_recv().ok()).take(MAX_WAITING);
            for request in std::iter::once(first).chain(meanwhile) {
                // Refused where the connection has ended.
                let _ = request.send(page.clone());
            }
            // Not held while nobody reads it.
            drop(page);
            sleep(PAUSE).await;
        }
    }

    async fn page(&self) -> Vec<u8> {
        let deadline = Instant::now() + ANSWER_TIME;
        // All are asked before the first is waited for.
        let asked: Vec<_> = self.roles.iter().map(|(_, board)| board.ask()).collect();
        let mut roles = Vec::with_capacity(asked.len());
        for parts in asked {
            let mut answered = Vec::with_capacity(parts.len());
            for (name, part) in parts {
                answered.push((name, part.answer(deadline).await));
                // Text takes a while to make, and the other pages have to be served.
                yield_now().await;
            }
            roles.push(answered);
        }
        let services = self.roles.iter().map(|(service, _)| *service);
        assemble(self.service, &mut services.zip(roles).collect::<Vec<_>>())
    }
}

impl Missing {
    fn text(self) -> &'static str {
        match self {
            Missing::Late => r#"{"error": "no answer within 1 s"}"#,
            Missing::Ended => r#"{"error": "ended"}"#,
            Missing::Panicked => r#"{"error": "panicked"}"#,
            Missing::TooLarge => r#"{"error": "left out: the page would be over 4 MiB"}"#,
        }
    }
}

type AnsweredRole = (&'static str, Vec<(String, PartText)>);

/// The page, without its largest parts if it were too large with them.
fn assemble(service: &str, roles: &mut [AnsweredRole]) -> Vec<u8> {
    loop {
        let texts = || roles.iter().flat_map(|(_, parts)| parts).map(|(_, text)| text_of(text).len());
        let frame_bytes = write_page(service, roles, |_| b"").len();
        if frame_bytes + texts().sum::<usize>() <= MAX_PAGE_BYTES {
            return write_page(service, roles, text_of);
        }
        let parts = roles.iter_mut().flat_map(|(_, parts)| parts).map(|(_, text)| text);
        let largest = parts.filter(|text| text.is_ok()).max_by_key(|text| text_of(text).len());
        match largest {
            Some(text) => *text = Err(Missing::TooLarge),
            // Only the names are left, which take more memory where they are registered.
            None => return write_page(service, roles, text_of),
        }
    }
}

fn text_of(text: &PartText) -> &[u8] {
    match text {
        Ok(text) => text,
        Err(missing) => missing.text().as_bytes(),
    }
}

fn write_page(service: &str, roles: &[AnsweredRole], text_of: impl Fn(&PartText) -> &[u8]) -> Vec<u8> {
    let (service, version) = (Value::from(service), Value::from(VERSION));
    let mut page = format!("{{\n  \"service\": {service},\n  \"version\": {version},\n  \"roles\": {{").into_bytes();
    for (position, (role, parts)) in roles.iter().enumerate() {
        begin_member(&mut page, position, "    ", role);
        page.push(b'{');
        for (position, (name, text)) in parts.iter().enumerate() {
            begin_member(&mut page, position, "      ", name);
            page.extend_from_slice(text_of(text));
        }
        page.extend_from_slice(if parts.is_empty() { b"}" } else { b"\n    }" });
    }
    page.extend_from_slice(b"\n  }\n}\n");
    page
}

fn begin_member(page: &mut Vec<u8>, position: usize, indent: &str, name: &str) {
    let comma = if position == 0 { "" } else { "," };
    page.extend_from_slice(format!("{comma}\n{indent}{}: ", Value::from(name)).as_bytes());
}

/// The value's text, if it has room in a page at all.
fn render(value: &Value) -> PartText {
    let mut text = PartWriter { text: Vec::new() };
    match serde_json::to_writer_pretty(&mut text, value) {
        Ok(()) => Ok(text.text),
        // Any JSON value can be written, so it is the writer that refused.
        Err(_) => Err(Missing::TooLarge),
    }
}

/// Indents, and refuses what is more than a page.
struct PartWriter {
    text: Vec<u8>,
}

impl Write for PartWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // One string is one write, so it may be of any size.
        if self.text.len() + bytes.len() > MAX_PAGE_BYTES {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        // A line feed inside of a string is escaped, so all that are seen end lines.
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.text.extend_from_slice(line);
            if line.ends_with(b"\n") {
                self.text.extend_from_slice(INDENT);
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A page that gives its bytes back to the budget when the last connection is done with it.
struct HeldPage {
    text: Vec<u8>,
    _permit: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for HeldPage {
    fn as_ref(&self) -> &[u8] {
        &self.text
    }
}

fn held(text: Vec<u8>, budget: &Arc<Semaphore>) -> Page {
    let bytes = u32::try_from(text.len()).ok()?;
    let permit = budget.clone().try_acquire_many_owned(bytes).ok()?;
    Some(Bytes::from_owner(HeldPage { text, _permit: permit }))
}
