//! Metrics: one registry per role, one page per process.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex},
};

use prometheus::{
    Counter, CounterVec, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder, core::Collector, proto::MetricFamily,
};

use crate::{
    health::lock,
    log_queue::{self, DroppedLines},
};

const LOG_DROPPED: &str = "sekiwake_log_dropped_total";
const LOG_DROPPED_HELP: &str = "Lines dropped from the log, by reason.";

/// The metrics of one role. Each carries the label `service`, so that several roles can live in one
/// process.
///
/// Resolve a child once, at the start, and keep it: a look-up costs as much as seven increments.
/// The same name gives the same family.
///
/// # Panics
/// Every method panics when Prometheus does not accept a name or label, or when a name is used
/// again with another type or other label names. Names are constants, so this is a programming
/// error, found when the process starts.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    families: Arc<Mutex<HashMap<String, Family>>>,
}

#[derive(Clone, Debug)]
enum Family {
    Counter(IntCounterVec),
    FloatCounter(CounterVec),
    Gauge(IntGaugeVec),
    FloatGauge(GaugeVec),
    Histogram(HistogramVec),
}

/// One method for a family by label names, one for a child by labels.
macro_rules! family {
    ($(#[$about:meta])* $family:ident, $child:ident, $variant:ident, $vec:ty, $metric:ty) => {
        $(#[$about])*
        /// This is the family; resolve its children once.
        pub fn $family(&self, name: &str, help: &str, label_names: &[&str]) -> $vec {
            let make = || <$vec>::new(Opts::new(name, help), label_names).map(Family::$variant);
            match self.family(name, make) {
                Family::$variant(family) => family,
                _ => panic!("metric {name} has another type"),
            }
        }

        $(#[$about])*
        /// This is one child, with these labels and values.
        pub fn $child(&self, name: &str, help: &str, labels: &[(&str, &str)]) -> $metric {
            let family = self.$family(name, help, &label_names(labels));
            family.get_metric_with(&label_map(labels)).unwrap_or_else(|error| panic!("metric {name}: {error}"))
        }
    };
}

impl Metrics {
    /// Metrics of the role of this service.
    pub fn new(service: &str) -> Metrics {
        let labels = HashMap::from([("service".to_owned(), service.to_owned())]);
        // Fails only for an empty prefix.
        let registry = Registry::new_custom(None, Some(labels)).unwrap_or_default();
        Metrics { registry, families: Arc::default() }
    }

    family! {
        /// A counter: a whole number that only grows. Its name ends in `_total`.
        counter_vec, counter, Counter, IntCounterVec, IntCounter
    }

    family! {
        /// A counter with a fraction, for seconds. Its name ends in `_total`.
        float_counter_vec, float_counter, FloatCounter, CounterVec, Counter
    }

    family! {
        /// A gauge with a whole number.
        gauge_vec, gauge, Gauge, IntGaugeVec, IntGauge
    }

    family! {
        /// A gauge with a fraction, for seconds and ratios.
        float_gauge_vec, float_gauge, FloatGauge, GaugeVec, Gauge
    }

    /// A histogram with these upper bounds (`+Inf` is added). This is the family; resolve its
    /// children once.
    pub fn histogram_vec(&self, name: &str, help: &str, buckets: &[f64], label_names: &[&str]) -> HistogramVec {
        let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        match self.family(name, || HistogramVec::new(options, label_names).map(Family::Histogram)) {
            Family::Histogram(family) => family,
            _ => panic!("metric {name} has another type"),
        }
    }

    /// A histogram with these upper bounds (`+Inf` is added). This is one child, with these labels
    /// and values.
    pub fn histogram(&self, name: &str, help: &str, buckets: &[f64], labels: &[(&str, &str)]) -> Histogram {
        let family = self.histogram_vec(name, help, buckets, &label_names(labels));
        family.get_metric_with(&label_map(labels)).unwrap_or_else(|error| panic!("metric {name}: {error}"))
    }

    /// Adds a collector, for values that are read when the metrics are.
    pub fn register(&self, collector: impl Collector + 'static) {
        if let Err(error) = self.registry.register(Box::new(collector)) {
            panic!("cannot register a collector: {error}");
        }
    }

    /// The text of these metrics alone, for tests.
    pub fn text(&self) -> String {
        encode([self.registry.gather()])
    }

    pub(crate) fn gather(&self) -> Vec<MetricFamily> {
        self.registry.gather()
    }

    fn family(&self, name: &str, make: impl FnOnce() -> prometheus::Result<Family>) -> Family {
        let mut families = lock(&self.families);
        if let Some(family) = families.get(name) {
            return family.clone();
        }
        let family = make().unwrap_or_else(|error| panic!("metric {name}: {error}"));
        let registered = match family.clone() {
            Family::Counter(family) => self.registry.register(Box::new(family)),
            Family::FloatCounter(family) => self.registry.register(Box::new(family)),
            Family::Gauge(family) => self.registry.register(Box::new(family)),
            Family::FloatGauge(family) => self.registry.register(Box::new(family)),
            Family::Histogram(family) => self.registry.register(Box::new(family)),
        };
        if let Err(error) = registered {
            panic!("metric {name}: {error}");
        }
        families.insert(name.to_owned(), family.clone());
        family
    }
}

/// The metrics of the process itself: `process_*`, the version, and the lines missing from its log.
#[derive(Debug)]
pub(crate) struct ProcessMetrics {
    registry: Registry,
    /// Set when the metrics are read.
    dropped_lines: IntCounterVec,
}

impl ProcessMetrics {
    pub(crate) fn new(services: &[&str]) -> ProcessMetrics {
        let metrics = Metrics { registry: process_registry(services), families: Arc::default() };
        let dropped_lines = metrics.counter_vec(LOG_DROPPED, LOG_DROPPED_HELP, &["reason"]);
        ProcessMetrics { registry: metrics.registry, dropped_lines }
    }

    pub(crate) fn gather(&self) -> Vec<MetricFamily> {
        let DroppedLines { queue_full, write_failed } = log_queue::dropped_lines();
        for (reason, lines) in [("queue_full", queue_full), ("write_failed", write_failed)] {
            let counter = self.dropped_lines.with_label_values(&[reason]);
            counter.inc_by(lines.saturating_sub(counter.get()));
        }
        self.registry.gather()
    }
}

fn process_registry(services: &[&str]) -> Registry {
    let registry = Registry::new();
    let build_info = IntGaugeVec::new(
        Opts::new("sekiwake_build_info", "Always 1; the running version and the services of this process, as labels."),
        &["version", "service"],
    );
    if let Ok(build_info) = build_info {
        for service in services {
            build_info.with_label_values(&[crate::VERSION, service]).set(1);
        }
        // Registering in an empty registry cannot fail.
        let _ = registry.register(Box::new(build_info));
    }
    let _ = registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()));
    registry
}

/// The text format (version 0.0.4). Families of the same name from several registries are merged,
/// as the format requires.
pub(crate) fn encode(gathered: impl IntoIterator<Item = Vec<MetricFamily>>) -> String {
    let mut merged: BTreeMap<String, MetricFamily> = BTreeMap::new();
    for mut family in gathered.into_iter().flatten() {
        match merged.get_mut(family.name()) {
            None => {
                merged.insert(family.name().to_owned(), family);
            }
            Some(first) if first.get_field_type() == family.get_field_type() => {
                first.mut_metric().append(family.mut_metric());
            }
            // Two crates use one name with two types. Showing one of them is better than a page
            // that no scraper accepts.
            Some(_) => tracing::error!(metric = family.name(), "metric has two types, only the first is exported"),
        }
    }
    let families: Vec<MetricFamily> = merged.into_values().collect();
    TextEncoder::new().encode_to_string(&families).unwrap_or_else(|error| {
        tracing::error!(%error, "cannot encode the metrics");
        String::new()
    })
}

fn label_names<'a>(labels: &[(&'a str, &str)]) -> Vec<&'a str> {
    labels.iter().map(|(name, _)| *name).collect()
}

fn label_map<'a>(labels: &[(&'a str, &'a str)]) -> HashMap<&'a str, &'a str> {
    labels.iter().copied().collect()
}
