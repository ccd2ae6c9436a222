//! The detector's settings.

use std::{path::PathBuf, time::Duration};

use sekiwake_bus::{Controlling, Grouping, Publishing, Subscribing};
use sekiwake_record::Name;
use sekiwake_runtime::host_name;
use sekiwake_settings::{List, Reader, Setting};

use crate::{
    detect::{BandSettings, Settings},
    notify::Notifiers,
};

/// Where the detector gets its records, how it evaluates them, and where it sends notifications.
#[derive(Clone, Debug)]
pub struct AnomalySettings {
    /// The bus to subscribe to.
    pub subscribing: Subscribing,
    /// The control plane.
    pub controlling: Controlling,
    /// The bus to publish events on.
    pub publishing: Publishing,
    /// The group, and the name of this member.
    pub grouping: Grouping,
    /// The publisher name of its events.
    pub publisher: Name,
    /// How it counts and evaluates.
    pub detection: Settings,
    /// The state file.
    pub state: Option<PathBuf>,
    /// Where events are sent.
    pub notifiers: Notifiers,
}

impl AnomalySettings {
    /// Reads `SEKIWAKE_ANOMALY_*`, `SEKIWAKE_NOTIFY` and the settings of a member of a group.
    pub fn read(reader: &mut Reader) -> AnomalySettings {
        let subscribing = Subscribing::read(reader);
        let controlling = Controlling::read(reader);
        let publishing = Publishing::read(reader);
        let grouping = Grouping::read(reader);
        let publisher = reader.optional("SEKIWAKE_PUBLISHER").unwrap_or_else(host_name);
        let detection = read_detection(reader);
        let state = reader.optional("SEKIWAKE_ANOMALY_STATE");
        let notify: Option<String> = reader.optional("SEKIWAKE_NOTIFY");
        let notifiers = Notifiers::parse(notify.as_deref().unwrap_or_default()).unwrap_or_else(|error| {
            // The value may contain a password.
            reader.mistake("SEKIWAKE_NOTIFY", "(hidden)", &format!("URIs, separated by white space ({error})"));
            Notifiers::default()
        });
        AnomalySettings { subscribing, controlling, publishing, grouping, publisher, detection, state, notifiers }
    }
}

/// Reads how to count and evaluate: the settings that the service and `explain` share.
pub(crate) fn read_detection(reader: &mut Reader) -> Settings {
    let interval = reader.within("SEKIWAKE_ANOMALY_INTERVAL", Duration::from_secs(1)..=Duration::from_secs(3600));
    let grace = reader.within("SEKIWAKE_ANOMALY_GRACE", Duration::ZERO..=Duration::from_secs(600));
    let bands = BandSettings {
        window: reader.within("SEKIWAKE_ANOMALY_WINDOW", 2..=1000),
        sigma: reader.within("SEKIWAKE_ANOMALY_SIGMA", 0.1..=100.0),
        min_width: reader.within("SEKIWAKE_ANOMALY_MIN_WIDTH", 0.0..=1e12),
        min_width_percent: reader.within("SEKIWAKE_ANOMALY_MIN_WIDTH_PERCENT", 0.0..=1000.0),
    };
    let consecutive = reader.within("SEKIWAKE_ANOMALY_CONSECUTIVE", 1..=1000);
    let notify_consecutive = reader.within("SEKIWAKE_NOTIFY_CONSECUTIVE", 1..=1000);
    let forget = reader.within("SEKIWAKE_NOTIFY_FORGET", Duration::from_secs(60)..=Duration::from_secs(365 * 86_400));
    let by: Vec<By> = reader.value::<List<By>>("SEKIWAKE_ANOMALY_BY").0;
    let max_sources = reader.within("SEKIWAKE_ANOMALY_SOURCES", 16..=1_000_000);
    let silent_after: Option<f64> = reader.optional("SEKIWAKE_ANOMALY_SILENT_AFTER");
    if let Some(factor) = silent_after.filter(|factor| !(1.0..=1000.0).contains(factor)) {
        reader.mistake("SEKIWAKE_ANOMALY_SILENT_AFTER", &factor.to_string(), "a number, from 1 to 1000");
    }
    Settings {
        interval,
        grace,
        max_open: 60,
        bands,
        consecutive,
        notify_consecutive,
        forget,
        total: by.contains(&By::Total),
        severities: by.contains(&By::Severity),
        sources: by.contains(&By::Source),
        max_sources,
        silent_after,
    }
}

/// What is counted separately.
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
