//! Which records of a batch are meant: for a destination that takes only some of them.

/// All records of a batch, or some.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Selection {
    All,
    Some(Chosen),
}

/// A set of records by their place in the batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Chosen {
    words: Box<[u64]>,
    count: usize,
}

impl Selection {
    /// Whether the record at `index` is meant.
    pub(crate) fn contains(&self, index: usize) -> bool {
        match self {
            Selection::All => true,
            Selection::Some(chosen) => chosen.contains(index),
        }
    }

    /// How many records are meant, of a batch of `len`.
    pub(crate) fn count(&self, len: usize) -> usize {
        match self {
            Selection::All => len,
            Selection::Some(chosen) => chosen.count,
        }
    }
}

impl Chosen {
    /// None of `len` records.
    pub(crate) fn none(len: usize) -> Chosen {
        Chosen { words: vec![0; len.div_ceil(64)].into_boxed_slice(), count: 0 }
    }

    /// Adds a record, which is within the length. Twice is once.
    pub(crate) fn add(&mut self, index: usize) {
        let (word, bit) = (&mut self.words[index / 64], 1 << (index % 64));
        self.count += usize::from(*word & bit == 0);
        *word |= bit;
    }

    pub(crate) fn contains(&self, index: usize) -> bool {
        self.words.get(index / 64).is_some_and(|word| word >> (index % 64) & 1 == 1)
    }

    /// The first of them.
    pub(crate) fn first(&self) -> Option<usize> {
        let word = self.words.iter().position(|word| *word != 0)?;
        Some(word * 64 + self.words[word].trailing_zeros() as usize)
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_counted_once() {
        let mut chosen = Chosen::none(130);
        assert_eq!((chosen.count(), chosen.first()), (0, None));
        for index in [0, 63, 64, 129, 64] {
            chosen.add(index);
        }
        let selection = Selection::Some(chosen);
        assert_eq!(selection.count(130), 4);
        let found: Vec<usize> = (0..200).filter(|&index| selection.contains(index)).collect();
        assert_eq!(found, [0, 63, 64, 129]);
        assert_eq!(Selection::All.count(7), 7);
    }
}
