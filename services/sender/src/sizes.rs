//! Payload sizes: fixed (`200`), a range (`200-1400`) or a list (`200,500,1400`).

use std::{ops::RangeInclusive, str::FromStr};

use sekiwake_traffic::{MAX_PAYLOAD_BYTES, mix::below};

/// The sizes of payloads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sizes {
    /// Evenly spread over a range, in bytes. A fixed size is a range of one.
    Range(RangeInclusive<usize>),
    /// Evenly picked from a list, in bytes.
    List(Vec<usize>),
}

/// An error in [`Sizes`].
#[derive(Debug, thiserror::Error)]
#[error("expected a size (200), a range (200-1400) or a list (200,500,1400) of at most {MAX_PAYLOAD_BYTES} bytes")]
pub struct SizesError;

impl Sizes {
    /// The size for a pseudo-random value, in bytes.
    pub fn pick(&self, mixed: u64) -> usize {
        match self {
            Sizes::Range(range) => {
                let choices = (range.end() - range.start() + 1) as u64;
                range.start() + below(mixed, choices) as usize
            }
            Sizes::List(sizes) => {
                let index = below(mixed, sizes.len() as u64) as usize;
                sizes.get(index).copied().unwrap_or_default()
            }
        }
    }
}

impl FromStr for Sizes {
    type Err = SizesError;

    fn from_str(text: &str) -> Result<Sizes, SizesError> {
        let one = |text: &str| {
            let size = text.trim().parse().map_err(|_| SizesError)?;
            if size > MAX_PAYLOAD_BYTES { Err(SizesError) } else { Ok(size) }
        };
        if text.contains(',') {
            return text.split(',').map(one).collect::<Result<_, _>>().map(Sizes::List);
        }
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let first = one(first)?;
        let last = one(last)?;
        if first > last { Err(SizesError) } else { Ok(Sizes::Range(first..=last)) }
    }
}

#[cfg(test)]
mod tests {
    use sekiwake_traffic::mix::mix;

    use super::*;

    #[test]
    fn sizes_are_selected_within_their_bounds() {
        let range: Sizes = "200-1400".parse().unwrap();
        let list: Sizes = "200,500,65507".parse().unwrap();
        let picked: Vec<usize> = (0..10_000).map(|value| range.pick(mix(value))).collect();
        assert_eq!((picked.iter().min(), picked.iter().max()), (Some(&200), Some(&1400)));
        for size in [200, 500, 65_507] {
            assert!((0..100).any(|value| list.pick(mix(value)) == size));
        }
        assert_eq!("200".parse::<Sizes>().unwrap().pick(u64::MAX), 200);
    }

    #[test]
    fn invalid_sizes_are_rejected() {
        for text in ["", "x", "1400-200", "65508", "1,,2", "-1", "1-2-3", "1,70000"] {
            assert!(text.parse::<Sizes>().is_err(), "{text}");
        }
    }
}
