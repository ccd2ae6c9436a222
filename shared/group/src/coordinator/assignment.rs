//! Who should have which shard: even to within one, and moving no more than that needs. A pure function.

use std::collections::BTreeMap;

use sekiwake_record::SHARDS;

/// A member's incarnation.
pub(super) type Incarnation = u64;

/// The owners that there should be. `wish` is where each shard is, or was already meant to go; `members` are those that take part.
pub(super) fn assign(wish: &[Option<Incarnation>; SHARDS], members: &[Incarnation]) -> [Option<Incarnation>; SHARDS] {
    let mut owners = [None; SHARDS];
    if members.is_empty() {
        return owners;
    }
    let mut counts: BTreeMap<Incarnation, usize> = members.iter().map(|&member| (member, 0)).collect();
    for owner in wish.iter().flatten() {
        counts.entry(*owner).and_modify(|count| *count += 1);
    }
    // Those that have most keep one more, where the shards do not divide evenly.
    let mut by_count: Vec<(Incarnation, usize)> = counts.into_iter().collect();
    by_count.sort_by_key(|&(member, count)| (std::cmp::Reverse(count), member));
    let (share, larger) = (SHARDS / members.len(), SHARDS % members.len());
    let quota = |(rank, (member, _)): (usize, (Incarnation, usize))| (member, share + usize::from(rank < larger));
    let mut room: BTreeMap<Incarnation, usize> = by_count.into_iter().enumerate().map(quota).collect();
    for (owner, wished) in owners.iter_mut().zip(wish) {
        if let Some(left) = wished.and_then(|wished| room.get_mut(&wished)).filter(|left| **left > 0) {
            *left -= 1;
            *owner = *wished;
        }
    }
    let mut free = room.into_iter().flat_map(|(member, left)| std::iter::repeat_n(member, left));
    owners.iter_mut().filter(|owner| owner.is_none()).for_each(|owner| *owner = free.next());
    owners
}

/// The owners where one member has everything: the one that has most of it, so that whoever comes changes nothing.
pub(super) fn one(wish: &[Option<Incarnation>; SHARDS], members: &[Incarnation]) -> [Option<Incarnation>; SHARDS] {
    let has = |member: &Incarnation| wish.iter().filter(|owner| **owner == Some(*member)).count();
    let chosen = members.iter().max_by_key(|member| (has(member), std::cmp::Reverse(**member)));
    [chosen.copied(); SHARDS]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_has_everything_and_keeps_it() {
        let mut wish = [None; SHARDS];
        assert_eq!(one(&wish, &[]), [None; SHARDS]);
        assert_eq!(one(&wish, &[7, 3, 5]), [Some(3); SHARDS]);
        wish[..40].fill(Some(5));
        wish[40..].fill(Some(7));
        assert_eq!(one(&wish, &[3, 5, 7]), [Some(5); SHARDS]);
        assert_eq!(one(&wish, &[3, 7]), [Some(7); SHARDS]);
    }

    proptest! {
        #[test]
        fn it_is_even_to_within_one_and_moves_no_more_than_evenness_needs(
            seed in proptest::collection::vec(proptest::option::of(0..20_u64), SHARDS),
            members in proptest::collection::btree_set(0..20_u64, 1..12),
        ) {
            let wish: [Option<u64>; SHARDS] = seed.try_into().unwrap();
            let members: Vec<u64> = members.into_iter().collect();
            let owners = assign(&wish, &members);
            let count = |owners: &[Option<u64>], member| owners.iter().filter(|owner| **owner == Some(member)).count();
            let (low, high) = (SHARDS / members.len(), SHARDS.div_ceil(members.len()));
            prop_assert!(owners.iter().all(|owner| owner.is_some_and(|owner| members.contains(&owner))));
            for &member in &members {
                prop_assert!((low..=high).contains(&count(&owners, member)));
            }
            // Every even assignment has to take from each member what it has over its share, and the larger shares are few.
            let kept = owners.iter().zip(&wish).filter(|(owner, wished)| owner == wished).count();
            let mut counts: Vec<usize> = members.iter().map(|&member| count(&wish, member)).collect();
            counts.sort_unstable_by(|a, b| b.cmp(a));
            let larger = SHARDS % members.len();
            let most: usize = counts.iter().enumerate().map(|(rank, &c)| c.min(low + usize::from(rank < larger))).sum();
            prop_assert_eq!(kept, most);
            prop_assert_eq!(assign(&owners, &members), owners);
        }
    }
}
