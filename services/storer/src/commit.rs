//! The writing thread: loads go to the disk, and only then their tickets are dropped.

use std::{
    path::PathBuf,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use sekiwake_bus::Ticket;
use sekiwake_runtime::{Latch, RateLimited, StatusDesk, Worker};
use serde_json::json;
use tracing::{info, warn};

use crate::{Disk, RealDisk, StoreError, Writer, WriterSettings, metrics::StoreMetrics, receive::Filled};

/// The longest sleep.
const IDLE: Duration = Duration::from_millis(100);

/// How often files are closed that are due.
const TEND_EVERY: Duration = Duration::from_secs(1);

/// How soon a disk that refused is tried again.
const TRY_AGAIN: Duration = Duration::from_millis(250);

/// How long before the role's deadline what cannot be written is left to the group; where there is little time, the last quarter of it.
const STOP_MARGIN: Duration = Duration::from_secs(2);

/// See the module.
pub(crate) struct Committing {
    dir: PathBuf,
    settings: WriterSettings,
    writer: Option<Writer<RealDisk>>,
    filled: Receiver<Filled>,
    spent: Sender<Filled>,
    /// Tells the keeping thread that there are files to keep.
    closed: Sender<()>,
    closed_before: u64,
    ready: Latch,
    desk: StatusDesk,
    metrics: StoreMetrics,
    log: RateLimited,
    /// Why the disk refuses, if it does.
    refusal: Option<String>,
    give_up_at: Option<Instant>,
}

impl Committing {
    pub(crate) fn new(
        dir: PathBuf,
        settings: WriterSettings,
        (filled, spent): (Receiver<Filled>, Sender<Filled>),
        closed: Sender<()>,
        (ready, desk): (Latch, StatusDesk),
        metrics: StoreMetrics,
    ) -> Committing {
        Committing {
            dir,
            settings,
            writer: None,
            filled,
            spent,
            closed,
            closed_before: 0,
            ready,
            desk,
            metrics,
            log: RateLimited::default(),
            refusal: None,
            give_up_at: None,
        }
    }

    pub(crate) fn run(mut self, worker: &Worker) -> anyhow::Result<()> {
        let mut waiting: Option<Filled> = None;
        let mut tended_at = Instant::now();
        loop {
            worker.beat();
            self.answer();
            if let Err(error) = self.open() {
                if matches!(error, StoreError::Twin(_)) {
                    return Err(error.into());
                }
                self.refused(&error);
            }
            if waiting.is_none() {
                match self.filled.recv_timeout(IDLE) {
                    Ok(filled) => waiting = Some(filled),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => break,
                }
            }
            if let Some(filled) = waiting.take() {
                waiting = self.store(filled, worker);
            }
            if tended_at.elapsed() >= TEND_EVERY {
                tended_at = Instant::now();
                self.tend();
            }
        }
        if let Some(writer) = &mut self.writer {
            writer.close_all();
        }
        Ok(())
    }

    /// Takes the directory, once it can be had.
    fn open(&mut self) -> Result<(), StoreError> {
        if self.writer.is_some() {
            return Ok(());
        }
        let shown = self.dir.display().to_string();
        let disk = RealDisk::open(&self.dir).map_err(crate::writer::cannot("open", &shown))?;
        let (writer, recovered) = Writer::open(disk, self.settings.clone())?;
        self.metrics.recovered_files.inc_by(recovered.files);
        self.metrics.cut_bytes.inc_by(recovered.cut_bytes);
        if let Some(error) = recovered.error {
            warn!(
                files = recovered.failed,
                error, "files of the last run cannot be made whole, and are left as they are"
            );
        }
        if recovered.files > 0 {
            let (files, cut_bytes) = (recovered.files, recovered.cut_bytes);
            info!(files, cut_bytes, "made files whole that were open when the last run ended");
        }
        self.writer = Some(writer);
        self.accepted();
        // There may be closed files of the run before.
        let _ = self.closed.try_send(());
        Ok(())
    }

    /// Writes a load; gives it back where the disk refuses.
    fn store(&mut self, mut filled: Filled, worker: &Worker) -> Option<Filled> {
        let stored = match &mut self.writer {
            Some(writer) => {
                let started = Instant::now();
                let stored = writer.store(now_ns(), &mut filled.load);
                self.metrics.commit_seconds.observe(started.elapsed().as_secs_f64());
                stored
            }
            None => return self.wait(filled, worker),
        };
        match stored {
            Ok(()) => {
                let records = filled.records;
                self.metrics.written_records.inc_by(records);
                self.metrics.written_bytes.inc_by(filled.load.bytes() as u64);
                self.metrics.held_records.sub(records as i64);
                self.metrics.last_commit.set(now_ns() as f64 / 1e9);
                self.accepted();
                self.spend(filled);
                None
            }
            Err(error) => {
                self.metrics.failed_commits.inc();
                self.refused(&error);
                // Another directory may come in its place, and knows nothing of what was written to this one.
                if matches!(error, StoreError::Replaced) {
                    self.writer = None;
                    filled.load.begin_again();
                }
                self.wait(filled, worker)
            }
        }
    }

    /// The disk has what was in it, or nobody will write it any more.
    fn spend(&self, mut filled: Filled) {
        filled.tickets.clear();
        filled.load.clear();
        filled.records = 0;
        // A full channel has spent loads enough.
        let _ = self.spent.try_send(filled);
    }

    /// Waits before the next try. At the end what cannot be written is left to the group.
    fn wait(&mut self, filled: Filled, worker: &Worker) -> Option<Filled> {
        if !self.is_over(worker) {
            worker.stop().wait(TRY_AGAIN);
            if worker.deadline().is_some() {
                std::thread::sleep(TRY_AGAIN / 5);
            }
            return Some(filled);
        }
        filled.tickets.iter().for_each(Ticket::abandon);
        self.metrics.handed_over_records.inc_by(filled.records);
        self.metrics.held_records.sub(filled.records as i64);
        warn!(
            records = filled.records,
            "the disk refuses, and the time to stop is up: what is not stored is left to the group"
        );
        self.spend(filled);
        None
    }

    fn is_over(&mut self, worker: &Worker) -> bool {
        let Some(deadline) = worker.deadline() else { return false };
        let now = Instant::now();
        let give_up_at = *self.give_up_at.get_or_insert_with(|| {
            let left = deadline.saturating_duration_since(now);
            now + left - STOP_MARGIN.min(left / 4)
        });
        give_up_at <= now
    }

    fn tend(&mut self) {
        let Some(writer) = &mut self.writer else { return };
        writer.tend(now_ns());
        if writer.closed() > self.closed_before {
            self.closed_before = writer.closed();
            // A full one has told already.
            let _ = self.closed.try_send(());
        }
        self.metrics.open_parts.set(writer.open_parts() as i64);
        self.metrics.open_files.set(writer.open_files() as i64);
        if let Ok(bytes) = writer.disk().free_bytes() {
            self.metrics.free_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
    }

    fn accepted(&mut self) {
        self.ready.set(true);
        self.metrics.up.set(1);
        if self.refusal.take().is_some() {
            info!("the disk takes what is written again");
        }
    }

    fn refused(&mut self, error: &StoreError) {
        self.ready.set(false);
        self.metrics.up.set(0);
        let told = error.told();
        if let Some(suppressed) = self.log.allow(Instant::now()) {
            let directory = self.dir.display().to_string();
            warn!(directory, error = told, suppressed, "the disk refuses: what comes is held, and tried again");
        }
        self.refusal = Some(told);
    }

    fn answer(&self) {
        self.desk.answer(|| {
            json!({
                "directory": self.dir.display().to_string(),
                "refusal": self.refusal,
                "open_parts": self.writer.as_ref().map(Writer::open_parts),
                "held_records": self.metrics.held_records.get(),
                "written_records": self.metrics.written_records.get(),
                "files": self.metrics.files.get(),
                "bytes": self.metrics.bytes.get(),
            })
        });
    }
}

pub(crate) fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
