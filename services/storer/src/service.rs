//! The service: threads around the writer and the maintenance, and the search page.

use std::{
    io::Write,
    ops::ControlFlow,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};
use sekiwake_archive::{LineEncoder, Query, SearchSummary, Unreadable, search};
use sekiwake_bus::{Bus, GroupSubscriber, GroupSubscriberSettings, Reporting};
use sekiwake_record::WallTime;
use sekiwake_runtime::{About, Latch, PageBody, PageError, PageRequest, PageWriter, RateLimited, Role, Scope, Worker};
use sekiwake_settings::{ByteSize, Reader, show_duration};
use sekiwake_sys::clock::{boot_now_ns, wall_now_ns};
use tracing::{info, warn};

use crate::{
    DeletedFiles, FileTotals, Load, Maintenance, MaintenanceSettings, RealDisk, Round, StorerSettings, WriterSettings,
    commit::{CommitLoop, CommitOptions, report_damage},
    error::cannot,
    metrics::{Deleted, StoreMetrics},
    receive::{ReceiveLoop, load_channel},
    retention_clock::RetentionClock,
    settings::KIND,
};

/// The storer.
#[derive(Debug)]
pub enum Storer {}

/// How many searches run at a time.
const SEARCHES: usize = 2;

/// How often maintenance runs when no file was closed.
const MAINTAIN_EVERY: Duration = Duration::from_secs(60);

/// The least time between two rounds, because listing all files is expensive.
const MAINTAIN_PAUSE: Duration = Duration::from_secs(2);

/// How often the maintenance thread checks for a stop.
const STOP_POLL: Duration = Duration::from_millis(500);

impl Role for Storer {
    const ABOUT: About = About {
        service: "storer",
        binary: "sekiwake-storer",
        summary: "Stores syslog on disk and searches it",
        admin_port: 9605,
    };

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

    fn start(settings: StorerSettings, scope: &Scope) -> anyhow::Result<()> {
        let Some(dir) = settings.dir.clone() else {
            info!("SEKIWAKE_STORE_DIR is not set, nothing is stored");
            return Ok(scope.idle()?);
        };
        let metrics = StoreMetrics::new(scope.metrics());
        let group_settings = GroupSubscriberSettings {
            subscribing: settings.subscribing.clone(),
            controlling: settings.controlling.clone(),
            group: settings.grouping.group(Self::ABOUT.service)?,
            label: settings.grouping.label.clone(),
            kind: KIND,
            start_age: settings.grouping.start_age,
            single_active: false,
            handoff: false,
        };
        let reporting = Reporting::new(scope, &settings.controlling.readiness("lease"), "group");
        let subscriber = GroupSubscriber::connect(&Bus::shared(), group_settings, reporting)?;
        let (load_sender, load_receiver) = load_channel();
        let (closed_sender, closed) = bounded(1);
        let member = settings.grouping.label.clone();
        // Both fail only once something has been tried.
        let closing = scope.readiness("closing");
        closing.set(true);
        let retention = scope.readiness("retention");
        retention.set(true);
        let commit_loop = CommitLoop::new(CommitOptions {
            dir: dir.clone(),
            settings: WriterSettings {
                rotate_bytes: settings.rotate_bytes,
                max_open: max_open(),
                ..WriterSettings::new(member.clone(), settings.format)
            },
            loads: load_receiver,
            closed: closed_sender,
            ready: scope.readiness("disk"),
            closing,
            status: scope.status("store"),
            metrics: metrics.clone(),
        });
        scope.spawn("write", move |worker| commit_loop.run(worker))?;

        let maintenance_loop = MaintenanceLoop::new(dir.clone(), &settings, closed, retention, metrics.clone());
        scope.spawn("maintain", move |worker| {
            maintenance_loop.run(worker);
            Ok(())
        })?;

        let template = settings.template.clone();
        let rotate = settings.rotate;
        let new_load = move || Load::new(template.clone(), member.clone(), rotate);
        let encoder = LineEncoder::new(settings.format);
        let receive_loop =
            ReceiveLoop::new(subscriber, encoder, settings.commit, load_sender, new_load, metrics.clone());
        scope.spawn("receive", move |worker| receive_loop.run(worker))?;

        let search_dir = dir.clone();
        scope.page("/search", SEARCHES, move |request| search_page(&search_dir, request, &metrics));
        let keep = settings.keep.map(show_duration);
        let max_bytes = settings.max_bytes.map(|bytes| ByteSize(bytes).to_string());
        match (&keep, &max_bytes) {
            (None, None) => {
                info!(
                    "retention is off, nothing is deleted: SEKIWAKE_STORE_KEEP and SEKIWAKE_STORE_MAX_BYTES are not set"
                );
            }
            _ => info!(keep, max_bytes, "retention is on"),
        }
        info!(directory = %dir.display(), "storing started");
        Ok(())
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
        let mut failed = Ok(());
        let summary = search(&dir, &query, &|| writer.borrow().is_wanted(), &mut |line| match writer
            .borrow_mut()
            .write_all(line)
        {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failed = Err(error);
                ControlFlow::Break(())
            }
        })?;
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
    settings: MaintenanceSettings,
    closed: Receiver<()>,
    /// Set unless files that are to be deleted cannot be.
    retention: Latch,
    metrics: StoreMetrics,
    log: RateLimited,
}

