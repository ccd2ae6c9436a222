//! The service: threads around the writer and the maintenance, and the search page.

use std::{
    marker::PhantomData,
    ops::ControlFlow,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::Context;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, never};
use sekiwake_archive::{FileFormat, Found, Query, SearchSummary, Selection, Unreadable, read};
use sekiwake_bus::{Bus, Controlling, GroupSettings, KnownTemplates, Reporting};
use sekiwake_decode::Style;
use sekiwake_record::{Kind, WallTime};
use sekiwake_runtime::{
    About, Finding, Latch, PageBody, PageError, PageRequest, PageWriter, RateLimited, Role, Scope, Worker,
};
use sekiwake_settings::{ByteSize, Reader, show_duration};
use sekiwake_sys::clock::{boot_now_ns, wall_now_ns};
use tracing::{info, warn};

use crate::{
    DeletedFiles, FileTotals, Load, Maintenance, MaintenanceSettings, RealDisk, RecordEncoder, Round, SharedHeads,
    StorerSettings, WriterSettings,
    commit::{CommitLoop, CommitOptions, report_damage},
    error::cannot,
    metrics::{Deleted, StoreMetrics},
    receive::{ReceiveLoop, load_channel},
    retention_clock::RetentionClock,
    show::Show,
};

/// The storer of one kind, as a role of the process: each has its own group, threads, memory and
/// metrics. The one of syslog also searches, and maintains files of kinds that are not stored.
#[derive(Debug)]
pub struct KindStorer<K>(PhantomData<K>);

/// The storer of syslog.
pub type Storer = KindStorer<Syslog>;

/// The storer of flows.
pub type XflowStorer = KindStorer<Xflow>;

/// The storer of traps.
pub type TrapStorer = KindStorer<SnmpTrap>;

/// A kind that is stored.
pub trait StoredKind: 'static {
    /// The kind.
    const KIND: Kind;
    /// The role. Groups are named after it.
    const ABOUT: About;
}

/// Syslog.
#[derive(Debug)]
pub enum Syslog {}

/// Flows.
#[derive(Debug)]
pub enum Xflow {}

/// Traps.
#[derive(Debug)]
pub enum SnmpTrap {}

const ABOUT: About = About {
    service: "storer",
    binary: "sekiwake-storer",
    summary: "Stores syslog, flows and traps on disk and searches them",
    admin_port: 9605,
};

impl StoredKind for Syslog {
    const KIND: Kind = Kind::Syslog;
    const ABOUT: About = ABOUT;
}

impl StoredKind for Xflow {
    const KIND: Kind = Kind::Xflow;
    const ABOUT: About = About { service: "storer-xflow", ..ABOUT };
}

impl StoredKind for SnmpTrap {
    const KIND: Kind = Kind::SnmpTrap;
    const ABOUT: About = About { service: "storer-snmptrap", ..ABOUT };
}

/// How many searches run at a time.
const SEARCHES: usize = 2;

/// How often templates are requested at the start, until there is an answer.
const TEMPLATE_REQUESTS: u32 = 6;

/// The pause between two requests.
const TEMPLATE_PAUSE: Duration = Duration::from_secs(5);

/// How often maintenance runs when no file was closed.
const MAINTAIN_EVERY: Duration = Duration::from_secs(60);

/// The least time between two rounds, because listing all files is expensive.
const MAINTAIN_PAUSE: Duration = Duration::from_secs(2);

/// How often the maintenance thread checks for a stop.
const STOP_POLL: Duration = Duration::from_millis(500);

impl<K: StoredKind> Role for KindStorer<K> {
    const ABOUT: About = K::ABOUT;

    type Settings = StorerSettings;

    fn read(reader: &mut Reader) -> StorerSettings {
        StorerSettings::read(reader)
    }

    fn describe(settings: &StorerSettings) -> Vec<(String, String)> {
        // The all-in-one stores nothing unless the directory is set, so the default is not shown.
        match settings.dir {
            Some(_) => Vec::new(),
            None => vec![("SEKIWAKE_STORE_DIR".to_owned(), String::new())],
        }
    }

    fn examine(settings: &StorerSettings) -> Vec<Finding> {
        if settings.dir.is_none() || !settings.kinds.contains(&K::KIND) {
            return Vec::new();
        }
        group_settings::<K>(settings).map(|of_group| of_group.examine()).unwrap_or_default()
    }

