//! The service: threads around the writer and the keeping, and the search.

use std::{
    io::Write,
    ops::ControlFlow,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};
use sekiwake_bus::{Bus, GroupSubscriber, GroupSubscriberSettings};
use sekiwake_runtime::{About, PageBody, PageRefusal, PageRequest, PageWriter, RateLimited, Role, Scope, Worker};
use sekiwake_settings::Reader;
use sekiwake_store::{LineEncoder, Query, SearchSummary, search};
use tracing::{info, warn};

use crate::{
    Keeping, KeepingSettings, Load, RealDisk, Round, StorerSettings, WriterSettings,
    commit::{Committing, now_ns},
    metrics::StoreMetrics,
    receive::Receiving,
    settings::KIND,
};

/// The storer.
#[derive(Debug)]
pub enum Storer {}

/// How many searches run at a time.
const SEARCHES: usize = 2;

/// How often closed files are looked after, when nothing was closed.
const KEEP_EVERY: Duration = Duration::from_secs(60);

/// The least time between two rounds: a listing of everything is no small thing.
const KEEP_PAUSE: Duration = Duration::from_secs(2);

/// How soon the keeping thread notices that it is time to stop.
const LOOK_EVERY: Duration = Duration::from_millis(200);

impl Role for Storer {
    const ABOUT: About = About {
        service: "storer",
        binary: "sekiwake-storer",
        summary: "keeps syslog on disk, and finds it again",
        admin_port: 9605,
    };

    type Settings = StorerSettings;

    fn read(reader: &mut Reader) -> StorerSettings {
        StorerSettings::read(reader)
    }

    fn start(settings: StorerSettings, scope: &Scope) -> anyhow::Result<()> {
        let Some(dir) = settings.dir.clone() else {
            info!(variable = "SEKIWAKE_STORE_DIR", "no directory is set, nothing is stored");
            return Ok(scope.idle()?);
        };
        let metrics = StoreMetrics::new(scope.metrics());
        let of_group = GroupSubscriberSettings {
            subscribing: settings.subscribing.clone(),
            controlling: settings.controlling.clone(),
            group: settings.grouping.group(Self::ABOUT.service)?,
            label: settings.grouping.label.clone(),
            kind: KIND,
            start_age: settings.grouping.start_age,
            one_works: false,
            notes: false,
        };
        let told = (scope.readiness("lease"), scope.status("group"));
        let subscriber = GroupSubscriber::connect(&Bus::shared(), of_group, scope.metrics(), told)?;
        // One load is filled, one waits, one is written.
        let (to_writer, filled) = bounded(1);
        let (to_receiver, spent) = bounded(2);
        let (to_keeper, closed) = bounded(1);
        let member = settings.grouping.label.clone();
        let of_writer = WriterSettings {
            rotate_bytes: settings.rotate_bytes,
            ..WriterSettings::new(member.clone(), settings.format)
        };
        let told = (scope.readiness("disk"), scope.status("store"));
        let committing =
            Committing::new(dir.clone(), of_writer, (filled, to_receiver), to_keeper, told, metrics.clone());
        scope.spawn("write", move |worker| committing.run(worker))?;

        let keeper = Keeper::new(dir.clone(), &settings, closed, metrics.clone());
        scope.spawn("keep", move |worker| {
            keeper.run(worker);
            Ok(())
        })?;

        let (template, label, rotate) = (settings.template.clone(), member, settings.rotate);
        let fresh = move || Load::new(template.clone(), label.clone(), rotate);
        let encoder = LineEncoder::new(settings.format);
        let receiving =
            Receiving::new(subscriber, encoder, settings.commit, (to_writer, spent), fresh, metrics.clone());
        scope.spawn("receive", move |worker| receiving.run(worker))?;

        let searched = dir.clone();
        scope.page("/search", SEARCHES, move |request| search_page(&searched, request, &metrics));
        if settings.keep.is_none() && settings.max_bytes.is_none() {
            info!("nothing is ever deleted: SEKIWAKE_STORE_KEEP and SEKIWAKE_STORE_MAX_BYTES are not set");
        }
        info!(directory = %dir.display(), "storing");
        Ok(())
    }
}

