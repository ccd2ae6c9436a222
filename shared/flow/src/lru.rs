//! Exporters by key, ordered by their last use: a hash table of indices into the nodes of a linked
//! list.
//!
//! Written by hand because callers keep the index of an exporter while they change others, which
//! the LRU crates do not offer.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hash, Hasher, RandomState},
};

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::header::Key;

const NONE: u32 = u32::MAX;

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(self.bytes());
    }
}

/// XXH3 with a secret seed, so that no one can choose addresses that collide.
#[derive(Clone, Copy)]
pub(crate) struct Seeded(u64);

impl Seeded {
    pub(crate) fn new() -> Seeded {
        Seeded(RandomState::new().build_hasher().finish())
    }
}

pub(crate) struct SeededHasher {
    seed: u64,
    hash: u64,
}

impl BuildHasher for Seeded {
    type Hasher = SeededHasher;

    fn build_hasher(&self) -> SeededHasher {
        SeededHasher { seed: self.0, hash: 0 }
    }
}

impl Hasher for SeededHasher {
    fn write(&mut self, bytes: &[u8]) {
        self.hash = xxh3_64_with_seed(bytes, self.seed ^ self.hash);
    }

    fn finish(&self) -> u64 {
        self.hash
    }
}

struct Node<T> {
    key: Key,
    newer: u32,
    older: u32,
    value: T,
}

/// Values by key, of which the least recently used can be removed.
pub(crate) struct LruMap<T> {
    indices: HashMap<Key, u32, Seeded>,
    nodes: Vec<Node<T>>,
    free: Vec<u32>,
    newest: u32,
    oldest: u32,
}

impl<T: Default> LruMap<T> {
    pub(crate) fn new() -> LruMap<T> {
        LruMap {
            indices: HashMap::with_hasher(Seeded::new()),
            nodes: Vec::new(),
            free: Vec::new(),
            newest: NONE,
            oldest: NONE,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.indices.len()
    }

    /// The index of a key. The newest is compared first, because datagrams of one exporter often
    /// follow each other.
    pub(crate) fn find(&self, key: &Key) -> Option<u32> {
        match self.nodes.get(self.newest as usize) {
            Some(node) if node.key == *key => Some(self.newest),
            _ => self.indices.get(key).copied(),
        }
    }

    /// Makes the value at an index the newest.
    pub(crate) fn touch(&mut self, index: u32) {
        if self.newest != index {
            self.unlink(index);
            self.link(index);
        }
    }

    /// Inserts a new key as the newest, with a default value.
    pub(crate) fn insert(&mut self, key: Key) -> u32 {
        let node = Node { key, newer: NONE, older: NONE, value: T::default() };
        let index = match self.free.pop() {
            Some(index) => {
                self.nodes[index as usize] = node;
                index
            }
            None => {
                self.nodes.push(node);
                (self.nodes.len() - 1) as u32
            }
        };
        self.indices.insert(key, index);
        self.link(index);
        index
    }

    /// The index of the oldest value.
    pub(crate) fn oldest(&self) -> Option<u32> {
        (self.oldest != NONE).then_some(self.oldest)
    }

    /// Removes the value at an index.
    pub(crate) fn remove(&mut self, index: u32) -> T {
        self.unlink(index);
        self.indices.remove(&self.nodes[index as usize].key);
        self.free.push(index);
        std::mem::take(&mut self.nodes[index as usize].value)
    }

    pub(crate) fn key(&self, index: u32) -> &Key {
        &self.nodes[index as usize].key
    }

    pub(crate) fn get(&self, index: u32) -> &T {
        &self.nodes[index as usize].value
    }

    pub(crate) fn get_mut(&mut self, index: u32) -> &mut T {
        &mut self.nodes[index as usize].value
    }

    /// All indices with their values. Those that are not in use have the default value.
    pub(crate) fn indexed_mut(&mut self) -> impl Iterator<Item = (usize, &mut T)> {
        self.nodes.iter_mut().map(|node| &mut node.value).enumerate()
    }

    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.nodes.iter_mut().map(|node| &mut node.value)
    }

    /// All values, in no particular order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Key, &T)> {
        self.indices.values().map(|index| &self.nodes[*index as usize]).map(|node| (&node.key, &node.value))
    }

    fn link(&mut self, index: u32) {
        let behind = self.newest;
        let node = &mut self.nodes[index as usize];
        node.newer = NONE;
        node.older = behind;
        match self.nodes.get_mut(behind as usize) {
            Some(node) => node.newer = index,
            None => self.oldest = index,
        }
        self.newest = index;
    }

    fn unlink(&mut self, index: u32) {
        let newer = self.nodes[index as usize].newer;
        let older = self.nodes[index as usize].older;
        match self.nodes.get_mut(newer as usize) {
            Some(node) => node.older = older,
            None => self.newest = older,
        }
        match self.nodes.get_mut(older as usize) {
            Some(node) => node.newer = newer,
            None => self.oldest = newer,
        }
    }
}
