//! Whether the sequence numbers of an exporter can be believed, so that no loss is reported that
//! never was.
//!
//! Exporting processes that share an address, a port and a domain interleave their numbers, and
//! some exporters count in another unit than their protocol says. Their numbers look like losses.
//! So losses are held until as many datagrams in order have followed, at most 256, as are said to
//! be missing. An exporter in doubt for longer, such as one that seems to lose more than a third,
//! is not countable: what was held is dropped, and nothing of it is counted until its numbers are
//! in order again.

use crate::sequence::{OtherUnit, Sequence, Step};

/// The doubt that a gap raises at most, in datagrams, and that a restart raises.
const MOST_PER_STEP: u16 = 256;

/// The doubt that a late datagram raises. About a sixth of all may be late.
const PER_LATE: u16 = 4;

/// The doubt above which an exporter is not countable: one long gap or restart is plausible, two of
/// them in a row are not.
const LIMIT: u16 = 320;

/// The highest doubt: so many datagrams in order make any exporter countable again.
const MOST: u16 = 2 * MOST_PER_STEP;

/// This many steps that fit the other unit only mean that the exporter counts in it.
const FITS_OTHER_UNIT: u8 = 4;

/// What was lost, in the unit of the protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// Gaps.
    pub gaps: u64,
    /// Units in them.
    pub missing: u64,
    /// Units of late or duplicate datagrams. Missing ones minus late ones are the losses, apart
    /// from duplicates.
    pub late: u64,
}

/// Whether an exporter's sequence numbers show its losses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Countable {
    /// They do.
    #[default]
    Yes,
    /// Since this datagram they do not.
    NoLonger,
    /// They do not.
    No,
}

/// The judgement on one exporter.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Plausibility {
    doubt: u16,
    fits_other_unit: u8,
    is_uncountable: bool,
    held: Losses,
}

impl Plausibility {
    /// Judges the next datagram. Returns the losses that are certain now.
    pub(crate) fn judge(&mut self, step: Step, units: Option<u32>) -> (Countable, Losses) {
        let raised = match step.sequence {
            Sequence::InOrder => 0,
            Sequence::Gap(missing) => {
                self.held.gaps += 1;
                self.held.missing += u64::from(missing);
                let datagrams = missing / units.unwrap_or(1).max(1);
                u16::try_from(datagrams).unwrap_or(MOST_PER_STEP).clamp(1, MOST_PER_STEP)
            }
            Sequence::Late(units) => {
                self.held.late += u64::from(units);
                PER_LATE
            }
            Sequence::Restarted => MOST_PER_STEP,
            Sequence::None | Sequence::First | Sequence::Resynchronised => {
                return (self.countable(), Losses::default());
            }
        };
        self.doubt = if raised == 0 { self.doubt.saturating_sub(1) } else { (self.doubt + raised).min(MOST) };
        self.fits_other_unit = match step.other_unit {
            OtherUnit::FitsAlone => self.fits_other_unit.saturating_add(1).min(FITS_OTHER_UNIT),
            OtherUnit::Unknown => self.fits_other_unit,
            OtherUnit::Contradicted => 0,
        };
        if self.doubt == 0 && self.fits_other_unit == 0 {
            self.is_uncountable = false;
            return (Countable::Yes, std::mem::take(&mut self.held));
        }
        let was_uncountable = self.is_uncountable;
        self.is_uncountable |= self.doubt > LIMIT || self.fits_other_unit >= FITS_OTHER_UNIT;
        if self.is_uncountable {
            self.held = Losses::default();
        }
        let countable = if was_uncountable { Countable::No } else { self.countable() };
        (
            if countable == Countable::No && !was_uncountable { Countable::NoLonger } else { countable },
            Losses::default(),
        )
    }

    fn countable(&self) -> Countable {
        if self.is_uncountable { Countable::No } else { Countable::Yes }
    }
}