    fn start(settings: StorerSettings, scope: &Scope) -> anyhow::Result<()> {
        let is_first = K::KIND == Kind::Syslog;
        let Some(dir) = settings.dir.clone() else {
            if is_first {
                info!("SEKIWAKE_STORE_DIR is not set, nothing is stored");
            }
            return Ok(scope.idle()?);
        };
        let is_stored = settings.kinds.contains(&K::KIND);
        if !is_stored && !is_first {
            return Ok(scope.idle()?);
        }
        let metrics = StoreMetrics::new(scope.metrics());
        // One of them is maintained at a time, and this one first.
        let mut maintained = Vec::from_iter(is_stored.then_some(K::KIND));
        if is_first {
            maintained.extend(Kind::ALL.into_iter().filter(|kind| !settings.kinds.contains(kind)));
            let search_dir = dir.clone();
            let metrics = metrics.clone();
            scope.page("/search", SEARCHES, move |request| search_page(&search_dir, request, &metrics));
        }
        // It fails only once something has been tried.
        let retention = scope.readiness("retention");
        retention.set(true);
        let (closed_sender, closed) = bounded(1);
        let maintenance_loop = MaintenanceLoop {
            dir: dir.clone(),
            kinds: maintained.into_iter().map(|kind| settings.maintenance(kind)).collect(),
            closed,
            retention,
            metrics: metrics.clone(),
            log: RateLimited::default(),
        };
        scope.spawn("maintain", move |worker| {
            maintenance_loop.run(worker);
            Ok(())
        })?;
        match is_stored {
            true => start_storing::<K>(&settings, &dir, closed_sender, &metrics, scope)?,
            // No write fails.
            false => metrics.up.set(1),
        }
        Ok(())
    }
}

fn group_settings<K: StoredKind>(settings: &StorerSettings) -> anyhow::Result<GroupSettings> {
    Ok(GroupSettings {
        subscribing: settings.subscribing.clone(),
        controlling: settings.controlling.clone(),
        group: settings.grouping.group(K::ABOUT.service)?,
        label: settings.grouping.label.clone(),
        kind: K::KIND,
        start_age: settings.grouping.start_age,
        single_active: false,
        handoff: false,
        deduplicate: settings.grouping.deduplicate,
    })
}

/// Joins the group of a kind, and starts the threads that receive and write its records.
fn start_storing<K: StoredKind>(
    settings: &StorerSettings,
    dir: &Path,
    closed: Sender<()>,
    metrics: &StoreMetrics,
    scope: &Scope,
) -> anyhow::Result<()> {
    let kind = K::KIND;
    let group_settings = group_settings::<K>(settings)?;
    let reporting = Reporting::new(scope, &settings.controlling.readiness("lease"), "group")
        .deduplicating(scope, settings.grouping.deduplicate);
    let source = Bus::of(scope).group_source(group_settings, reporting)?;
    let format = match kind {
        Kind::Syslog => FileFormat::Lines(settings.format),
        kind => FileFormat::Pcapng(kind),
    };
    let heads = match kind {
        Kind::Syslog => None,
        kind => Some(SharedHeads::new(kind, getrandom::u64().context("cannot get random bytes")?)),
    };
    let member = settings.grouping.label.clone();
    let (load_sender, load_receiver) = load_channel();
    let closing = scope.readiness("closing");
    closing.set(true);
    let commit_loop = CommitLoop::new(CommitOptions {
        dir: dir.to_owned(),
        settings: WriterSettings {
            rotate_bytes: settings.rotate_bytes,
            max_open: max_open(),
            heads: heads.clone(),
            ..WriterSettings::new(member.clone(), format)
        },
        loads: load_receiver,
        closed,
        ready: scope.readiness("disk"),
        closing,
        status: scope.status("store"),
        metrics: metrics.clone(),
    });
    scope.spawn("write", move |worker| commit_loop.run(worker))?;

    let encoder = RecordEncoder::new(format, heads.as_ref());
    if let Some(heads) = heads.filter(|_| kind == Kind::Xflow) {
        let controlling = settings.controlling.clone();
        scope.spawn("templates", move |worker| {
            learn_templates(&controlling, &heads, worker);
            Ok(())
        })?;
    }

    let template = settings.template.clone();
    let rotate = settings.rotate;
    let new_load = move || Load::new(template.clone(), member.clone(), rotate).of_kind(kind);
    let receive_loop = ReceiveLoop::new(source, encoder, settings.commit, load_sender, new_load, metrics.clone());
    scope.spawn("receive", move |worker| receive_loop.run(worker))?;

    let keep = settings.keep.of(kind).map(show_duration);
    let max_bytes = settings.max_bytes.of(kind).map(|bytes| bytes.to_string());
    match (&keep, &max_bytes) {
        (None, None) => {
            info!(
                kind = kind.as_str(),
                "retention is off, nothing is deleted: SEKIWAKE_STORE_KEEP and SEKIWAKE_STORE_MAX_BYTES are not set"
            );
        }
        _ => info!(kind = kind.as_str(), keep, max_bytes, "retention is on"),
    }
    info!(kind = kind.as_str(), directory = %dir.display(), "storing started");
    Ok(())
}

