//! Which member should have which shard. Pure functions.

use std::collections::BTreeMap;

use sekiwake_record::SHARDS;

/// A member: the random number of its run.
pub(super) type Incarnation = u64;

/// Distributes the shards evenly, to within one, and moves as few of them as possible.
/// `preferred` has the current or planned owner of each shard, `members` all that take part.
pub fn assign_evenly(
    preferred: &[Option<Incarnation>; SHARDS],
    members: &[Incarnation],
) -> [Option<Incarnation>; SHARDS] {
    let mut owners = [None; SHARDS];
    if members.is_empty() {
        return owners;
    }
    let mut counts: BTreeMap<Incarnation, usize> = members.iter().map(|&member| (member, 0)).collect();
    for owner in preferred.iter().flatten() {
        counts.entry(*owner).and_modify(|count| *count += 1);
    }
    // Where the shards do not divide evenly, the members that have most keep one more.
    let mut by_count: Vec<(Incarnation, usize)> = counts.into_iter().collect();
    by_count.sort_by_key(|&(member, count)| (std::cmp::Reverse(count), member));
    let share = SHARDS / members.len();
    let larger = SHARDS % members.len();
    let quota = |(rank, (member, _)): (usize, (Incarnation, usize))| (member, share + usize::from(rank < larger));
    let mut room: BTreeMap<Incarnation, usize> = by_count.into_iter().enumerate().map(quota).collect();
    for (owner, preferred) in owners.iter_mut().zip(preferred) {
        if let Some(left) = preferred.and_then(|preferred| room.get_mut(&preferred)).filter(|left| **left > 0) {
            *left -= 1;
            *owner = *preferred;
        }
    }
    let mut free = room.into_iter().flat_map(|(member, left)| std::iter::repeat_n(member, left));
    owners.iter_mut().filter(|owner| owner.is_none()).for_each(|owner| *owner = free.next());
    owners
}

/// Assigns all shards to the member with most of them, so that a joining member changes
/// nothing.
pub fn assign_all(preferred: &[Option<Incarnation>; SHARDS], members: &[Incarnation]) -> [Option<Incarnation>; SHARDS] {
    let has = |member: &Incarnation| preferred.iter().filter(|owner| **owner == Some(*member)).count();
    let chosen = members.iter().max_by_key(|member| (has(member), std::cmp::Reverse(**member)));
    [chosen.copied(); SHARDS]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn single_owner_has_everything_and_keeps_it() {
        let mut preferred = [None; SHARDS];
        assert_eq!(assign_all(&preferred, &[]), [None; SHARDS]);
        assert_eq!(assign_all(&preferred, &[7, 3, 5]), [Some(3); SHARDS]);
        preferred[..40].fill(Some(5));
        preferred[40..].fill(Some(7));
        assert_eq!(assign_all(&preferred, &[3, 5, 7]), [Some(5); SHARDS]);
        assert_eq!(assign_all(&preferred, &[3, 7]), [Some(7); SHARDS]);
    }

    proptest! {
        #[test]
        fn assignment_is_even_and_moves_as_little_as_possible(
            seed in proptest::collection::vec(proptest::option::of(0..20_u64), SHARDS),
            members in proptest::collection::btree_set(0..20_u64, 1..12),
        ) {
            let preferred: [Option<u64>; SHARDS] = seed.try_into().unwrap();
            let members: Vec<u64> = members.into_iter().collect();
            let owners = assign_evenly(&preferred, &members);
            let count = |owners: &[Option<u64>], member| owners.iter().filter(|owner| **owner == Some(member)).count();
            let low = SHARDS / members.len();
            let high = SHARDS.div_ceil(members.len());
            prop_assert!(owners.iter().all(|owner| owner.is_some_and(|owner| members.contains(&owner))));
            for &member in &members {
                prop_assert!((low..=high).contains(&count(&owners, member)));
            }
            // Every even assignment takes from each member its surplus over its share, and only
            // some members have the larger share.
            let kept = owners.iter().zip(&preferred).filter(|(owner, preferred)| owner == preferred).count();
            let mut counts: Vec<usize> = members.iter().map(|&member| count(&preferred, member)).collect();
            counts.sort_unstable_by(|a, b| b.cmp(a));
            let larger = SHARDS % members.len();
            let most: usize = counts.iter().enumerate().map(|(rank, &c)| c.min(low + usize::from(rank < larger))).sum();
            prop_assert_eq!(kept, most);
            prop_assert_eq!(assign_evenly(&owners, &members), owners);
        }
    }
}
