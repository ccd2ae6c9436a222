//! Source addresses and their sockets.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Protocol as Transport, SockAddr, Socket, Type};

/// Send buffer of each socket in bytes, within the system's limit: a few milliseconds of traffic.
const SEND_BUFFER_BYTES: usize = 4 << 20;

/// File descriptors besides the sources' sockets.
const OTHER_DESCRIPTORS: u64 = 64;

/// The configured source addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum From {
    /// Single addresses.
    List(Vec<IpAddr>),
    /// Addresses of a network.
    Prefix {
        /// Its first address.
        network: IpAddr,
        /// The length of the prefix in bits.
        bits: u8,
    },
}

/// An error in [`From`].
#[derive(Debug, thiserror::Error)]
#[error("expected addresses separated by commas, or a prefix such as 198.18.0.0/16 or 2001:db8::/64")]
pub struct FromError;

/// More addresses were requested than configured.
#[derive(Debug, thiserror::Error)]
#[error("--sources {wanted}: --from has only {available} addresses")]
pub struct TooFew {
    wanted: u32,
    available: u128,
}

impl FromStr for From {
    type Err = FromError;

    fn from_str(text: &str) -> Result<From, FromError> {
        let Some((address, bits)) = text.split_once('/') else {
            return text
                .split(',')
                .map(|one| one.trim().parse().map_err(|_| FromError))
                .collect::<Result<_, _>>()
                .map(From::List);
        };
        let address: IpAddr = address.parse().map_err(|_| FromError)?;
        let bits: u8 = bits.parse().map_err(|_| FromError)?;
        let network = match address {
            IpAddr::V4(address) if bits <= 32 => {
                let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from(u32::from(address) & mask))
            }
            IpAddr::V6(address) if bits <= 128 => {
                let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from(u128::from(address) & mask))
            }
            _ => return Err(FromError),
        };
        Ok(From::Prefix { network, bits })
    }
}

impl From {
    /// The first `wanted` addresses: by default all of a list, one of a prefix. A prefix leaves out
    /// its network address (also the subnet-router anycast address of IPv6) and, in IPv4, its
    /// broadcast address.
    pub fn addresses(&self, wanted: Option<u32>) -> Result<Vec<IpAddr>, TooFew> {
        match self {
            From::List(addresses) => {
                let wanted = wanted.unwrap_or(addresses.len() as u32);
                let chosen = addresses.get(..wanted as usize).map(<[IpAddr]>::to_vec);
                chosen.ok_or(TooFew { wanted, available: addresses.len() as u128 })
            }
            From::Prefix { network, bits } => {
                let wanted = wanted.unwrap_or(1);
                let host_bits = if network.is_ipv4() { 32 } else { 128 } - u32::from(*bits);
                let all = 1_u128.checked_shl(host_bits).unwrap_or(u128::MAX);
                let (skipped, available) = match (network, host_bits) {
                    (_, 0..=1) => (0, all),
                    (IpAddr::V4(_), _) => (1, all - 2),
                    (IpAddr::V6(_), _) => (1, all - 1),
                };
                if u128::from(wanted) > available {
                    return Err(TooFew { wanted, available });
                }
                let host = |number: u32| match network {
                    IpAddr::V4(network) => IpAddr::V4(Ipv4Addr::from(u32::from(*network) + skipped + number)),
                    IpAddr::V6(network) => {
                        IpAddr::V6(Ipv6Addr::from(u128::from(*network) + u128::from(skipped + number)))
                    }
                };
                Ok((0..wanted).map(host).collect())
            }
        }
    }
}

