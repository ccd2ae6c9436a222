//! Reading a service's `/metrics`.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use anyhow::{Context, ensure};

/// Time limit of a request.
const TIMEOUT: Duration = Duration::from_secs(60);
/// The largest page that is read, in bytes.
const MAX_BODY_BYTES: u64 = 1 << 30;

/// The samples of one scrape: the text before the value, as in `name{label="value"}`, and the
/// value.
#[derive(Clone, Debug, Default)]
pub struct Samples(BTreeMap<String, f64>);

impl Samples {
    /// Scrapes `http://address/metrics` from the caller's network namespace.
    pub fn scrape(address: SocketAddr) -> anyhow::Result<Samples> {
        let text = get(address, "/metrics")?;
        let mut samples = BTreeMap::new();
        for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
            let (name, value) = line.rsplit_once(' ').with_context(|| format!("no value in {line:?}"))?;
            samples.insert(name.to_owned(), value.parse().with_context(|| format!("no number in {line:?}"))?);
        }
        Ok(Samples(samples))
    }

    /// Adds another service's samples to these.
    pub fn add(&mut self, other: &Samples) {
        for (text, value) in &other.0 {
            *self.0.entry(text.clone()).or_default() += value;
        }
    }

    /// The sum of all samples of this metric whose labels include all of these, as in
    /// `kind="syslog"`.
    pub fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        self.matching(name, labels).map(|(_, value)| value).sum()
    }

    /// The sum of a counter, as an integer.
    pub fn count(&self, name: &str, labels: &[&str]) -> u64 {
        self.sum(name, labels) as u64
    }

    /// The samples of this metric that are not 0 and whose labels include all of these.
    pub fn nonzero(&self, name: &str, labels: &[&str]) -> Vec<(String, f64)> {
        let nonzero = self.matching(name, labels).filter(|(_, value)| *value != 0.0);
        nonzero.map(|(text, value)| (text.to_owned(), value)).collect()
    }

    /// The samples of this metric, without their values.
    pub fn names<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.matching(name, &[]).map(|(text, _)| text)
    }

    /// The value below which a share of a histogram's observations lies, by linear interpolation in
    /// its bucket (as Prometheus's `histogram_quantile`); `None` without observations.
    pub fn quantile(&self, histogram: &str, labels: &[&str], share: f64) -> Option<f64> {
        let bucket_name = format!("{histogram}_bucket");
        let mut buckets: BTreeMap<u64, (f64, f64)> = BTreeMap::new();
        for (text, value) in self.matching(&bucket_name, labels) {
            let bound = text.split("le=\"").nth(1)?.split('"').next()?;
            let bound: f64 = if bound == "+Inf" { f64::INFINITY } else { bound.parse().ok()? };
            // The bit patterns of positive floats have the same order as the floats.
            buckets.entry(bound.to_bits()).or_insert((bound, 0.0)).1 += value;
        }
        let total = buckets.values().next_back().map(|(_, count)| *count).filter(|&total| total > 0.0)?;
        let mut lower = 0.0;
        let mut below = 0.0;
        for &(upper, count) in buckets.values() {
            if count >= share * total {
                let part = if count > below { (share * total - below) / (count - below) } else { 1.0 };
                return Some(if upper.is_finite() { lower + (upper - lower) * part } else { lower });
            }
            lower = upper;
            below = count;
        }
        None
    }

    fn matching<'a>(&'a self, name: &'a str, labels: &'a [&str]) -> impl Iterator<Item = (&'a str, f64)> {
        let is_name = move |text: &str| text.split('{').next() == Some(name);
        let has_labels = move |text: &str| labels.iter().all(|label| text.contains(label));
        self.0
            .iter()
            .filter(move |(text, _)| is_name(text) && has_labels(text))
            .map(|(text, value)| (text.as_str(), *value))
    }
}

/// The body of `http://address/path`.
pub fn get(address: SocketAddr, path: &str) -> anyhow::Result<String> {
    let request = ureq::get(format!("http://{address}{path}"));
    let request = request.config().timeout_global(Some(TIMEOUT)).proxy(None).http_status_as_error(false).build();
    let mut response = request.call().with_context(|| format!("get {path} of {address}"))?;
    let body = response.body_mut().with_config().limit(MAX_BODY_BYTES).read_to_string();
    let body = body.with_context(|| format!("read {path} of {address}"))?;
    ensure!(response.status() == 200, "{path} of {address}: status {}: {body}", response.status());
    Ok(body)
}
