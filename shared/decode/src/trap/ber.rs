//! BER as SNMP uses it (RFC 3417 §8): elements of one tag octet and a definite length.

use super::Error;

/// Elements one after the other, and where they stand in the datagram.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
    /// Offset of `rest` in the datagram, bytes.
    at: usize,
}

/// One element.
#[derive(Clone, Copy, Debug)]
pub(super) struct Element<'a> {
    pub(super) tag: u8,
    pub(super) contents: &'a [u8],
    /// Offset of the tag in the datagram, bytes.
    pub(super) at: usize,
    /// Offset of the contents in the datagram, bytes.
    contents_at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { rest: bytes, at: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Bytes that are left.
    pub(super) fn len(&self) -> usize {
        self.rest.len()
    }

    /// The next element. Its length need not have the shortest form: some agents write `82 00 7f`.
    pub(super) fn next(&mut self) -> Result<Element<'a>, Error> {
        let error = |reason| Error { at: self.at, reason };
        let [tag, length, rest @ ..] = self.rest else { return Err(error("an element is missing")) };
        if tag & 0x1f == 0x1f {
            return Err(error("a tag of several octets, which SNMP has not"));
        }
        let (length, rest) = match *length {
            short @ 0..0x80 => (usize::from(short), rest),
            0x80 => return Err(error("a length of the indefinite form, which SNMP has not")),
            long => {
                let octets = rest.split_at_checked(usize::from(long & 0x7f));
                let (octets, rest) = octets.ok_or_else(|| error("the datagram ends in a length"))?;
                (number(octets).ok_or_else(|| error("a length above 2^32"))?, rest)
            }
        };
        let Some((contents, after)) = rest.split_at_checked(length) else {
            return Err(error("an element is longer than the bytes that are left"));
        };
        let contents_at = self.at + self.rest.len() - rest.len();
        let element = Element { tag: *tag, contents, at: self.at, contents_at };
        self.at = contents_at + length;
        self.rest = after;
        Ok(element)
    }

    /// The next element, which must have this tag.
    pub(super) fn expect(&mut self, tag: u8, missing: &'static str) -> Result<Element<'a>, Error> {
        let element = self.next()?;
        if element.tag == tag { Ok(element) } else { Err(Error { at: element.at, reason: missing }) }
    }

    /// The next element, an INTEGER.
    pub(super) fn integer(&mut self, missing: &'static str) -> Result<i64, Error> {
        let element = self.expect(super::INTEGER, missing)?;
        signed(element.contents).ok_or(Error { at: element.at, reason: missing })
    }
}

impl<'a> Element<'a> {
    /// The elements inside.
    pub(super) fn reader(self) -> Reader<'a> {
        Reader { rest: self.contents, at: self.contents_at }
    }
}

/// A length: big-endian octets, leading zeros included.
fn number(octets: &[u8]) -> Option<usize> {
    let leading = octets.iter().take_while(|&&octet| octet == 0).count();
    let octets = &octets[leading..];
    (octets.len() <= 4).then(|| octets.iter().fold(0, |value, &octet| value << 8 | usize::from(octet)))
}

/// An INTEGER of one to eight octets.
pub(super) fn signed(octets: &[u8]) -> Option<i64> {
    let first = *octets.first()?;
    let sign = if first & 0x80 == 0 { 0 } else { -1 };
    (octets.len() <= 8).then(|| octets.iter().fold(sign, |value, &octet| value << 8 | i64::from(octet)))
}

/// A number that is never negative, of at most eight octets after leading zeros. Agents that forget
/// the leading zero octet of values with the top bit set are read as they meant it.
pub(super) fn unsigned(octets: &[u8]) -> Option<u64> {
    let octets = match octets {
        [] => return None,
        [0, rest @ ..] => rest,
        all => all,
    };
    (octets.len() <= 8).then(|| octets.iter().fold(0, |value, &octet| value << 8 | u64::from(octet)))
}
