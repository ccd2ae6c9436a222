//! Object identifiers.

use std::{borrow::Cow, fmt};

use serde::{Serialize, Serializer};

/// The most arcs of an object identifier (RFC 2578 §3.5).
const MAX_ARCS: usize = 128;

/// An object identifier: valid BER contents octets, which need no memory of their own.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Oid<'a>(pub(super) Cow<'a, [u8]>);

impl<'a> Oid<'a> {
    /// From contents octets. `None` if an arc exceeds 32 bits or does not end, or if there are more
    /// than 128. Empty contents mean 0.0, as in other managers.
    pub(super) fn from_ber(octets: &'a [u8]) -> Option<Oid<'a>> {
        let mut arc = 0_u64;
        let mut count = 1;
        for octet in octets {
            arc = arc << 7 | u64::from(octet & 0x7f);
            if arc > u64::from(u32::MAX) {
                return None;
            }
            if octet & 0x80 == 0 {
                arc = 0;
                count += 1;
            }
        }
        let ends = octets.last().is_none_or(|octet| octet & 0x80 == 0);
        (ends && count <= MAX_ARCS).then_some(Oid(Cow::Borrowed(octets)))
    }

    /// This identifier and the arcs after it.
    pub(super) fn with(self, arcs: &[u32]) -> Oid<'static> {
        let mut octets = self.0.into_owned();
        for arc in arcs {
            let septets = (32 - arc.leading_zeros()).div_ceil(7).max(1);
            for place in (0..septets).rev() {
                let more = if place == 0 { 0 } else { 0x80 };
                octets.push((arc >> (7 * place)) as u8 & 0x7f | more);
            }
        }
        Oid(Cow::Owned(octets))
    }

    /// The arcs.
    pub fn arcs(&self) -> Arcs<'_> {
        Arcs { octets: &self.0, second: None, begun: false }
    }

    /// Whether it may be below 1.3.6.1.6.3, snmpModules: quick, and never wrong if it is.
    pub(super) fn may_be_snmp_module(&self) -> bool {
        // Octets above 0x7f continue an arc, perhaps with leading zeros.
        self.0
            .first_chunk()
            .is_none_or(|first: &[u8; 5]| *first == [0x2b, 6, 1, 6, 3] || first.iter().any(|octet| *octet > 0x7f))
    }

    /// Whether it is `prefix` or below it.
    pub(super) fn starts_with(&self, prefix: &[u32]) -> bool {
        let mut arcs = self.arcs();
        prefix.iter().all(|arc| arcs.next() == Some(*arc))
    }

    /// The first arcs of it, two at least.
    pub(super) fn truncated(&self, arcs: usize) -> Oid<'static> {
        let mut left = arcs.saturating_sub(1);
        let ends = |octet: &u8| octet & 0x80 == 0;
        let end = self.0.iter().position(|octet| {
            left -= usize::from(ends(octet));
            left == 0
        });
        Oid(Cow::Owned(self.0[..end.map_or(self.0.len(), |end| end + 1)].to_vec()))
    }

    /// The arcs after the first `count`.
    pub(super) fn tail(&self, count: usize) -> impl Iterator<Item = u32> {
        self.arcs().skip(count)
    }
}

/// The arcs of an object identifier.
#[derive(Clone, Debug)]
pub struct Arcs<'a> {
    octets: &'a [u8],
    second: Option<u32>,
    begun: bool,
}

impl Iterator for Arcs<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        if let Some(second) = self.second.take() {
            return Some(second);
        }
        // Nearly all arcs take one octet.
        if let [octet @ 0..0x80, rest @ ..] = self.octets
            && self.begun
        {
            self.octets = rest;
            return Some(u32::from(*octet));
        }
        let mut arc = 0_u32;
        let mut octets = self.octets.iter();
        for octet in octets.by_ref() {
            arc = arc << 7 | u32::from(octet & 0x7f);
            if octet & 0x80 == 0 {
                break;
            }
        }
        let is_first = !std::mem::replace(&mut self.begun, true);
        if self.octets.is_empty() && !is_first {
            return None;
        }
        self.octets = octets.as_slice();
        if !is_first {
            return Some(arc);
        }
        // The first subidentifier holds two arcs (X.690 §8.19.4).
        let first = (arc / 40).min(2);
        self.second = Some(arc - first * 40);
        Some(first)
    }
}

impl fmt::Display for Oid<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, arc) in self.arcs().enumerate() {
            if index > 0 {
                f.write_str(".")?;
            }
            write!(f, "{arc}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Oid<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl Serialize for Oid<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
