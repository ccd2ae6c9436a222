//! The writing thread: writes and fsyncs loads, and only then drops their ack tokens.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use crossbeam_channel::{RecvTimeoutError, Sender};
use sekiwake_bus::AckToken;
use sekiwake_record::WallTime;
use sekiwake_runtime::{Latch, RateLimited, StatusResponder, StopClock, Worker};
use sekiwake_sys::clock::wall_now_ns;
use serde_json::json;
use tracing::{info, warn};

use crate::{
    Disk, RealDisk, Recovered, StoreError, Writer, WriterSettings,
    metrics::StoreMetrics,
    receive::{Filled, LoadReceiver},
};

/// The longest sleep.
const IDLE: Duration = Duration::from_secs(1);

/// How often due files are closed.
const CLOSE_EVERY: Duration = Duration::from_secs(1);

/// The pause before a failed write is retried.
const RETRY_PAUSE: Duration = Duration::from_millis(250);

/// How long before the drain deadline unwritten records are left to the group.
const STOP_MARGIN: Duration = Duration::from_secs(2);

/// The resources of the writing thread.
pub(crate) struct CommitOptions {
    /// The store's directory.
    pub(crate) dir: PathBuf,
    pub(crate) settings: WriterSettings,
    pub(crate) loads: LoadReceiver,
    /// Wakes the maintenance thread when files have been closed.
    pub(crate) closed: Sender<()>,
    /// Set while writes succeed.
    pub(crate) ready: Latch,
    /// Set while complete files can be closed.
    pub(crate) closing: Latch,
    pub(crate) status: StatusResponder,
    pub(crate) metrics: StoreMetrics,
}

/// The state of the writing thread.
pub(crate) struct CommitLoop {
    options: CommitOptions,
    writer: Option<Writer<RealDisk>>,
    /// Files that the writer had closed when the maintenance thread was woken last.
    closed_before: u64,
    log: RateLimited,
    close_log: RateLimited,
    /// The last error, until a write succeeds.
    error: Option<String>,
    clock: StopClock,
}

impl CommitLoop {
    pub(crate) fn new(options: CommitOptions) -> CommitLoop {
        CommitLoop {
            options,
            writer: None,
            closed_before: 0,
            log: RateLimited::default(),
            close_log: RateLimited::default(),
            error: None,
            clock: StopClock::new(STOP_MARGIN),
        }
    }

    pub(crate) fn run(mut self, worker: &Worker) -> anyhow::Result<()> {
        let mut waiting: Option<Filled> = None;
        let mut closed_at = Instant::now();
        loop {
            worker.beat();
            self.update_status();
            if let Err(error) = self.open() {
                if matches!(error, StoreError::NameInUse(_)) {
                    return Err(error.into());
                }
                self.mark_down(&error);
            }
            if waiting.is_none() {
                match self.options.loads.filled.recv_timeout(IDLE) {
                    Ok(filled) => waiting = Some(filled),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => break,
                }
            }
            if let Some(filled) = waiting.take() {
                waiting = self.store(filled, worker);
            }
            if closed_at.elapsed() >= CLOSE_EVERY {
                closed_at = Instant::now();
                self.close_due();
            }
        }
        if let Some(writer) = &mut self.writer {
            writer.close_all();
        }
        Ok(())
    }

    /// Opens the directory, if it is not open yet.
    fn open(&mut self) -> Result<(), StoreError> {
        if self.writer.is_some() {
            return Ok(());
        }
        let shown = self.options.dir.display().to_string();
        let disk = RealDisk::open(&self.options.dir).map_err(crate::error::cannot("open", &shown))?;
        let (writer, recovered) = Writer::open(disk, self.options.settings.clone())?;
        self.options.metrics.recovered_files.inc_by(recovered.files);
        self.options.metrics.truncated_bytes.inc_by(recovered.truncated_bytes);
        if let Some(error) = &recovered.error {
            warn!(files = recovered.failed, error, "recovery of open files failed, leaving them unchanged");
        }
        if recovered.files > 0 {
            let Recovered { files, truncated_bytes, .. } = recovered;
            info!(files, truncated_bytes, "recovered files that the last run left open");
        }
        report_damage(&recovered, &self.options.metrics);
        if !writer.is_locked() {
            let member = self.options.settings.member.as_str();
            warn!(member, "file system has no locks (flock), another storer of this name would not be detected");
        }
        self.writer = Some(writer);
        self.mark_up();
        // The previous run may have left closed files to compress.
        let _ = self.options.closed.try_send(());
        Ok(())
    }

