//! How the elements of messages are written and read.
//!
//! ```text
//! message   array: version, number, fields of the struct …
//! struct    array: fields … [, appended fields …] [, fields of later versions, which are skipped …]
//! list      array of one type, at most Element::MAX
//! code      an enum as a small number
//! ```
//!
//! By hand with `rmp` instead of rmp-serde, because every list, number and length is checked
//! against its limit while it is read, before memory is allocated for it.

use std::{fmt, net::Ipv6Addr, sync::Arc};

use rmp::encode as msgpack;
use sekiwake_record::{
    Kind, Name, Shard, Topic,
    msgpack::{Unexpected, read_array, read_bytes, read_number, read_text, read_truth, skip},
};

use super::{MAX_DIFFERING, MAX_STREAMS};
use crate::{MAX_NUMBER, Peer, Stream, coverage::MAX_RANGES};

/// An element of an array.
pub(super) trait Element: Sized {
    /// Maximum number of elements of this type in a list; 0 where it is not in lists.
    const MAX: usize = 0;
    fn write(&self, out: &mut Vec<u8>);
    fn read(rest: &mut &[u8]) -> Result<Self, Unexpected>;
}

/// Why writing cannot fail.
pub(super) const VEC: &str = "writing to a Vec succeeds";

macro_rules! number {
    ($($type:ty),*) => {$(
        impl Element for $type {
            fn write(&self, out: &mut Vec<u8>) {
                msgpack::write_uint(out, u64::from(*self)).expect(VEC);
            }
            fn read(rest: &mut &[u8]) -> Result<$type, Unexpected> {
                read_number(rest, stringify!($type))
            }
        }
    )*};
}
number!(u8, u16, u64);

impl Element for bool {
    fn write(&self, out: &mut Vec<u8>) {
        msgpack::write_bool(out, *self).expect(VEC);
    }
    fn read(rest: &mut &[u8]) -> Result<bool, Unexpected> {
        read_truth(rest, "truth value")
    }
}

impl Element for Name {
    const MAX: usize = MAX_DIFFERING;
    fn write(&self, out: &mut Vec<u8>) {
        msgpack::write_str(out, self.as_str()).expect(VEC);
    }
    fn read(rest: &mut &[u8]) -> Result<Name, Unexpected> {
        Name::new(read_text(rest, "name")?).map_err(|_| Unexpected::new("allowed name"))
    }
}

/// No name is an empty text.
impl Element for Option<Name> {
    fn write(&self, out: &mut Vec<u8>) {
        msgpack::write_str(out, self.as_ref().map_or("", Name::as_str)).expect(VEC);
    }
    fn read(rest: &mut &[u8]) -> Result<Option<Name>, Unexpected> {
        match read_text(rest, "name")? {
            "" => Ok(None),
            text => Name::new(text).map(Some).map_err(|_| Unexpected::new("allowed name")),
        }
    }
}

impl Element for Kind {
    fn write(&self, out: &mut Vec<u8>) {
        (self.index() as u8).write(out);
    }
    fn read(rest: &mut &[u8]) -> Result<Kind, Unexpected> {
        let index: usize = usize::from(u8::read(rest)?);
        Kind::ALL.get(index).copied().ok_or(Unexpected::new("kind"))
    }
}

impl Element for Shard {
    fn write(&self, out: &mut Vec<u8>) {
        (self.index() as u8).write(out);
    }
    fn read(rest: &mut &[u8]) -> Result<Shard, Unexpected> {
        Shard::new(u8::read(rest)?).ok_or(Unexpected::new("shard"))
    }
}

impl Element for Topic {
    const MAX: usize = Topic::COUNT;
    fn write(&self, out: &mut Vec<u8>) {
        (self.index() as u8).write(out);
    }
    fn read(rest: &mut &[u8]) -> Result<Topic, Unexpected> {
        Topic::from_index(usize::from(u8::read(rest)?)).ok_or(Unexpected::new("topic"))
    }
}

/// A sequence number or a generation, below [`MAX_NUMBER`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Number(pub u64);

impl Element for Number {
    /// The ends of the ranges of one topic.
    const MAX: usize = 2 * MAX_RANGES;
    fn write(&self, out: &mut Vec<u8>) {
        self.0.write(out);
    }
    fn read(rest: &mut &[u8]) -> Result<Number, Unexpected> {
        match u64::read(rest)? {
            number @ 0..MAX_NUMBER => Ok(Number(number)),
            _ => Err(Unexpected::new("number in range")),
        }
    }
}

impl Element for Stream {
    const MAX: usize = MAX_STREAMS;
    fn write(&self, out: &mut Vec<u8>) {
        msgpack::write_array_len(out, 2).expect(VEC);
        msgpack::write_str(out, &self.name).expect(VEC);
        self.epoch.write(out);
    }
    fn read(rest: &mut &[u8]) -> Result<Stream, Unexpected> {
        let more = read_array(rest, "stream")?.checked_sub(2).ok_or(Unexpected::new("stream"))?;
        let name = Name::read(rest)?;
        let stream = Stream { name: Arc::from(name.as_str()), epoch: u64::read(rest)? };
        skip(rest, more).map(|()| stream)
    }
}

