//! Seals: the ends of groups.

use sekiwake_record::{MAX_PAYLOAD, WallTime};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{MAX_GROUP_BYTES, SEAL, u32_of, u64_of};
use crate::FileState;

/// The bytes of a seal.
pub(crate) const SEAL_BYTES: usize = 60;

/// How every seal begins.
pub(super) const SEAL_START: [u8; 16] = seal_start();

/// Where the checksum stands in a seal.
const HASH_AT: usize = 48;

/// Where the head of a file has to end.
pub(super) const MAX_HEAD_BYTES: usize = 512;

/// How much of a file with a damaged head is read for its key, bytes.
pub(crate) const VOTING_BYTES: usize = 4 << 20;

/// The most keys that are compared.
const MAX_KEYS: usize = 64;

/// What a seal says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seal {
    /// The bytes of the group before it.
    pub(crate) covered: usize,
    /// The packets in it.
    pub(crate) packets: u32,
    /// The range of their capture times, if there are packets.
    pub(crate) earliest: WallTime,
    pub(crate) latest: WallTime,
    pub(crate) key: u64,
    hash: u64,
}

const fn seal_start() -> [u8; 16] {
    let mut start = [0; 16];
    let parts = [SEAL, SEAL_BYTES as u32];
    let mut at = 0;
    while at < 8 {
        start[at] = parts[at / 4].to_le_bytes()[at % 4];
        at += 1;
    }
    let magic = b"skwseal1";
    while at < 16 {
        start[at] = magic[at - 8];
        at += 1;
    }
    start
}

impl Seal {
    /// Appends the seal of a group, which begins at `start`.
    pub(super) fn append(out: &mut Vec<u8>, start: usize, packets: u32, [earliest, latest]: [WallTime; 2], key: u64) {
        let covered = u32::try_from(out.len() - start).unwrap_or(u32::MAX);
        out.extend_from_slice(&SEAL_START);
        out.extend_from_slice(&covered.to_le_bytes());
        out.extend_from_slice(&packets.to_le_bytes());
        for number in [earliest.as_nanos(), latest.as_nanos(), key] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        let hash = xxh3_64_with_seed(&out[start..], key);
        out.extend_from_slice(&hash.to_le_bytes());
        out.extend_from_slice(&(SEAL_BYTES as u32).to_le_bytes());
    }

    /// Reads a seal, without checking it.
    pub(crate) fn read(bytes: &[u8]) -> Option<Seal> {
        let bytes: &[u8; SEAL_BYTES] = bytes.first_chunk()?;
        if !bytes.starts_with(&SEAL_START) || u32_of(bytes, SEAL_BYTES - 4)? as usize != SEAL_BYTES {
            return None;
        }
        Some(Seal {
            covered: u32_of(bytes, 16).map(|covered| covered as usize).filter(|&covered| covered <= MAX_GROUP_BYTES)?,
            packets: u32_of(bytes, 20)?,
            earliest: WallTime::from_nanos(u64_of(bytes, 24)?),
            latest: WallTime::from_nanos(u64_of(bytes, 32)?),
            key: u64_of(bytes, 40)?,
            hash: u64_of(bytes, HASH_AT)?,
        })
    }

    /// The seal at this place, if it is right, and so is the group before it. `None` for the key
    /// stands for the one that it claims.
    pub(super) fn verify(bytes: &[u8], at: usize, key: Option<u64>) -> Option<Seal> {
        let seal = Seal::read(bytes.get(at..)?)?;
        let start = at.checked_sub(seal.covered)?;
        let is_right = key.is_none_or(|key| seal.key == key)
            && xxh3_64_with_seed(&bytes[start..at + HASH_AT], seal.key) == seal.hash;
        is_right.then_some(seal)
    }
}

/// The key of a file, from its first bytes: from its head, or, if that is damaged, the key with
/// which most bytes are sealed. A payload may hold groups with other keys, but these are always
/// smaller than the group that they are in.
///
/// Of a file that is open, what was not synced may be missing anywhere, so that a group in a
/// payload may be all that is left. There a key counts only if more bytes in a row are sealed with
/// it than a payload can hold.
pub(crate) fn key_of(start: &[u8], state: FileState) -> Option<u64> {
    let least = if state == FileState::Open { MAX_PAYLOAD + 1 } else { 0 };
    head_key(start).or_else(|| voted_key(&start[..start.len().min(VOTING_BYTES)], least))
}

/// The key in the intact head of a file.
pub(crate) fn head_key(start: &[u8]) -> Option<u64> {
    let head = &start[..start.len().min(MAX_HEAD_BYTES)];
    let at = memchr::memmem::find(head, &SEAL_START)?;
    Seal::verify(head, at, None).filter(|seal| seal.covered == at).map(|seal| seal.key)
}

/// Groups of one key.
struct Vote {
    key: u64,
    /// The end of the last of them.
    end: usize,
    bytes: usize,
    /// In the last groups without a gap between them, and the most of such.
    run: usize,
    longest: usize,
}

impl Vote {
    fn add(&mut self, at: usize, covered: usize) {
        let is_next = at - covered == self.end + SEAL_BYTES;
        self.end = at;
        self.bytes += covered;
        self.run = if is_next { self.run + SEAL_BYTES + covered } else { covered };
        self.longest = self.longest.max(self.run);
    }
}

/// The key with most bytes, of those with a run of at least `least` bytes.
fn voted_key(bytes: &[u8], least: usize) -> Option<u64> {
    let mut votes: Vec<Vote> = Vec::new();
    for at in memchr::memmem::find_iter(bytes, &SEAL_START) {
        let Some(seal) = Seal::verify(bytes, at, None) else { continue };
        match votes.iter_mut().find(|vote| vote.key == seal.key) {
            // Groups that overlap count once.
            Some(vote) if at - seal.covered >= vote.end => vote.add(at, seal.covered),
            Some(_) => {}
            None => {
                if votes.len() >= MAX_KEYS {
                    let least = votes.iter().enumerate().min_by_key(|(_, vote)| vote.bytes).map(|(index, _)| index);
                    least.map(|index| votes.swap_remove(index));
                }
                let Seal { key, covered, .. } = seal;
                votes.push(Vote { key, end: at, bytes: covered, run: covered, longest: covered });
            }
        }
    }
    let votes = votes.into_iter().filter(|vote| vote.longest >= least);
    votes.max_by_key(|vote| vote.bytes).map(|vote| vote.key)
}