/// Learns the templates that a forwarder of flows keeps with the proxy, so that the first files can
/// be decoded before the exporters repeat them. Without a forwarder there are none.
fn learn_templates(controlling: &Controlling, heads: &SharedHeads, worker: &Worker) {
    for _ in 0..TEMPLATE_REQUESTS {
        worker.beat();
        let is_stopped = || {
            worker.beat();
            worker.stopping()
        };
        let known =
            Bus::shared().requests(controlling).and_then(|mut requests| requests.templates(Kind::Xflow, &is_stopped));
        match known {
            Ok(KnownTemplates::Entries(entries)) => {
                for entry in &entries {
                    heads.learn_entry(entry.key.as_bytes(), entry.value.as_bytes(), entry.at_ns);
                }
                info!(templates = entries.len(), "templates of flows learned");
                return;
            }
            Ok(KnownTemplates::NoConnection | KnownTemplates::NoAnswer | KnownTemplates::Late) => {}
            Ok(_) | Err(_) => return,
        }
        if worker.stopping() {
            return;
        }
        worker.stop().wait(TEMPLATE_PAUSE);
    }
}

/// The most descriptors for files that are written to: with a low limit, at most half of what the
/// process has left, because the admin port, searches and other roles need some.
fn max_open() -> usize {
    const WANTED: usize = 256;
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let used = std::fs::read_dir("/proc/self/fd").map_or(32, Iterator::count);
    let left = limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX)).saturating_sub(used);
    (left / 2).clamp(1, WANTED)
}

fn search_page(dir: &Path, request: &PageRequest, metrics: &StoreMetrics) -> Result<PageBody, PageError> {
    let query = Query::parse(WallTime::from_nanos(wall_now_ns()), request.parameters())
        .map_err(|wrong| PageError { status: 400, message: wrong.to_string() })?;
    metrics.searches.inc();
    let dir = dir.to_owned();
    let write = move |writer: &mut PageWriter| {
        // Two closures need it: one writes, one asks whether the client is still connected.
        let writer = std::cell::RefCell::new(writer);
        let mut show = Show::new(query.decode, Style::Json);
        let selection = Selection { templates: show.templates(), ..Selection::new(&dir, &query) };
        let mut failed = Ok(());
        let mut visit = |found: &Found<'_>| match show.write(found, &mut **writer.borrow_mut()) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failed = Err(error);
                ControlFlow::Break(())
            }
        };
        let summary = read(&selection, &|| writer.borrow().is_wanted(), &mut visit)?;
        failed?;
        log_failures(&summary);
        if !summary.failed.is_empty() {
            // An incomplete answer must not look complete.
            return Err(std::io::Error::other("some files could not be read"));
        }
        if !writer.borrow().is_wanted() {
            return Err(std::io::ErrorKind::BrokenPipe.into());
        }
        Ok(())
    };
    Ok(PageBody { content_type: "application/x-ndjson", write: Box::new(write) })
}

fn log_failures(summary: &SearchSummary) {
    for Unreadable { path, error } in &summary.failed {
        warn!(path, error, "search cannot read a file");
    }
    if summary.corrupt > 0 {
        warn!(damaged = summary.corrupt, "search skipped damaged lines or frames");
    }
}

/// The thread that compresses and deletes closed files.
struct MaintenanceLoop {
    dir: PathBuf,
    /// Of each kind that it maintains.
    kinds: Vec<MaintenanceSettings>,
    closed: Receiver<()>,
    /// Set unless files that are to be deleted cannot be.
    retention: Latch,
    metrics: StoreMetrics,
    log: RateLimited,
}

