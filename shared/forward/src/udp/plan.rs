//! Plans the messages of one flush: which datagrams are sent together, by their sizes.
//!
//! With `UDP_SEGMENT` the kernel takes several datagrams as one message and segments it, if all but
//! the last are of one size and the last is no larger. So a run is: equal sizes, then perhaps one
//! smaller datagram. Equal sizes make long runs; with mixed sizes every falling pair is a run of
//! two, which still saves a third of the cost of a datagram.

use std::{cmp::Reverse, io::IoSlice, ops::Range};

use sekiwake_record::SHARDS;
use sekiwake_sys::{MAX_SEGMENTED_BYTES, MAX_SEGMENTS};

/// One datagram of a flush.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Datagram<'a> {
    pub(crate) payload: &'a [u8],
    /// Capture timestamp of the kernel, in nanoseconds since 1970-01-01T00:00:00Z.
    pub(crate) captured_at_ns: u64,
    /// The index of its batch in the flush.
    pub(crate) batch: u32,
    /// How many datagrams of its shard precede it in this flush.
    pub(crate) rank: u32,
    /// The byte with the DSCP, if it is not the system's.
    pub(crate) tos: Option<u8>,
    /// Whether it must not be spoofed, even if the destination has `spoof`.
    pub(crate) unspoofable: bool,
    /// Whether it is synthesised: templates that no device sent.
    pub(crate) is_synthetic: bool,
    /// Its index in the flush before sorting.
    pub(crate) index: u32,
}

/// The properties of a datagram that planning needs.
pub(crate) trait Piece {
    /// Bytes of payload.
    fn length(&self) -> usize;
    /// The byte with the DSCP, if it is not the system's: all of a message share it.
    fn tos(&self) -> Option<u8>;
}

impl Piece for Datagram<'_> {
    fn length(&self) -> usize {
        self.payload.len()
    }

    fn tos(&self) -> Option<u8> {
        self.tos
    }
}

/// A payload among others with the same DSCP.
impl Piece for IoSlice<'_> {
    fn length(&self) -> usize {
        self.len()
    }

    fn tos(&self) -> Option<u8> {
        None
    }
}

/// Counts the datagrams per shard, to give each its rank.
#[derive(Debug)]
pub(crate) struct Ranks([u32; SHARDS]);

impl Ranks {
    pub(crate) fn new() -> Ranks {
        Ranks([0; SHARDS])
    }

    /// The rank of the next datagram of this shard.
    pub(crate) fn next(&mut self, shard: usize) -> u32 {
        let rank = self.0[shard];
        self.0[shard] += 1;
        rank
    }

    fn shards_in_use(&self) -> usize {
        self.0.iter().filter(|&&count| count > 0).count()
    }
}

