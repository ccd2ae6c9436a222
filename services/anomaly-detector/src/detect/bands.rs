//! Bollinger bands, with which counts are compared.
//!
//! ```text
//! window        the last `window` complete intervals, without the one under test
//! average       their simple mean
//! deviation     their sample standard deviation (n - 1)
//! half width    max(sigma × deviation, min_width, min_width_percent / 100 × average)
//! upper, lower  average ± half width
//! ```

use std::collections::VecDeque;

use serde::Serialize;

/// Width of the bands, and length of the window.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BandSettings {
    /// Complete intervals in the window, 2 to 1,000.
    pub window: usize,
    /// Standard deviations from the average to each band.
    pub sigma: f64,
    /// The least distance from the average to each band, messages per interval.
    pub min_width: f64,
    /// The same, as a percentage of the average.
    pub min_width_percent: f64,
}

/// The window's average and the bands around it, messages per interval. The lower band may be
/// negative.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, serde::Deserialize)]
pub struct Bands {
    /// Simple mean of the window.
    pub average: f64,
    /// Lower band.
    pub lower: f64,
    /// Upper band.
    pub upper: f64,
}

/// A side of the bands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// Above the upper band.
    High,
    /// Below the lower band, or zero where that is unusual.
    Low,
}

/// Which counts are usual.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, serde::Deserialize)]
pub struct Usual {
    /// The bands around them.
    pub bands: Bands,
    /// Whether zero is not usual, even if it is between the bands.
    pub excludes_zero: bool,
}

/// The verdict on one interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The window is not full yet.
    WarmUp {
        /// Intervals in the window.
        filled: usize,
    },
    /// Between the bands, inclusive.
    Normal,
    /// Above the upper band.
    High,
    /// Below the lower band, or zero where no interval of the window was.
    Low,
    /// The interval was not counted completely.
    Unknown,
}

/// The last complete intervals of one series, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Window {
    counts: VecDeque<u64>,
}

impl Default for BandSettings {
    fn default() -> BandSettings {
        BandSettings { window: 20, sigma: 3.0, min_width: 10.0, min_width_percent: 1.0 }
    }
}

impl Bands {
    /// The lower band as displayed: not negative.
    pub fn lower_shown(&self) -> f64 {
        self.lower.max(0.0)
    }
}

impl Usual {
    /// The side of the bands that a count is on; `None` if it is usual.
    pub fn side(&self, count: u64) -> Option<Side> {
        if count as f64 > self.bands.upper {
            Some(Side::High)
        } else if (count as f64) < self.bands.lower || (count == 0 && self.excludes_zero) {
            Some(Side::Low)
        } else {
            None
        }
    }
}

impl Verdict {
    /// The side of the bands.
    pub fn side(self) -> Option<Side> {
        match self {
            Verdict::High => Some(Side::High),
            Verdict::Low => Some(Side::Low),
            Verdict::Normal | Verdict::WarmUp { .. } | Verdict::Unknown => None,
        }
    }
}

impl Window {
    /// The counts, oldest first.
    pub fn counts(&self) -> impl ExactSizeIterator<Item = u64> + '_ {
        self.counts.iter().copied()
    }

    /// The bands, once the window is full. Recomputed each time, because running sums would drift.
    pub fn bands(&self, settings: &BandSettings) -> Option<Bands> {
        let n = self.counts.len();
        if n < settings.window || n < 2 {
            return None;
        }
        // Relative to one of the counts, because the differences of similar counts are small and
        // exact, even if the counts are large.
        let base = self.counts[0];
        let difference = |count: u64| if count >= base { (count - base) as f64 } else { -((base - count) as f64) };
        let offset = self.counts().map(difference).sum::<f64>() / n as f64;
        let squares: f64 = self.counts().map(|count| (difference(count) - offset).powi(2)).sum();
        let deviation = (squares / (n - 1) as f64).sqrt();
        let average = base as f64 + offset;
        let half =
            (settings.sigma * deviation).max(settings.min_width).max(settings.min_width_percent / 100.0 * average);
        Some(Bands { average, lower: average - half, upper: average + half })
    }

    /// Which counts are usual, once the window is full.
    pub fn usual(&self, settings: &BandSettings) -> Option<Usual> {
        let bands = self.bands(settings)?;
        let excludes_zero = bands.average >= settings.min_width && !self.counts.contains(&0);
        Some(Usual { bands, excludes_zero })
    }

    /// The verdict on a count that is not in the window, where these counts are usual.
    pub fn verdict(&self, usual: Option<&Usual>, count: u64) -> Verdict {
        let Some(usual) = usual else { return Verdict::WarmUp { filled: self.counts.len() } };
        match usual.side(count) {
            Some(Side::High) => Verdict::High,
            Some(Side::Low) => Verdict::Low,
            None => Verdict::Normal,
        }
    }

    /// Evaluates `count` against the window, without adding it.
    pub fn evaluate(&self, settings: &BandSettings, count: u64) -> (Option<Bands>, Verdict) {
        let usual = self.usual(settings);
        (usual.map(|usual| usual.bands), self.verdict(usual.as_ref(), count))
    }

    /// Adds a complete interval, regardless of its verdict, and removes the oldest.
    pub fn push(&mut self, settings: &BandSettings, count: u64) {
        while self.counts.len() >= settings.window.max(1) {
            self.counts.pop_front();
        }
        self.counts.push_back(count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(count: u64) -> Window {
        let mut window = Window::default();
        (0..20).for_each(|_| window.push(&BandSettings::default(), count));
        window
    }

    #[test]
    fn series_warms_up_until_the_window_is_full() {
        let settings = BandSettings::default();
        let mut window = Window::default();
        for filled in 0..20 {
            assert_eq!(window.evaluate(&settings, 1_000_000), (None, Verdict::WarmUp { filled }));
            window.push(&settings, 5);
        }
        assert_eq!(window.evaluate(&settings, 1_000_000).1, Verdict::High);
    }

    #[test]
    fn constant_series_is_normal_within_the_minimum_width() {
        let settings = BandSettings::default();
        let window = filled(100);
        assert_eq!(window.evaluate(&settings, 110).1, Verdict::Normal);
        assert_eq!(window.evaluate(&settings, 111).1, Verdict::High);
        assert_eq!(window.evaluate(&settings, 90).1, Verdict::Normal);
        assert_eq!(window.evaluate(&settings, 89).1, Verdict::Low);
    }

    #[test]
    fn zero_is_low_if_the_window_has_no_zero() {
        let settings = BandSettings { sigma: 100.0, ..BandSettings::default() };
        let mut window = filled(100);
        window.push(&settings, 5);
        assert!(window.bands(&settings).unwrap().lower < 0.0);
        assert_eq!(window.evaluate(&settings, 0).1, Verdict::Low);
        window.push(&settings, 0);
        assert_eq!(window.evaluate(&settings, 0).1, Verdict::Normal);
        assert_eq!(filled(9).evaluate(&settings, 0).1, Verdict::Normal);
    }
}
