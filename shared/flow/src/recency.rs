//! Exporters by key, in the order in which they were seen: a hash table of places, and a list through them.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hash, Hasher, RandomState},
};

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::header::Key;

const NOWHERE: u32 = u32::MAX;

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(self.bytes());
    }
}

/// XXH3 with a seed that exporters cannot know, so that they cannot choose addresses that collide.
#[derive(Clone, Copy)]
struct Seeded(u64);

struct SeededHasher {
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

/// Values by key, of which the one that was touched the longest ago can be taken out.
pub(crate) struct Recency<T> {
    places: HashMap<Key, u32, Seeded>,
    nodes: Vec<Node<T>>,
    free: Vec<u32>,
    newest: u32,
    oldest: u32,
}

impl<T: Default> Recency<T> {
    pub(crate) fn new() -> Recency<T> {
        let seed = RandomState::new().build_hasher().finish();
        Recency {
            places: HashMap::with_hasher(Seeded(seed)),
            nodes: Vec::new(),
            free: Vec::new(),
            newest: NOWHERE,
            oldest: NOWHERE,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    /// The place of a key, if it is here. Datagrams of one exporter often follow each other: the newest is looked at first.
    pub(crate) fn find(&self, key: &Key) -> Option<u32> {
        match self.nodes.get(self.newest as usize) {
            Some(node) if node.key == *key => Some(self.newest),
            _ => self.places.get(key).copied(),
        }
    }

    /// Makes the value at a place the newest.
    pub(crate) fn touch(&mut self, place: u32) {
        if self.newest != place {
            self.unlink(place);
            self.link(place);
        }
    }

    /// Puts in a key that is not here, as the newest.
    pub(crate) fn insert(&mut self, key: Key) -> u32 {
        let node = Node { key, newer: NOWHERE, older: NOWHERE, value: T::default() };
        let place = match self.free.pop() {
            Some(place) => {
                self.nodes[place as usize] = node;
                place
            }
            None => {
                self.nodes.push(node);
                (self.nodes.len() - 1) as u32
            }
        };
        self.places.insert(key, place);
        self.link(place);
        place
    }

    /// The place of the oldest.
    pub(crate) fn oldest(&self) -> Option<u32> {
        (self.oldest != NOWHERE).then_some(self.oldest)
    }

    /// Takes out what is at a place.
    pub(crate) fn remove(&mut self, place: u32) -> T {
        self.unlink(place);
        self.places.remove(&self.nodes[place as usize].key);
        self.free.push(place);
        std::mem::take(&mut self.nodes[place as usize].value)
    }

    pub(crate) fn key(&self, place: u32) -> &Key {
        &self.nodes[place as usize].key
    }

    pub(crate) fn get(&self, place: u32) -> &T {
        &self.nodes[place as usize].value
    }

    pub(crate) fn get_mut(&mut self, place: u32) -> &mut T {
        &mut self.nodes[place as usize].value
    }

    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.nodes.iter_mut().map(|node| &mut node.value)
    }

    /// All that is here, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Key, &T)> {
        self.places.values().map(|place| &self.nodes[*place as usize]).map(|node| (&node.key, &node.value))
    }

    fn link(&mut self, place: u32) {
        let behind = self.newest;
        let node = &mut self.nodes[place as usize];
        node.newer = NOWHERE;
        node.older = behind;
        match self.nodes.get_mut(behind as usize) {
            Some(node) => node.newer = place,
            None => self.oldest = place,
        }
        self.newest = place;
    }

    fn unlink(&mut self, place: u32) {
        let (newer, older) = (self.nodes[place as usize].newer, self.nodes[place as usize].older);
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
