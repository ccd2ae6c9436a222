//! The service: threads around the detector.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::Context;
use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};
use prometheus::IntCounter;
use sekiwake_bus::{Bus, EventPublisher, GroupSubscriber, GroupSubscriberSettings};
use sekiwake_record::Kind;
use sekiwake_runtime::{About as Service, RateLimited, Role, Scope, Worker, host_name};
use sekiwake_settings::Reader;
use tracing::{info, warn};

use crate::{
    counting::{Counting, Surroundings},
    detect::{StateNote, read_file, write_file},
    metrics::names,
    notify::{About, Patience, Telling},
    settings::AnomalySettings,
};

/// The anomaly detector.
#[derive(Debug)]
pub enum AnomalyDetector {}

/// The largest file with a state, bytes.
const MAX_STATE_BYTES: u64 = 64 << 20;

impl Role for AnomalyDetector {
    const ABOUT: Service = Service {
        service: "anomaly-detector",
        binary: "sekiwake-anomaly-detector",
        summary: "notices that there is suddenly more, or less, syslog than there was",
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

    fn start(settings: AnomalySettings, scope: &Scope) -> anyhow::Result<()> {
        let group = settings.grouping.group(Self::ABOUT.service)?;
        let bus = Bus::shared();
        let of_group = GroupSubscriberSettings {
            subscribing: settings.subscribing.clone(),
            controlling: settings.controlling.clone(),
            group: group.clone(),
            label: settings.grouping.label.clone(),
            kind: Kind::Syslog,
            start_age: settings.grouping.start_age,
            one_works: true,
            notes: true,
        };
        let told = (scope.readiness("lease"), scope.status("group"));
        let subscriber = GroupSubscriber::connect(&bus, of_group, scope.metrics(), told)?;
        let publisher = EventPublisher::connect(&bus, &settings.publishing, &settings.publisher, scope.metrics())?;
        let about = About {
            detector: format!("{group}/{}", settings.grouping.label),
            host: host_name().to_string(),
            interval_seconds: settings.detecting.interval_ns as f64 / 1e9,
        };
        let telling = Telling::start(&settings.notifiers, &about, Patience::default(), scope)?;
        let (mut from_file, mut files) = (Vec::new(), None);
        if let Some(path) = settings.state.clone() {
            from_file = load(&path)?;
            let (sender, receiver) = bounded(1);
            let failures = "Failures to write the file with the state.";
            let keeper = StateFile {
                path,
                notes: receiver,
                failures: scope.metrics().counter(names::STATE_FAILURES, failures, &[]),
                log: RateLimited::default(),
            };
            scope.spawn("state", move |worker| {
                keeper.run(worker);
                Ok(())
            })?;
            files = Some(sender);
        }
        let desk = scope.status("detector");
        let surroundings = Surroundings { telling, publisher, about, from_file, files, desk };
        let counting = Counting::new(subscriber, settings.detecting, surroundings, scope.metrics());
        scope.spawn("count", move |worker| counting.run(worker))?;
        info!(notify = %settings.notifiers, "watching syslog");
        Ok(())
    }
}

/// What a file has; nothing where there is none yet. One that is broken is put aside: to begin anew is better than not to begin.
fn load(path: &Path) -> anyhow::Result<Vec<StateNote>> {
    let shown = path.display().to_string();
    let read = fs::metadata(path).and_then(|found| match found.len() {
        0..=MAX_STATE_BYTES => fs::read(path),
        _ => Err(std::io::Error::other("it is larger than any state")),
    });
    let bytes = match read {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        read => read.with_context(|| format!("cannot read {shown} (SEKIWAKE_ANOMALY_STATE)"))?,
    };
    match read_file(&bytes) {
        Ok(notes) => Ok(notes),
        Err(why) => {
            let aside = path.with_extension("broken");
            warn!(path = shown, why, aside = %aside.display(), "the state cannot be used, and is put aside: beginning anew");
            let _ = fs::rename(path, aside);
            Ok(Vec::new())
        }
    }
}

/// The thread that writes the state: a slow disk is not to hold up the counting.
struct StateFile {
    path: PathBuf,
    notes: Receiver<Vec<StateNote>>,
    failures: IntCounter,
    log: RateLimited,
}

impl StateFile {
    fn run(self, worker: &Worker) {
        loop {
            worker.beat();
            match self.notes.recv_timeout(Duration::from_millis(500)) {
                Ok(notes) => {
                    if let Err(error) = self.write(&write_file(&notes)) {
                        self.failures.inc();
                        if let Some(suppressed) = self.log.allow(Instant::now()) {
                            let path = self.path.display().to_string();
                            warn!(path, %error, suppressed, "cannot write the state");
                        }
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// The whole file or the one before.
    fn write(&self, bytes: &[u8]) -> std::io::Result<()> {
        let temporary = self.path.with_extension("tmp");
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, &self.path)?;
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder)?.sync_all()
    }
}