/// Sorts datagrams of different shards so that runs become longer. Within a shard, and so for every
/// source, the order stays: the first datagrams of all shards form the first round, largest first,
/// the second ones the second round, and so on.
///
/// If a round leaves one datagram without a partner, its largest is put last, and the next round
/// begins with its smallest, because these two then form a run: seven shards with mixed sizes need
/// 7 messages for two rounds instead of 8.
pub(crate) fn arrange(datagrams: &mut [Datagram<'_>], ranks: &Ranks) {
    let equal = datagrams.windows(2).all(|pair| pair[0].payload.len() == pair[1].payload.len());
    if equal || ranks.shards_in_use() < 2 {
        return;
    }
    datagrams.sort_unstable_by_key(|datagram| (datagram.rank, Reverse(datagram.payload.len())));
    let mut waiting = None;
    for round in datagrams.chunk_by_mut(|one, next| one.rank == next.rank) {
        waiting = arrange_round(round, waiting);
    }
}

/// Arranges one sorted round. `waiting` is the size of the datagram before it without a partner, if
/// there is one; gives the same for the next round.
fn arrange_round(mut round: &mut [Datagram<'_>], waiting: Option<usize>) -> Option<usize> {
    let smallest = round.last()?.payload.len();
    if waiting.is_some_and(|size| (1..size).contains(&smallest)) {
        round.rotate_right(1);
        round = &mut round[1..];
    }
    let waiting = last_alone(round);
    match round {
        [first, second, ..] if waiting.is_some() && first.payload.len() > second.payload.len() => {
            round.rotate_left(1);
            round.last().map(|datagram| datagram.payload.len())
        }
        _ => waiting,
    }
}

/// The size of the last datagram if it is a run of its own. The datagrams are sorted, largest
/// first.
fn last_alone(sorted: &[Datagram<'_>]) -> Option<usize> {
    let mut segment = None;
    let mut is_alone = false;
    for datagram in sorted {
        let size = datagram.payload.len();
        is_alone = segment.is_none();
        // A smaller one ends the run.
        segment = if segment.is_none_or(|segment| segment == size) { Some(size) } else { None };
    }
    segment.filter(|_| is_alone)
}

/// One message: a range of the flush's datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) first: u32,
    pub(crate) count: u32,
    /// The segment size, if the message has several datagrams.
    pub(crate) segment_bytes: Option<u16>,
}

impl Message {
    pub(crate) fn datagrams(&self) -> Range<usize> {
        self.first as usize..(self.first + self.count) as usize
    }
}

/// Plans the messages for the datagrams from `start` on, in their order, and replaces the contents
/// of `messages`.
///
/// A datagram larger than `max_segment_bytes` is sent alone, because the kernel does not fragment
/// segments; so is an empty one, because the kernel does not count it as a segment. 0 switches
/// segmentation off.
pub(crate) fn plan<P: Piece>(datagrams: &[P], start: usize, max_segment_bytes: usize, messages: &mut Vec<Message>) {
    messages.clear();
    let mut first = start;
    while first < datagrams.len() {
        let segment = datagrams[first].length();
        let count = if segment <= max_segment_bytes { run_length(&datagrams[first..]) } else { 1 };
        let segment_bytes = u16::try_from(segment).ok().filter(|_| count > 1);
        messages.push(Message { first: first as u32, count: count as u32, segment_bytes });
        first += count;
    }
}

/// The length of the run that begins with the first datagram: at least 1.
fn run_length<P: Piece>(datagrams: &[P]) -> usize {
    let segment = datagrams[0].length();
    let tos = datagrams[0].tos();
    if segment == 0 {
        return 1;
    }
    let most = MAX_SEGMENTS.min(MAX_SEGMENTED_BYTES / segment).min(datagrams.len()).max(1);
    let is_equal = |datagram: &&P| datagram.length() == segment && datagram.tos() == tos;
    let equal = datagrams[..most].iter().take_while(is_equal).count();
    let shorter_follows =
        equal < most && (1..segment).contains(&datagrams[equal].length()) && datagrams[equal].tos() == tos;
    equal + usize::from(shorter_follows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    static ZEROS: [u8; 65_527] = [0; 65_527];

    fn datagram(length: usize, batch: u32, index: usize, rank: u32) -> Datagram<'static> {
        let payload = &ZEROS[..length];
        Datagram {
            payload,
            captured_at_ns: index as u64,
            batch,
            rank,
            tos: None,
            unspoofable: false,
            is_synthetic: false,
            index: index as u32,
        }
    }

    fn datagrams(lengths: &[usize]) -> Vec<Datagram<'static>> {
        lengths.iter().enumerate().map(|(index, &length)| datagram(length, 0, index, index as u32)).collect()
    }

    fn runs(lengths: &[usize], max_segment_bytes: usize) -> Vec<(u32, Option<u16>)> {
        let mut messages = Vec::new();
        plan(&datagrams(lengths), 0, max_segment_bytes, &mut messages);
        messages.iter().map(|message| (message.count, message.segment_bytes)).collect()
    }

    #[test]
    fn equal_sizes_and_one_smaller_make_a_run() {
        assert_eq!(runs(&[200, 200, 200, 80, 80, 90], 1472), [(4, Some(200)), (1, None), (1, None)]);
    }

    #[test]
    fn larger_datagram_begins_a_new_run() {
        assert_eq!(runs(&[200, 201, 100], 1472), [(1, None), (2, Some(201))]);
    }

    #[test]
    fn empty_datagram_is_sent_alone() {
        assert_eq!(runs(&[0, 0, 7, 0, 7, 7], 1472), [(1, None), (1, None), (1, None), (1, None), (2, Some(7))]);
    }

    #[test]
    fn datagram_beyond_the_mtu_is_sent_alone() {
        assert_eq!(runs(&[1473, 1473, 1472, 1472], 1472), [(1, None), (1, None), (2, Some(1472))]);
        assert_eq!(runs(&[65_507, 65_527], 1472), [(1, None), (1, None)]);
    }

    #[test]
    fn run_ends_at_64_segments_or_64_kib() {
        assert_eq!(runs(&[100; 65], 1472), [(64, Some(100)), (1, None)]);
        assert_eq!(runs(&[1472; 45], 1472), [(44, Some(1472)), (1, None)]);
    }

    #[test]
    fn without_segmentation_each_datagram_is_a_message() {
        assert_eq!(runs(&[200, 200], 0), [(1, None), (1, None)]);
    }

    #[test]
    fn mixed_sizes_of_odd_shard_counts_are_paired() {
        let mut ranks = Ranks::new();
        let mut datagrams: Vec<Datagram<'_>> =
            (0..700).map(|index| datagram(200 + index * 7919 % 1201, 0, index, ranks.next(index % 7))).collect();
        arrange(&mut datagrams, &ranks);
        let lengths: Vec<usize> = datagrams.iter().map(|datagram| datagram.payload.len()).collect();
        let messages = runs(&lengths, 1472).len();
        assert!(messages <= 360, "{messages} messages for 700 datagrams");
    }

    #[test]
    fn run_has_one_dscp() {
        let mut datagrams = datagrams(&[200, 200, 200, 80]);
        datagrams[0].tos = Some(184);
        datagrams[3].tos = Some(184);
        let mut messages = Vec::new();
        plan(&datagrams, 0, 1472, &mut messages);
        let counts: Vec<u32> = messages.iter().map(|message| message.count).collect();
        assert_eq!(counts, [1, 2, 1]);
    }

    proptest! {
        #[test]
        fn every_datagram_is_in_one_run_the_kernel_can_segment(
            lengths in prop::collection::vec(prop_oneof![0usize..4, 90usize..100, 1400usize..1500, 60_000usize..65_527], 0..200),
            max_segment_bytes in prop_oneof![Just(0usize), Just(1452), Just(8972), Just(65_507)],
        ) {
            let mut messages = Vec::new();
            plan(&datagrams(&lengths), 0, max_segment_bytes, &mut messages);
            let mut next = 0;
            for message in &messages {
                prop_assert_eq!(message.first, next);
                next += message.count;
                let run = &lengths[message.datagrams()];
                if let Some(segment) = message.segment_bytes {
                    let segment = usize::from(segment);
                    prop_assert!(run.len() > 1 && run.len() <= MAX_SEGMENTS && segment <= max_segment_bytes);
                    prop_assert!(run.iter().sum::<usize>() <= MAX_SEGMENTED_BYTES);
                    let (last, full) = run.split_last().unwrap();
                    prop_assert!(full.iter().all(|&length| length == segment) && (1..=segment).contains(last));
                } else {
                    prop_assert_eq!(run.len(), 1);
                }
            }
            prop_assert_eq!(next as usize, lengths.len());
        }

        #[test]
        fn arranging_keeps_the_order_within_each_shard(
            sources in prop::collection::vec((0usize..5, 1usize..1400), 0..100),
        ) {
            let mut ranks = Ranks::new();
            let mut datagrams: Vec<Datagram<'_>> = sources
                .iter()
                .enumerate()
                .map(|(index, &(shard, length))| datagram(length, shard as u32, index, ranks.next(shard)))
                .collect();
            arrange(&mut datagrams, &ranks);
            prop_assert_eq!(datagrams.len(), sources.len());
            for shard in 0..5 {
                let order: Vec<u64> =
                    datagrams.iter().filter(|d| d.batch == shard).map(|d| d.captured_at_ns).collect();
                let expected: Vec<u64> =
                    (0..sources.len()).filter(|&i| sources[i].0 == shard as usize).map(|i| i as u64).collect();
                prop_assert_eq!(order, expected);
            }
        }
    }
}
