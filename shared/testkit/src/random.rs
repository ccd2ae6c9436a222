//! Pseudo-random numbers from a seed: SplitMix64 (Steele, Lea, Flood 2014). Not a crate, because a
//! seed must give the same test in every version.

use sekiwake_traffic::mix::mix;

/// Added by SplitMix64 to its state before each number.
const INCREMENT: u64 = 0x9e37_79b9_7f4a_7c15;

/// A generator of pseudo-random numbers.
#[derive(Clone, Debug, Default)]
pub struct Random(u64);

impl Random {
    /// A generator that depends on `seed`.
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(INCREMENT) ^ 0x5851_f42d_4c95_7f2d)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        let number = mix(self.0);
        self.0 = self.0.wrapping_add(INCREMENT);
        number
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.number() % bound
    }

    /// This many bytes.
    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            bytes.extend(self.number().to_le_bytes());
        }
        bytes.truncate(length);
        bytes
    }
}
