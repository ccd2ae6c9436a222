//! Where datagrams are in a request, and what of a request was begun before.

use std::sync::Arc;

use super::{entries::Entries, outbox::Part};

/// The place of a datagram in a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) part: usize,
    pub(super) index: usize,
}

/// Every datagram of these parts.
pub(super) fn places(parts: &[Part]) -> Vec<Place> {
    let of_part = |(part, range): (usize, &Part)| range.range.clone().map(move |index| Place { part, index });
    parts.iter().enumerate().flat_map(of_part).collect()
}

/// The datagrams of `parts` after those that it begins with. `None`: it does not begin with them.
pub(super) fn after(begun: &[Part], parts: &[Part]) -> Option<Vec<Place>> {
    let (last, whole) = begun.split_last()?;
    let (same, rest) = parts.split_at_checked(whole.len())?;
    let is_same =
        |one: &Part, other: &Part| Arc::ptr_eq(&one.entries, &other.entries) && one.range.start == other.range.start;
    let is_whole = |(one, other): (&Part, &Part)| is_same(one, other) && one.range.end == other.range.end;
    let continued = rest.first()?;
    if !whole.iter().zip(same).all(is_whole) || !is_same(last, continued) || last.range.end > continued.range.end {
        return None;
    }
    let is_new = |place: &Place| place.part > whole.len() || place.part == whole.len() && place.index >= last.range.end;
    Some(places(parts).into_iter().filter(is_new).collect())
}

/// With how many datagrams both begin.
pub(super) fn in_common(one: &[Part], other: &[Part]) -> usize {
    one_by_one(one).zip(one_by_one(other)).take_while(|(one, other)| one == other).count()
}

fn one_by_one(parts: &[Part]) -> impl Iterator<Item = (*const Entries, usize)> {
    parts.iter().flat_map(|part| part.range.clone().map(|index| (Arc::as_ptr(&part.entries), index)))
}
