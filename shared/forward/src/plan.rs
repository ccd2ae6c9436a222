//! Which datagrams leave together: the messages of one flush, planned from the sizes of its datagrams.
//!
//! With `UDP_SEGMENT` the kernel takes several datagrams as one message and cuts it where they end, if all but the last are of
//! one size and the last is no larger. So a run is: equal sizes, then perhaps one smaller. Equal sizes make long runs; with
//! mixed sizes every falling pair is a run of two, which still saves a third of what a datagram costs.

use std::{cmp::Reverse, io::IoSlice, ops::Range};

use sekiwake_record::SHARDS;
use sekiwake_sys::{MAX_SEGMENTED_BYTES, MAX_SEGMENTS};

/// One datagram of a flush.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Datagram<'a> {
    pub(crate) payload: &'a [u8],
    /// When the kernel stamped it, nanoseconds since 1970-01-01T00:00:00Z.
    pub(crate) captured_at_ns: u64,
    /// Which of the flush's batches it came in.
    pub(crate) batch: u32,
    /// How many datagrams of its shard are before it in this flush.
    pub(crate) rank: u32,
    /// The byte that carries the DSCP, if it is not the system's.
    pub(crate) tos: Option<u8>,
    /// Whether it must not seem to come from the device, whatever the destination wants.
    pub(crate) unspoofable: bool,
    /// Whether no device sent it: templates of our own.
    pub(crate) is_own: bool,
    /// Its place among those of the flush as they came.
    pub(crate) index: u32,
}

/// What planning looks at.
pub(crate) trait Piece {
    /// Bytes of payload.
    fn length(&self) -> usize;
    /// The byte that carries the DSCP, if it is not the system's: a message has one.
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

/// A payload among others that leave alike.
impl Piece for IoSlice<'_> {
    fn length(&self) -> usize {
        self.len()
    }

    fn tos(&self) -> Option<u8> {
        None
    }
}

/// Counts the datagrams of each shard, to give each its rank.
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

/// Puts datagrams of different shards into an order that makes longer runs; within a shard, and so for every source, the order
/// stays. First come the first datagrams of all shards, the largest first, then the second ones, and so on.
///
/// Where that leaves one datagram of such a round without a partner, it is the largest one that waits at the end, and the next
/// round begins with its smallest: seven shards with mixed sizes need 7 messages for two rounds, and not 8.
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

/// Arranges one round, which is sorted. `waiting` is the size of the datagram before it that has no partner; gives the same for
/// the next round.
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

/// The size of the last datagram if it is a run of its own; the datagrams are sorted, the largest first.
fn last_alone(sorted: &[Datagram<'_>]) -> Option<usize> {
    let (mut segment, mut is_alone) = (None, false);
    for datagram in sorted {
        let size = datagram.payload.len();
        is_alone = segment.is_none();
        // The first smaller one ends the run.
        segment = if segment.is_none_or(|segment| segment == size) { Some(size) } else { None };
    }
    segment.filter(|_| is_alone)
}

/// One message: a range of the flush's datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) first: u32,
    pub(crate) count: u32,
    /// Where the kernel cuts, when the message is more than one datagram.
    pub(crate) segment_bytes: Option<u16>,
}

impl Message {
    pub(crate) fn datagrams(&self) -> Range<usize> {
        self.first as usize..(self.first + self.count) as usize
    }
}

/// Plans the messages for the datagrams from `start` on, in their order, replacing what `messages` held.
///
/// A datagram larger than `max_segment_bytes` travels alone, for the kernel fragments only what it does not segment; so does an
/// empty one, for the kernel would see no segment in it. 0 switches segmentation off.
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

/// How many of the datagrams, from the first on, make one run: 1 at least.
fn run_length<P: Piece>(datagrams: &[P]) -> usize {
    let (segment, tos) = (datagrams[0].length(), datagrams[0].tos());
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
            is_own: false,
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
    fn a_larger_datagram_begins_a_new_run() {
        assert_eq!(runs(&[200, 201, 100], 1472), [(1, None), (2, Some(201))]);
    }

    #[test]
    fn an_empty_datagram_travels_alone() {
        assert_eq!(runs(&[0, 0, 7, 0, 7, 7], 1472), [(1, None), (1, None), (1, None), (1, None), (2, Some(7))]);
    }

    #[test]
    fn what_exceeds_the_path_travels_alone() {
        assert_eq!(runs(&[1473, 1473, 1472, 1472], 1472), [(1, None), (1, None), (2, Some(1472))]);
        assert_eq!(runs(&[65_507, 65_527], 1472), [(1, None), (1, None)]);
    }

    #[test]
    fn a_run_ends_at_64_segments_and_at_the_bytes_of_a_datagram() {
        assert_eq!(runs(&[100; 65], 1472), [(64, Some(100)), (1, None)]);
        assert_eq!(runs(&[1472; 45], 1472), [(44, Some(1472)), (1, None)]);
    }

    #[test]
    fn without_segmentation_each_datagram_is_a_message() {
        assert_eq!(runs(&[200, 200], 0), [(1, None), (1, None)]);
    }

    #[test]
    fn mixed_sizes_of_an_odd_number_of_shards_leave_in_pairs() {
        let mut ranks = Ranks::new();
        let mut datagrams: Vec<Datagram<'_>> =
            (0..700).map(|index| datagram(200 + index * 7919 % 1201, 0, index, ranks.next(index % 7))).collect();
        arrange(&mut datagrams, &ranks);
        let lengths: Vec<usize> = datagrams.iter().map(|datagram| datagram.payload.len()).collect();
        let messages = runs(&lengths, 1472).len();
        assert!(messages <= 360, "{messages} messages for 700 datagrams");
    }

    #[test]
    fn a_run_has_one_dscp() {
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
        fn every_datagram_is_sent_once_and_every_run_is_one_the_kernel_cuts_rightly(
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
