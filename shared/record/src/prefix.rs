//! Address prefixes.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    str::FromStr,
};

/// An address prefix. IPv4 addresses are in IPv4 prefixes only, in either notation: `::/0` is all
/// of IPv6, and `::ffff:10.0.0.0/104` is `10.0.0.0/8`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    is_ipv4: bool,
    /// The first address, an IPv4 one in its mapped form.
    network: u128,
    mask: u128,
}

impl Prefix {
    /// Whether this address has the prefix.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.is_ipv4 == address.is_ipv4() && mapped(address) & self.mask == self.network
    }
}

/// `10.0.0.0/8`, `2001:db8::/32`, or one address. Host bits are cleared, as routers do:
/// `10.1.2.3/8` is `10.0.0.0/8`.
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
        // A prefix shorter than the 96 bits of the mapping covers more than IPv4, so it is IPv6.
        let is_ipv4 = canonical.is_ipv4() && mapped_length >= 96;
        Ok(Prefix { is_ipv4, network: mapped(address) & mask, mask })
    }
}

/// `10.0.0.0/8`, always with its length, in the notation of its family.
impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let network = Ipv6Addr::from_bits(self.network);
        match network.to_ipv4_mapped() {
            Some(network) if self.is_ipv4 => write!(f, "{network}/{}", self.mask.count_ones() - 96),
            _ => write!(f, "{network}/{}", self.mask.count_ones()),
        }
    }
}

fn mapped(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => Ipv6Addr::from(address.octets()),
    }
    .to_bits()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefix_has_one_notation() {
        for (text, shown) in [
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("10.1.2.3", "10.1.2.3/32"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("::ffff:10.1.2.3/104", "10.0.0.0/8"),
            ("::ffff:0.0.0.0/96", "0.0.0.0/0"),
            ("::/0", "::/0"),
            ("2001:DB8:0::1", "2001:db8::1/128"),
            ("::ffff:10.1.2.3/95", "::fffe:0:0/95"),
        ] {
            let prefix: Prefix = text.parse().unwrap();
            assert_eq!(prefix.to_string(), shown, "{text}");
            assert_eq!(shown.parse(), Ok(prefix), "{text}");
        }
    }
}