fn search_page(dir: &Path, request: &PageRequest, metrics: &StoreMetrics) -> Result<PageBody, PageRefusal> {
    let query = Query::parse(now_ns(), request.parameters())
        .map_err(|wrong| PageRefusal { status: 400, message: wrong.to_string() })?;
    metrics.searches.inc();
    let dir = dir.to_owned();
    let write = move |writer: &mut PageWriter| {
        // Both want it: one to write, one to ask whether that is still wanted.
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
        tell(&summary);
        if !summary.failed.is_empty() {
            // An answer with holes must not look like one without.
            return Err(std::io::Error::other("some files cannot be read"));
        }
        if !writer.borrow().is_wanted() {
            return Err(std::io::ErrorKind::BrokenPipe.into());
        }
        Ok(())
    };
    Ok(PageBody { content_type: "application/x-ndjson", write: Box::new(write) })
}

fn tell(summary: &SearchSummary) {
    for (path, error) in &summary.failed {
        warn!(path, error, "a search cannot read a file");
    }
    if summary.corrupt > 0 {
        warn!(corrupt = summary.corrupt, "a search has passed over lines or frames that are none");
    }
}

/// The thread that compresses and deletes closed files.
struct Keeper {
    dir: PathBuf,
    settings: KeepingSettings,
    closed: Receiver<()>,
    metrics: StoreMetrics,
    log: RateLimited,
}

impl Keeper {
    fn new(dir: PathBuf, settings: &StorerSettings, closed: Receiver<()>, metrics: StoreMetrics) -> Keeper {
        let settings = KeepingSettings {
            member: settings.grouping.label.clone(),
            compress: settings.compress,
            keep: settings.keep,
            max_bytes: settings.max_bytes,
        };
        Keeper { dir, settings, closed, metrics, log: RateLimited::default() }
    }

    fn run(self, worker: &Worker) {
        let mut kept_at: Option<Instant> = None;
        let mut is_due = false;
        while !worker.stopping() {
            worker.beat();
            match self.closed.recv_timeout(LOOK_EVERY) {
                Ok(()) => is_due = true,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let rested = kept_at.is_none_or(|at| at.elapsed() >= KEEP_PAUSE);
            is_due |= kept_at.is_some_and(|at| at.elapsed() >= KEEP_EVERY);
            if is_due && rested {
                is_due = false;
                self.round(worker);
                kept_at = Some(Instant::now());
            }
        }
    }

    fn round(&self, worker: &Worker) {
        // Opened anew each time: the directory may be another one.
        let (round, error) = match RealDisk::open(&self.dir) {
            Ok(disk) => Keeping::new(disk, self.settings.clone()).round(now_ns(), &|| {
                worker.beat();
                worker.stopping()
            }),
            Err(error) => (Round::default(), Some(crate::writer::cannot("open", "")(error))),
        };
        let Round { recovered, packed, deleted_by_age, deleted_by_size, files } = round;
        if let Some(error) = recovered.error
            && let Some(suppressed) = self.log.allow(Instant::now())
        {
            let files = recovered.failed;
            warn!(
                files,
                error, suppressed, "files of members that are no more cannot be made whole, and are left as they are"
            );
        }
        self.metrics.recovered_files.inc_by(recovered.files);
        self.metrics.cut_bytes.inc_by(recovered.cut_bytes);
        self.metrics.packed_files.inc_by(packed);
        for ((files, bytes), deleted) in
            [(deleted_by_age, &self.metrics.deleted_by_age), (deleted_by_size, &self.metrics.deleted_by_size)]
        {
            deleted.files.inc_by(files);
            deleted.bytes.inc_by(bytes);
        }
        if deleted_by_age.0 + deleted_by_size.0 > 0 {
            let (files, bytes) = (deleted_by_age.0 + deleted_by_size.0, deleted_by_age.1 + deleted_by_size.1);
            info!(files, bytes, "deleted what is older than is to be kept, or more than there is room for");
        }
        self.metrics.files.set(i64::try_from(files.0).unwrap_or(i64::MAX));
        self.metrics.bytes.set(i64::try_from(files.1).unwrap_or(i64::MAX));
        if let Some(error) = error.filter(|_| !worker.stopping()) {
            self.metrics.failed_keeping.inc();
            if let Some(suppressed) = self.log.allow(Instant::now()) {
                warn!(
                    error = error.told(),
                    suppressed, "closed files cannot be kept as they should; it is tried again"
                );
            }
        }
    }
}
