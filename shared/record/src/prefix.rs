//! Address prefixes.

use std::{
    net::{IpAddr, Ipv6Addr},
    str::FromStr,
};

/// Addresses that begin alike. IPv4 addresses are in IPv4 prefixes only, however they are written: `::/0` is all of IPv6, and
/// `::ffff:10.0.0.0/104` is `10.0.0.0/8`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    is_ipv4: bool,
    /// The first address, IPv4 mapped.
    network: u128,
    mask: u128,
}

impl Prefix {
    /// Whether this address is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.is_ipv4 == address.is_ipv4() && mapped(address) & self.mask == self.network
    }
}

/// `10.0.0.0/8`, `2001:db8::/32`, or one address. Bits behind the prefix are taken for what they are, a slip of the pen: `10.1.2.3/8`
/// is `10.0.0.0/8`, as it is for every router.
impl FromStr for Prefix {
    type Err = ();

    fn from_str(text: &str) -> Result<Prefix, ()> {
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| ())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let digits_only = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        let length: u32 = match length {
            Some(length) if digits_only(length) => length.parse().map_err(|_| ())?,
            Some(_) => return Err(()),
            None => most,
        };
        if length > most {
            return Err(());
        }
        let mapped_length = length + 128 - most;
        let mask = u128::MAX.checked_shl(128 - mapped_length).unwrap_or(0);
        let canonical = address.to_canonical();
        // A mapped prefix shorter than the mapping itself holds more than IPv4, and so is IPv6.
        let is_ipv4 = canonical.is_ipv4() && mapped_length >= 96;
        Ok(Prefix { is_ipv4, network: mapped(address) & mask, mask })
    }
}

fn mapped(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => Ipv6Addr::from(address.octets()),
    }
    .to_bits()
}
