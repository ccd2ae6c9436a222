//! The service: threads around the detector.

use std::{
    fs::{self, File},
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::Context;
use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};
use prometheus::IntCounter;
use sekiwake_bus::{Bus, GroupSettings, Reporting};
use sekiwake_record::Kind;
use sekiwake_runtime::{About as Service, FileContents, Finding, RateLimited, Role, Scope, Worker, host_name};
use sekiwake_settings::Reader;
use tracing::{info, warn};

use crate::{
    counting::{CountLoop, CountOptions},
    detect::{StateEntry, read_file, write_file},
    metrics::names,
    notify::{About, Dispatcher, Timing},
    settings::AnomalySettings,
};

/// The anomaly detector.
#[derive(Debug)]
pub enum AnomalyDetector {}

fn group_settings(settings: &AnomalySettings) -> anyhow::Result<GroupSettings> {
    Ok(GroupSettings {
        subscribing: settings.subscribing.clone(),
        controlling: settings.controlling.clone(),
        group: settings.grouping.group(AnomalyDetector::ABOUT.service)?,
        label: settings.grouping.label.clone(),
        kind: Kind::Syslog,
        start_age: settings.grouping.start_age,
        single_active: true,
        handoff: true,
        deduplicate: settings.grouping.deduplicate,
    })
}

/// The largest state file, bytes.
const MAX_STATE_BYTES: u64 = 64 << 20;

impl Role for AnomalyDetector {
    const ABOUT: Service = Service {
        service: "anomaly-detector",
        binary: "sekiwake-anomaly-detector",
        summary: "Detects sudden rises and drops in the rate of syslog",
        admin_port: 9606,
    };

    type Settings = AnomalySettings;

    fn read(reader: &mut Reader) -> AnomalySettings {
        AnomalySettings::read(reader)
    }

    fn describe(settings: &AnomalySettings) -> Vec<(String, String)> {
        // Without passwords and tokens.
        match settings.notifiers.is_empty() {
            true => Vec::new(),
            false => vec![("SEKIWAKE_NOTIFY".to_owned(), settings.notifiers.to_string())],
        }
    }

    fn examine(settings: &AnomalySettings) -> Vec<Finding> {
        group_settings(settings).map(|of_group| of_group.examine()).unwrap_or_default()
    }

    fn start(settings: AnomalySettings, scope: &Scope) -> anyhow::Result<()> {
        let bus = Bus::of(scope);
        let group_settings = group_settings(&settings)?;
        let group = group_settings.group.clone();
        let reporting = Reporting::new(scope, &settings.controlling.readiness("lease"), "group")
            .deduplicating(scope, settings.grouping.deduplicate);
        let source = bus.group_source(group_settings, reporting)?;
        let publisher = bus.event_sink(&settings.publishing, &settings.publisher, scope.metrics())?;
        let about = About {
            detector: format!("{group}/{}", settings.grouping.label),
            host: host_name().to_string(),
            interval: settings.detection.interval,
        };
        let dispatcher = Dispatcher::start(&settings.notifiers, &about, Timing::default(), scope)?;
        let mut from_file = Vec::new();
        let mut state_file = None;
        if let Some(path) = settings.state.clone() {
            from_file = load(&path)?;
            let (sender, receiver) = bounded(1);
            let failures = "Failures to write the state file.";
            let writer = StateFileWriter {
                path,
                states: receiver,
                failures: scope.metrics().counter(names::STATE_FAILURES, failures, &[]),
                log: RateLimited::default(),
            };
            scope.spawn("state", move |worker| {
                writer.run(worker);
                Ok(())
            })?;
            state_file = Some(sender);
        }
        let options = CountOptions {
            source,
            settings: settings.detection,
            dispatcher,
            publisher,
            about,
            from_file,
            state_file,
            status: scope.status("detector"),
        };
        let count_loop = CountLoop::new(options, scope.metrics());
        scope.spawn("count", move |worker| count_loop.run(worker))?;
        info!(notify = %settings.notifiers, "anomaly detection started");
        Ok(())
    }
}

/// Reads the state file; empty if it does not exist yet. An invalid file is moved aside, because
/// starting without state is better than not starting.
fn load(path: &Path) -> anyhow::Result<Vec<StateEntry>> {
    let shown = path.display().to_string();
    let bytes = match FileContents::read(path, MAX_STATE_BYTES).map(|contents| contents.bytes) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        read => read.with_context(|| format!("cannot read {shown} (SEKIWAKE_ANOMALY_STATE)"))?,
    };
    match read_file(&bytes) {
        Ok(file) => {
            if file.damaged > 0 {
                warn!(path = shown, damaged = file.damaged, "state file damaged, damaged entries skipped");
            }
            Ok(file.entries)
        }
        Err(reason) => {
            let aside = path.with_extension("broken");
            warn!(path = shown, reason, moved_to = %aside.display(), "state file unusable, moved aside, starting empty");
            let _ = fs::rename(path, aside);
            Ok(Vec::new())
        }
    }
}

/// The thread that writes the state file, so that a slow disk does not delay the counting.
struct StateFileWriter {
    path: PathBuf,
    states: Receiver<Vec<StateEntry>>,
    failures: IntCounter,
    log: RateLimited,
}

impl StateFileWriter {
    fn run(self, worker: &Worker) {
        loop {
            worker.beat();
            match self.states.recv_timeout(Duration::from_millis(500)) {
                Ok(entries) => {
                    if let Err(error) = self.write(&write_file(&entries)) {
                        self.failures.inc();
                        if let Some(suppressed) = self.log.allow(Instant::now()) {
                            let path = self.path.display().to_string();
                            warn!(path, %error, suppressed, "cannot write the state file");
                        }
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Replaces the file atomically. Leaves nothing if that fails.
    fn write(&self, bytes: &[u8]) -> std::io::Result<()> {
        let temporary = self.path.with_extension("tmp");
        let replace = || -> std::io::Result<()> {
            let mut file = File::create(&temporary)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&temporary, &self.path)
        };
        replace().inspect_err(|_| drop(fs::remove_file(&temporary)))?;
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        match File::open(folder)?.sync_all() {
            // Some file systems sync no directories.
            Err(error) if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => Ok(()),
            synced => synced,
        }
    }
}