impl MaintenanceLoop {
    fn run(mut self, worker: &Worker) {
        let mut clock = RetentionClock::default();
        let mut now = || {
            let since_boot = Duration::from_nanos(boot_now_ns());
            clock.now(WallTime::from_nanos(wall_now_ns()), since_boot)
        };
        now();
        let mut finished_at: Option<Instant> = None;
        let mut is_due = false;
        while !worker.stopping() {
            worker.beat();
            match self.closed.recv_timeout(STOP_POLL) {
                Ok(()) => is_due = true,
                Err(RecvTimeoutError::Timeout) => {}
                // Nothing is stored.
                Err(RecvTimeoutError::Disconnected) if self.kinds.iter().any(|kind| kind.is_stored) => return,
                Err(RecvTimeoutError::Disconnected) => {
                    self.closed = never();
                    is_due = true;
                }
            }
            let rested = finished_at.is_none_or(|at| at.elapsed() >= MAINTAIN_PAUSE);
            is_due |= finished_at.is_some_and(|at| at.elapsed() >= MAINTAIN_EVERY);
            if is_due && rested {
                is_due = false;
                let now = now();
                let is_failed = self
                    .kinds
                    .iter()
                    .map(|settings| self.round(now, settings, worker))
                    .fold(false, |any, one| any | one);
                if !worker.stopping() {
                    self.retention.set(!is_failed);
                }
                finished_at = Some(Instant::now());
            }
        }
    }

    /// Returns whether retention has failed.
    fn round(&self, now: WallTime, settings: &MaintenanceSettings, worker: &Worker) -> bool {
        // Opened for each round, because the directory may have been replaced.
        let (round, error) = match RealDisk::open(&self.dir) {
            Ok(disk) => Maintenance::new(disk, settings.clone()).round(now, &|| {
                worker.beat();
                worker.stopping()
            }),
            Err(error) => (Round { retention_failed: true, ..Round::default() }, Some(cannot("open", "")(error))),
        };
        let Round { recovered, compressed, deleted_by_age, deleted_by_size, remaining, oldest, retention_failed } =
            round;
        report_damage(&recovered, &self.metrics);
        if let Some(error) = recovered.error
            && let Some(suppressed) = self.log.allow(Instant::now())
        {
            let files = recovered.failed;
            warn!(files, error, suppressed, "recovery of files of stopped members failed, leaving them unchanged");
        }
        self.metrics.recovered_files.inc_by(recovered.files);
        self.metrics.truncated_bytes.inc_by(recovered.truncated_bytes);
        self.metrics.compressed_files.inc_by(compressed);
        let MaintenanceSettings { kind, keep, max_bytes, .. } = settings;
        let keep = keep.map(|keep| format!("SEKIWAKE_STORE_KEEP={}", show_duration(keep)));
        let max_bytes = max_bytes.map(|bytes| format!("SEKIWAKE_STORE_MAX_BYTES={}", ByteSize(bytes)));
        count_deleted(*kind, keep.as_deref(), &deleted_by_age, &self.metrics.deleted_by_age);
        count_deleted(*kind, max_bytes.as_deref(), &deleted_by_size, &self.metrics.deleted_by_size);
        if settings.is_stored {
            self.metrics.files.set(i64::try_from(remaining.files).unwrap_or(i64::MAX));
            self.metrics.bytes.set(i64::try_from(remaining.bytes).unwrap_or(i64::MAX));
            self.metrics.oldest.set(oldest.map_or(0.0, WallTime::as_secs_f64));
        }
        if let Some(error) = error.filter(|_| !worker.stopping()) {
            self.metrics.failed_maintenance.inc();
            if let Some(suppressed) = self.log.allow(Instant::now()) {
                warn!(error = error.with_cause(), suppressed, "maintenance of closed files failed, retrying");
            }
        }
        retention_failed
    }
}

/// `rule` is the setting by which they were deleted.
fn count_deleted(kind: Kind, rule: Option<&str>, deleted: &DeletedFiles, metrics: &Deleted) {
    let FileTotals { files, bytes } = deleted.totals;
    metrics.files.inc_by(files);
    metrics.bytes.inc_by(bytes);
    if files > 0 {
        let mut paths = deleted.paths.join(" ");
        let unnamed = files - deleted.paths.len() as u64;
        if unnamed > 0 {
            paths += &format!(" and {unnamed} more");
        }
        info!(kind = kind.as_str(), rule, files, bytes, paths, "retention: deleted files");
    }
}
