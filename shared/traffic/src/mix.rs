//! Pseudo-random values as a pure function of their purpose.

/// SplitMix64's output function: spreads any input evenly. Not a crate for random numbers, because
/// the traffic of a seed must stay the same from version to version.
pub fn mix(value: u64) -> u64 {
    let mut mixed = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// A value that depends on all of its parts and their order.
pub fn mix_all(parts: &[u64]) -> u64 {
    parts.iter().fold(0, |mixed, &part| mix(mixed ^ part))
}

/// Maps a mixed value evenly to `0..bound`; 0 when `bound` is 0.
pub fn below(mixed: u64, bound: u64) -> u64 {
    ((u128::from(mixed) * u128::from(bound)) >> 64) as u64
}
