//! What the detector is told.

use std::{path::PathBuf, time::Duration};

use sekiwake_bus::{Controlling, Grouping, Publishing, Subscribing};
use sekiwake_record::Name;
use sekiwake_runtime::host_name;
use sekiwake_settings::{List, Reader, Setting};

use crate::{
    detect::{BandSettings, Settings},
    notify::Notifiers,
};

/// Where the detector takes its records from, how it judges, and whom it tells.
#[derive(Clone, Debug)]
pub struct AnomalySettings {
    /// Where the bus is to subscribe to.
    pub subscribing: Subscribing,
    /// The control plane.
    pub controlling: Controlling,
    /// Where events are published.
    pub publishing: Publishing,
    /// Which group it is a member of, and as whom.
    pub grouping: Grouping,
    /// As whom it publishes events.
    pub publisher: Name,
    /// How it counts and judges.
    pub detecting: Settings,
    /// A file that keeps the state.
    pub state: Option<PathBuf>,
    /// Whom it tells.
    pub notifiers: Notifiers,
}

impl AnomalySettings {
    /// Reads `SEKIWAKE_ANOMALY_*`, `SEKIWAKE_NOTIFY` and the settings of a member of a group.
    pub fn read(reader: &mut Reader) -> AnomalySettings {
        let (subscribing, controlling) = (Subscribing::read(reader), Controlling::read(reader));
        let (publishing, grouping) = (Publishing::read(reader), Grouping::read(reader));
        let publisher = reader.optional("SEKIWAKE_PUBLISHER").unwrap_or_else(host_name);
        let detecting = read_detecting(reader);
        let state = reader.optional("SEKIWAKE_ANOMALY_STATE");
        let notify: Option<String> = reader.optional("SEKIWAKE_NOTIFY");
        let notifiers = Notifiers::parse(notify.as_deref().unwrap_or_default()).unwrap_or_else(|wrong| {
            // It may have a password in it.
            reader.mistake("SEKIWAKE_NOTIFY", "(hidden)", &format!("URIs, separated by white space ({wrong})"));
            Notifiers::default()
        });
        AnomalySettings { subscribing, controlling, publishing, grouping, publisher, detecting, state, notifiers }
    }
}

/// Reads how to count and judge: what the service and `explain` have in common.
pub(crate) fn read_detecting(reader: &mut Reader) -> Settings {
    let interval = reader.within("SEKIWAKE_ANOMALY_INTERVAL", Duration::from_secs(1)..=Duration::from_secs(3600));
    let grace = reader.within("SEKIWAKE_ANOMALY_GRACE", Duration::ZERO..=Duration::from_secs(600));
    let bands = BandSettings {
        window: reader.within("SEKIWAKE_ANOMALY_WINDOW", 2..=1000),
        sigma: reader.within("SEKIWAKE_ANOMALY_SIGMA", 0.1..=100.0),
        min_width: reader.within("SEKIWAKE_ANOMALY_MIN_WIDTH", 0.0..=1e12),
        min_width_percent: reader.within("SEKIWAKE_ANOMALY_MIN_WIDTH_PERCENT", 0.0..=1000.0),
    };
    let consecutive = reader.within("SEKIWAKE_ANOMALY_CONSECUTIVE", 1..=1000);
    let by: Vec<By> = reader.value::<List<By>>("SEKIWAKE_ANOMALY_BY").0;
    let max_sources = reader.within("SEKIWAKE_ANOMALY_SOURCES", 16..=1_000_000);
    let silent_after: Option<f64> = reader.optional("SEKIWAKE_ANOMALY_SILENT_AFTER");
    if let Some(wrong) = silent_after.filter(|factor| !(1.0..=1000.0).contains(factor)) {
        reader.mistake("SEKIWAKE_ANOMALY_SILENT_AFTER", &wrong.to_string(), "a number, from 1 to 1000");
    }
    Settings {
        interval_ns: nanoseconds(interval),
        grace_ns: nanoseconds(grace),
        max_open: 60,
        bands,
        consecutive,
        total: by.contains(&By::Total),
        severities: by.contains(&By::Severity),
        sources: by.contains(&By::Source),
        max_sources,
        silent_after,
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// What is counted apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Total,
    Severity,
    Source,
}

impl Setting for By {
    fn takes() -> &'static str {
        "total, severity, source, or several of them"
    }

    fn parse(text: &str) -> Result<By, String> {
        match text {
            "total" => Ok(By::Total),
            "severity" => Ok(By::Severity),
            "source" => Ok(By::Source),
            _ => Err(String::new()),
        }
    }
}