    /// Writes a load; returns it if that failed.
    fn store(&mut self, mut filled: Filled, worker: &Worker) -> Option<Filled> {
        let stored = match &mut self.writer {
            Some(writer) => {
                let started = Instant::now();
                let stored = writer.store(now(), &mut filled.load);
                self.options.metrics.commit_seconds.observe(started.elapsed().as_secs_f64());
                stored
            }
            None => return self.wait(filled, worker),
        };
        match stored {
            Ok(()) => {
                let records = filled.records;
                self.options.metrics.written_records.inc_by(records);
                self.options.metrics.written_bytes.inc_by(filled.load.bytes() as u64);
                self.options.metrics.unsynced_records.sub(records as i64);
                self.options.metrics.last_commit.set(now().as_secs_f64());
                self.mark_up();
                self.recycle(filled);
                None
            }
            Err(error) => {
                self.options.metrics.failed_commits.inc();
                self.mark_down(&error);
                // The new directory has none of the data that was written to the old one.
                if matches!(error, StoreError::Replaced) {
                    self.writer = None;
                    filled.load.mark_unwritten();
                }
                self.wait(filled, worker)
            }
        }
    }

    /// Clears a load for reuse, and drops its ack tokens.
    fn recycle(&self, mut filled: Filled) {
        filled.ack_tokens.clear();
        filled.load.clear();
        filled.records = 0;
        // If the channel is full there are enough empty loads.
        let _ = self.options.loads.empty.try_send(filled);
    }

    /// Waits before the next attempt. Near the drain deadline, leaves the records to the group.
    fn wait(&mut self, filled: Filled, worker: &Worker) -> Option<Filled> {
        if !self.clock.is_over(worker.deadline(), Instant::now()) {
            worker.stop().wait(RETRY_PAUSE);
            if worker.deadline().is_some() {
                std::thread::sleep(RETRY_PAUSE / 5);
            }
            return Some(filled);
        }
        filled.ack_tokens.iter().for_each(AckToken::abandon);
        self.options.metrics.handed_over_records.inc_by(filled.records);
        self.options.metrics.unsynced_records.sub(filled.records as i64);
        warn!(records = filled.records, "write failed at the drain deadline, unsynced records left to the group");
        self.recycle(filled);
        None
    }

    fn close_due(&mut self) {
        let Some(writer) = &mut self.writer else { return };
        writer.close_due(now());
        self.options.closing.set(writer.close_error().is_none());
        if let Some(error) = writer.close_error()
            && let Some(suppressed) = self.close_log.allow(Instant::now())
        {
            warn!(error = error.with_cause(), suppressed, "cannot close complete files, retrying");
        }
        if writer.closed() > self.closed_before {
            self.closed_before = writer.closed();
            // A full channel also wakes the thread.
            let _ = self.options.closed.try_send(());
        }
        self.options.metrics.open_parts.set(writer.open_parts() as i64);
        self.options.metrics.open_files.set(writer.open_files() as i64);
        if let Ok(bytes) = writer.disk().free_bytes() {
            self.options.metrics.free_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
    }

    fn mark_up(&mut self) {
        self.options.ready.set(true);
        self.options.metrics.up.set(1);
        if self.error.take().is_some() {
            info!("writing succeeds again");
        }
    }

    fn mark_down(&mut self, error: &StoreError) {
        self.options.ready.set(false);
        self.options.metrics.up.set(0);
        let error = error.with_cause();
        if let Some(suppressed) = self.log.allow(Instant::now()) {
            let directory = self.options.dir.display().to_string();
            warn!(directory, error, suppressed, "write failed, keeping records in memory and retrying");
        }
        self.error = Some(error);
    }

    /// How far back the files reach.
    fn oldest(&self) -> Option<String> {
        let seconds = self.options.metrics.oldest.get();
        (seconds > 0.0)
            .then(|| jiff::Timestamp::from_second(seconds as i64).map_or_else(|_| String::new(), |at| at.to_string()))
    }

    fn update_status(&self) {
        self.options.status.answer(|| {
            json!({
                "directory": self.options.dir.display().to_string(),
                "error": self.error,
                "open_parts": self.writer.as_ref().map(Writer::open_parts),
                "unsynced_records": self.options.metrics.unsynced_records.get(),
                "written_records": self.options.metrics.written_records.get(),
                "files": self.options.metrics.files.get(),
                "bytes": self.options.metrics.bytes.get(),
                "oldest": self.oldest(),
            })
        });
    }
}

fn now() -> WallTime {
    WallTime::from_nanos(wall_now_ns())
}

/// Counts and logs lines that a recovery found damaged.
pub(crate) fn report_damage(recovered: &Recovered, metrics: &StoreMetrics) {
    let lines = recovered.damaged_lines;
    metrics.damaged_lines.inc_by(lines);
    if lines > 0 {
        warn!(lines, "recovered files have damaged lines or places, which readers skip");
    }
}