impl MaintenanceLoop {
    fn new(
        dir: PathBuf,
        settings: &StorerSettings,
        closed: Receiver<()>,
        retention: Latch,
        metrics: StoreMetrics,
    ) -> MaintenanceLoop {
        let settings = MaintenanceSettings {
            member: settings.grouping.label.clone(),
            compress: settings.compress,
            keep: settings.keep,
            max_bytes: settings.max_bytes,
        };
        MaintenanceLoop { dir, settings, closed, retention, metrics, log: RateLimited::default() }
    }

    fn run(self, worker: &Worker) {
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
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let rested = finished_at.is_none_or(|at| at.elapsed() >= MAINTAIN_PAUSE);
            is_due |= finished_at.is_some_and(|at| at.elapsed() >= MAINTAIN_EVERY);
            if is_due && rested {
                is_due = false;
                self.round(now(), worker);
                finished_at = Some(Instant::now());
            }
        }
    }

    fn round(&self, now: WallTime, worker: &Worker) {
        // Opened for each round, because the directory may have been replaced.
        let (round, error) = match RealDisk::open(&self.dir) {
            Ok(disk) => Maintenance::new(disk, self.settings.clone()).round(now, &|| {
                worker.beat();
                worker.stopping()
            }),
            Err(error) => (Round { retention_failed: true, ..Round::default() }, Some(cannot("open", "")(error))),
        };
        let Round { recovered, compressed, deleted_by_age, deleted_by_size, remaining, retention_failed } = round;
        if !worker.stopping() {
            self.retention.set(!retention_failed);
        }
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
        let MaintenanceSettings { keep, max_bytes, .. } = &self.settings;
        let keep = keep.map(|keep| format!("SEKIWAKE_STORE_KEEP={}", show_duration(keep)));
        let max_bytes = max_bytes.map(|bytes| format!("SEKIWAKE_STORE_MAX_BYTES={}", ByteSize(bytes)));
        count_deleted(keep.as_deref(), &deleted_by_age, &self.metrics.deleted_by_age);
        count_deleted(max_bytes.as_deref(), &deleted_by_size, &self.metrics.deleted_by_size);
        self.metrics.files.set(i64::try_from(remaining.files).unwrap_or(i64::MAX));
        self.metrics.bytes.set(i64::try_from(remaining.bytes).unwrap_or(i64::MAX));
        if let Some(error) = error.filter(|_| !worker.stopping()) {
            self.metrics.failed_maintenance.inc();
            if let Some(suppressed) = self.log.allow(Instant::now()) {
                warn!(error = error.with_cause(), suppressed, "maintenance of closed files failed, retrying");
            }
        }
    }
}

/// `rule` is the setting by which they were deleted.
fn count_deleted(rule: Option<&str>, deleted: &DeletedFiles, metrics: &Deleted) {
    let FileTotals { files, bytes } = deleted.totals;
    metrics.files.inc_by(files);
    metrics.bytes.inc_by(bytes);
    if files > 0 {
        let mut paths = deleted.paths.join(" ");
        let unnamed = files - deleted.paths.len() as u64;
        if unnamed > 0 {
            paths += &format!(" and {unnamed} more");
        }
        info!(rule, files, bytes, paths, "retention: deleted files");
    }
}