/// A socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The address is not local, and IP_TRANSPARENT is not permitted.
    #[error("cannot send from {address}: no interface has this address, and IP_TRANSPARENT requires CAP_NET_RAW")]
    Foreign {
        /// The address.
        address: IpAddr,
        /// The kernel's error.
        #[source]
        error: io::Error,
    },
    /// Any other error.
    #[error("cannot send from {from} to {to}")]
    Socket {
        /// Source.
        from: SocketAddr,
        /// Destination.
        to: SocketAddr,
        /// The kernel's error.
        #[source]
        error: io::Error,
    },
    /// The limit of open files is too low.
    #[error("cannot open {wanted} sockets: the limit of open files is {limit}")]
    Descriptors {
        /// Required number.
        wanted: u64,
        /// The hard limit.
        limit: u64,
    },
}

/// Raises the limit of open files for `sockets` sockets.
///
/// # Errors
/// When the hard limit is lower and cannot be raised.
pub fn allow_descriptors(sockets: u64) -> Result<(), OpenError> {
    let wanted = sockets + OTHER_DESCRIPTORS;
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= wanted) {
        return Ok(());
    }
    let maximum = limit.maximum.map(|maximum| maximum.max(wanted));
    setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum })
        .or_else(|_| setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limit.maximum }))
        .map_err(|_| OpenError::Descriptors { wanted, limit: limit.maximum.unwrap_or(u64::MAX) })
}

/// A connected, non-blocking socket from `from` (port 0: any) to `to`.
///
/// # Errors
/// When the address cannot be used, or there is no route.
pub fn open(from: SocketAddr, to: SocketAddr) -> Result<Socket, OpenError> {
    let failed = |error| OpenError::Socket { from, to, error };
    let socket = Socket::new(Domain::for_address(to), Type::DGRAM, Some(Transport::UDP)).map_err(failed)?;
    socket.set_nonblocking(true).map_err(failed)?;
    socket.set_send_buffer_size(SEND_BUFFER_BYTES).map_err(failed)?;
    if from.port() != 0 {
        // One source sends to several destination ports from one source port.
        socket.set_reuse_address(true).map_err(failed)?;
    }
    let address = SockAddr::from(from);
    match socket.bind(&address) {
        Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {
            let transparent =
                if from.is_ipv4() { socket.set_ip_transparent_v4(true) } else { socket.set_ip_transparent_v6(true) };
            transparent.map_err(|error| OpenError::Foreign { address: from.ip(), error })?;
            socket.bind(&address).map_err(failed)?;
        }
        bound => bound.map_err(failed)?,
    }
    socket.connect(&SockAddr::from(to)).map_err(failed)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first_and_last(from: &str, wanted: Option<u32>) -> (String, String, usize) {
        let addresses = from.parse::<From>().unwrap().addresses(wanted).unwrap();
        (addresses[0].to_string(), addresses[addresses.len() - 1].to_string(), addresses.len())
    }

    #[test]
    fn addresses_are_the_first_of_a_list_or_prefix() {
        let expected = |first: &str, last: &str, count| (first.to_owned(), last.to_owned(), count);
        assert_eq!(first_and_last("198.18.0.9,198.18.0.7", None), expected("198.18.0.9", "198.18.0.7", 2));
        assert_eq!(first_and_last("198.18.0.9,198.18.0.7", Some(1)), expected("198.18.0.9", "198.18.0.9", 1));
        assert_eq!(first_and_last("198.18.77.0/16", Some(300)), expected("198.18.0.1", "198.18.1.44", 300));
        assert_eq!(first_and_last("198.18.0.0/30", Some(2)), expected("198.18.0.1", "198.18.0.2", 2));
        assert_eq!(first_and_last("198.18.0.5/32", None), expected("198.18.0.5", "198.18.0.5", 1));
        assert_eq!(first_and_last("2001:db8::/64", Some(70_000)), expected("2001:db8::1", "2001:db8::1:1170", 70_000));
    }

    #[test]
    fn too_few_addresses_are_an_error() {
        for (from, wanted) in [("198.18.0.0/30", 3), ("198.18.0.1", 2), ("198.18.0.1/32", 2), ("2001:db8::/127", 3)] {
            assert!(from.parse::<From>().unwrap().addresses(Some(wanted)).is_err(), "{from}");
        }
    }
}
