//! Reading a service's `/metrics`.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, ensure};

/// The samples of one scrape: the text before the value, as in `name{label="value"}`, and the value.
#[derive(Clone, Debug, Default)]
pub struct Samples(BTreeMap<String, f64>);

impl Samples {
    /// Scrapes `http://address/metrics` from the caller's network namespace.
    ///
    /// # Errors
    /// Nobody answers, or not with metrics.
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

    /// The sum of all samples of this metric whose labels include all of these, as in `kind="syslog"`.
    pub fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        self.matching(name, labels).map(|(_, value)| value).sum()
    }

    /// The sum of a counter, as the whole number that it is.
    pub fn count(&self, name: &str, labels: &[&str]) -> u64 {
        self.sum(name, labels) as u64
    }

    /// The samples of this metric whose labels include all of these, that are not 0.
    pub fn nonzero(&self, name: &str, labels: &[&str]) -> Vec<(String, f64)> {
        let nonzero = self.matching(name, labels).filter(|(_, value)| *value != 0.0);
        nonzero.map(|(text, value)| (text.to_owned(), value)).collect()
    }

    /// The samples of this metric, without their values.
    pub fn names<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.matching(name, &[]).map(|(text, _)| text)
    }

    /// The value below which a share of a histogram's observations lies, by linear interpolation in its bucket (as
    /// Prometheus's `histogram_quantile`); `None` without observations.
    pub fn quantile(&self, histogram: &str, labels: &[&str], share: f64) -> Option<f64> {
        let bucket_name = format!("{histogram}_bucket");
        let mut buckets: BTreeMap<u64, (f64, f64)> = BTreeMap::new();
        for (text, value) in self.matching(&bucket_name, labels) {
            let bound = text.split("le=\"").nth(1)?.split('"').next()?;
            let bound: f64 = if bound == "+Inf" { f64::INFINITY } else { bound.parse().ok()? };
            // Bounds are positive, and the bits of positive numbers are ordered as they are.
            buckets.entry(bound.to_bits()).or_insert((bound, 0.0)).1 += value;
        }
        let total = buckets.values().next_back().map(|(_, count)| *count).filter(|&total| total > 0.0)?;
        let (mut lower, mut below) = (0.0, 0.0);
        for &(upper, count) in buckets.values() {
            if count >= share * total {
                let part = if count > below { (share * total - below) / (count - below) } else { 1.0 };
                return Some(if upper.is_finite() { lower + (upper - lower) * part } else { lower });
            }
            (lower, below) = (upper, count);
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
///
/// # Errors
/// Nobody answers, or not with status 200.
pub fn get(address: SocketAddr, path: &str) -> anyhow::Result<String> {
    let timeout = Duration::from_secs(5);
    let mut stream = TcpStream::connect_timeout(&address, timeout).with_context(|| format!("connect to {address}"))?;
    stream.set_read_timeout(Some(timeout))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    // As bytes: a chunk may end within a character.
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).with_context(|| format!("read {path} from {address}"))?;
    let (head, body) = split_once(&answer, b"\r\n\r\n").context("no end of the HTTP header")?;
    let head = str::from_utf8(head)?;
    let body = match head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        true => without_chunks(body).with_context(|| format!("{path} of {address} was cut off"))?,
        false => body.to_owned(),
    };
    let body = String::from_utf8(body).with_context(|| format!("{path} of {address}"))?;
    let status = head.lines().next().unwrap_or_default();
    ensure!(status.contains(" 200 "), "{path} of {address}: {status}: {body}");
    Ok(body)
}

/// A body that came in chunks (RFC 9112 §7.1), without their frames; `None` where it does not end as it should.
fn without_chunks(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let (length, after) = split_once(rest, b"\r\n")?;
        let length = str::from_utf8(length).ok()?;
        let length = usize::from_str_radix(length.split(';').next()?.trim(), 16).ok()?;
        if length == 0 {
            return Some(body);
        }
        body.extend_from_slice(after.get(..length)?);
        rest = after.get(length..)?.strip_prefix(b"\r\n")?;
    }
}

/// What is before and after the first `separator`.
fn split_once<'a>(bytes: &'a [u8], separator: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let at = bytes.windows(separator.len()).position(|window| window == separator)?;
    Some((&bytes[..at], &bytes[at + separator.len()..]))
}