impl Element for Peer {
    fn write(&self, out: &mut Vec<u8>) {
        msgpack::write_bin(out, self.as_bytes()).expect(VEC);
    }
    fn read(rest: &mut &[u8]) -> Result<Peer, Unexpected> {
        Peer::new(read_bytes(rest, "requester")?).ok_or(Unexpected::new("routing id"))
    }
}

impl Element for Ipv6Addr {
    fn write(&self, out: &mut Vec<u8>) {
        msgpack::write_bin(out, &self.octets()).expect(VEC);
    }
    fn read(rest: &mut &[u8]) -> Result<Ipv6Addr, Unexpected> {
        let octets: [u8; 16] = read_bytes(rest, "address")?.try_into().map_err(|_| Unexpected::new("address"))?;
        Ok(Ipv6Addr::from(octets))
    }
}

/// A frame of the data plane within a message.
#[derive(Clone, PartialEq, Eq)]
pub struct Frame(pub Vec<u8>);

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Frame({} bytes)", self.0.len())
    }
}

impl Element for Frame {
    fn write(&self, out: &mut Vec<u8>) {
        msgpack::write_bin(out, &self.0).expect(VEC);
    }
    fn read(rest: &mut &[u8]) -> Result<Frame, Unexpected> {
        read_bytes(rest, "frame").map(|bytes| Frame(bytes.to_vec()))
    }
}

impl<T: Element> Element for Vec<T> {
    fn write(&self, out: &mut Vec<u8>) {
        msgpack::write_array_len(out, self.len() as u32).expect(VEC);
        self.iter().for_each(|element| element.write(out));
    }
    fn read(rest: &mut &[u8]) -> Result<Vec<T>, Unexpected> {
        let length = read_array(rest, "list")? as usize;
        if length > T::MAX {
            return Err(Unexpected::new("list of an allowed length"));
        }
        // Every element takes at least one byte, so a false length cannot cause a large allocation.
        let mut list = Vec::with_capacity(length.min(rest.len()));
        for _ in 0..length {
            list.push(T::read(rest)?);
        }
        Ok(list)
    }
}

/// The elements of a list that are a small set of numbers on the wire.
macro_rules! code {
    ($(#[$about:meta])* $name:ident { $($(#[$item_about:meta])* $item:ident = $code:literal),* $(,)? }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$item_about])* $item),* }
        impl Element for $name {
            fn write(&self, out: &mut Vec<u8>) {
                let code: u8 = match self { $($name::$item => $code),* };
                code.write(out);
            }
            fn read(rest: &mut &[u8]) -> Result<$name, Unexpected> {
                match u8::read(rest)? {
                    $($code => Ok($name::$item),)*
                    _ => Err(Unexpected::new(stringify!($name))),
                }
            }
        }
    };
}

/// A struct, as an array. `list` is the maximum number of elements in a list of them. Fields that
/// are `appended` came with a later version, and have the default of their type when they are
/// missing.
macro_rules! array {
    (
        $(#[$about:meta])* $name:ident (list $max:expr) { $($(#[$field_about:meta])* $field:ident: $type:ty),* $(,)? }
        $(appended { $($(#[$later_about:meta])* $later:ident: $later_type:ty),* $(,)? })?
    ) => {
        $(#[$about])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $name { $($(#[$field_about])* pub $field: $type,)* $($($(#[$later_about])* pub $later: $later_type),*)? }
        impl $name {
            /// How many fields the first version had, and how many are written today.
            pub(crate) const FIELDS: u32 = [$(stringify!($field)),*].len() as u32;
            pub(super) const WRITTEN: u32 = [$(stringify!($field),)* $($(stringify!($later)),*)?].len() as u32;
            pub(super) fn write_fields(&self, out: &mut Vec<u8>) {
                $(self.$field.write(out);)*
                $($(self.$later.write(out);)*)?
            }
            pub(super) fn read_fields(rest: &mut &[u8], length: u32) -> Result<$name, Unexpected> {
                let left = length.checked_sub($name::FIELDS).ok_or(Unexpected::new(stringify!($name)))?;
                $(let $field = Element::read(rest)?;)*
                $($(let (left, $later) = match left.checked_sub(1) {
                    Some(left) => (left, Element::read(rest)?),
                    None => (left, <$later_type>::default()),
                };)*)?
                let value = $name { $($field,)* $($($later),*)? };
                skip(rest, left).map(|()| value)
            }
        }
        impl Element for $name {
            const MAX: usize = $max;
            fn write(&self, out: &mut Vec<u8>) {
                msgpack::write_array_len(out, $name::WRITTEN).expect(VEC);
                self.write_fields(out);
            }
            fn read(rest: &mut &[u8]) -> Result<$name, Unexpected> {
                let length = read_array(rest, stringify!($name))?;
                $name::read_fields(rest, length)
            }
        }
    };
}

pub(super) use {array, code};
