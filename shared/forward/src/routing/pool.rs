//! Which member of a pool a source is sent to: rendezvous hashing.
//!
//! Each member scores each source, and the highest score wins. The sources of a removed member are
//! distributed evenly to the others, and no others move; a new member takes its share from all.
//! Replicas agree, because scores depend only on the source and the configured `host:port` of the
//! member.

use std::net::IpAddr;

use sekiwake_record::canonical_octets;
use xxhash_rust::xxh3::xxh3_64;

/// The part of a member in the scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seed(u64);

impl Seed {
    /// That of the member with this `host:port`.
    pub(crate) fn of(place: &str) -> Seed {
        Seed(xxh3_64(place.as_bytes()))
    }
}

/// The part of a source in the scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SourceHash(u64);

impl SourceHash {
    /// That of an IPv4 or IPv6 address; an IPv4-mapped address is the IPv4 address.
    pub(crate) fn of(source: IpAddr) -> SourceHash {
        SourceHash(xxh3_64(&canonical_octets(source)))
    }
}

/// The member with the highest score among those that are up, or among all if all are down. 0
/// without members.
pub(crate) fn choose(source: SourceHash, seeds: &[Seed], is_up: impl Fn(usize) -> bool) -> usize {
    let best = |among: &dyn Fn(usize) -> bool| {
        let scored = seeds.iter().enumerate().filter(|(index, _)| among(*index));
        scored.max_by_key(|(_, seed)| mix(source.0 ^ seed.0)).map(|(index, _)| index)
    };
    best(&is_up).or_else(|| best(&|_| true)).unwrap_or(0)
}

/// The finalizer of SplitMix64 (Steele, Lea, Flood 2014): every input bit flips half of the output
/// bits. The hash of a source alone would not do, because its shard comes from the same bits.
fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ bits >> 31
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use sekiwake_record::Shard;

    use super::*;

    fn seeds(count: usize) -> Vec<Seed> {
        (0..count).map(|number| Seed::of(&format!("198.51.100.{}:2055", 7 + number))).collect()
    }

    /// Addresses as in real networks: consecutive, and with the host part in the low or middle
    /// bits.
    fn populations() -> Vec<(&'static str, Vec<IpAddr>)> {
        let v4 = |step: u32| (0..20_000).map(|n| Ipv4Addr::from(0x0a00_0001 + n * step).into()).collect();
        let v6 =
            |shift: u32| (0..20_000u128).map(|n| Ipv6Addr::from(0x2001_0db8u128 << 96 | n << shift).into()).collect();
        let one_shard = (0..1_000_000u32).map(|n| IpAddr::from(Ipv4Addr::from(0x0a00_0000 + n)));
        let one_shard = one_shard.filter(|address| Shard::of(*address).index() == 5).collect();
        vec![
            ("IPv4, consecutive", v4(1)),
            ("IPv4, one per /24", v4(256)),
            ("IPv6, consecutive", v6(0)),
            ("IPv6, one per /64", v6(64)),
            ("one shard", one_shard),
        ]
    }

    #[test]
    fn sources_are_spread_evenly_over_2_to_5_members() {
        // Chi-square, 99.9 %, for 1 to 4 degrees of freedom.
        let limits = [10.83, 13.82, 16.27, 18.47];
        for (name, sources) in populations() {
            for (members, limit) in (2..=5).zip(limits) {
                let seeds = seeds(members);
                let mut counts = vec![0f64; members];
                for source in &sources {
                    counts[choose(SourceHash::of(*source), &seeds, |_| true)] += 1.0;
                }
                let expected = sources.len() as f64 / members as f64;
                let chi_square: f64 = counts.iter().map(|count| (count - expected).powi(2) / expected).sum();
                assert!(chi_square < limit, "{name}, {members} members: {counts:?}, chi-square {chi_square:.1}");
            }
        }
    }

    #[test]
    fn fourth_member_takes_a_quarter_and_moves_no_others() {
        let three = seeds(3);
        let four = seeds(4);
        for (name, sources) in populations() {
            let before_and_after = sources.iter().map(|source| {
                let hash = SourceHash::of(*source);
                (choose(hash, &three, |_| true), choose(hash, &four, |_| true))
            });
            let moved: Vec<_> = before_and_after.filter(|(before, after)| before != after).collect();
            assert!(moved.iter().all(|(_, after)| *after == 3), "{name}");
            let share = moved.len() as f64 / sources.len() as f64;
            assert!((0.235..0.265).contains(&share), "{name}: {share}");
        }
    }

    #[test]
    fn sources_of_a_down_member_go_to_all_others() {
        let seeds = seeds(3);
        let mut taken_over = [0; 3];
        for number in 0..3000u32 {
            let hash = SourceHash::of(Ipv4Addr::from(0x0a00_0000 + number).into());
            let usual = choose(hash, &seeds, |_| true);
            let without = choose(hash, &seeds, |index| index != 0);
            if usual != 0 {
                assert_eq!(usual, without);
            } else {
                taken_over[without] += 1;
            }
            assert_eq!(choose(hash, &seeds, |_| false), usual, "its own member, when all are down");
        }
        assert!(taken_over[0] == 0 && taken_over[1] > 400 && taken_over[2] > 400, "{taken_over:?}");
    }

    #[test]
    fn scores_are_pinned() {
        let sources = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "2001:db8::1", "::ffff:10.0.0.1"];
        let chosen = sources.map(|text| choose(SourceHash::of(text.parse().unwrap()), &seeds(5), |_| true));
        assert_eq!(chosen[0], chosen[4]);
        assert_eq!(chosen, GOLDEN, "replicas of different versions must agree");
    }

    const GOLDEN: [usize; 5] = [4, 3, 4, 2, 4];
}
