//! A network interface's index, flags and MTU: netdevice(7).

use std::{
    ffi::{c_int, c_short},
    io,
    os::{fd::AsRawFd, unix::net::UnixDatagram},
};

/// Asks the kernel about interfaces of the network namespace in which it was made, with one system
/// call per answer. Any socket serves; this one needs no address family that may be disabled.
#[derive(Debug)]
pub struct InterfaceQueries(UnixDatagram);

impl InterfaceQueries {
    /// # Errors
    /// No descriptor is left.
    pub fn new() -> io::Result<InterfaceQueries> {
        UnixDatagram::unbound().map(InterfaceQueries)
    }

    /// The kernel's index of the interface.
    ///
    /// # Errors
    /// No interface has this name.
    pub fn index(&self, interface: &str) -> io::Result<u32> {
        // SAFETY: SIOCGIFINDEX has filled in this member.
        self.ask(interface, libc::SIOCGIFINDEX).map(|answer| unsafe { answer.ifr_ifru.ifru_ifindex }.unsigned_abs())
    }

    /// Flags, as `IFF_UP` (0x1); the low 16 bits.
    ///
    /// # Errors
    /// No interface has this name.
    pub fn flags(&self, interface: &str) -> io::Result<u32> {
        // SAFETY: SIOCGIFFLAGS has filled in this member.
        let flags = |answer: libc::ifreq| c_short::cast_unsigned(unsafe { answer.ifr_ifru.ifru_flags }).into();
        self.ask(interface, libc::SIOCGIFFLAGS).map(flags)
    }

    /// The largest IP packet that the link carries, bytes.
    ///
    /// # Errors
    /// No interface has this name.
    pub fn mtu(&self, interface: &str) -> io::Result<u32> {
        // SAFETY: SIOCGIFMTU has filled in this member.
        self.ask(interface, libc::SIOCGIFMTU).map(|answer| unsafe { answer.ifr_ifru.ifru_mtu }.unsigned_abs())
    }

    fn ask(&self, interface: &str, question: libc::Ioctl) -> io::Result<libc::ifreq> {
        // SAFETY: zeros are a valid value of every member.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        // The name is terminated by the zero that remains.
        let room = request.ifr_name.len() - 1;
        if interface.len() > room || interface.contains('\0') {
            return Err(io::Error::from(io::ErrorKind::NotFound));
        }
        for (place, byte) in request.ifr_name.iter_mut().zip(interface.bytes()) {
            *place = byte.cast_signed();
        }
        // SAFETY: the descriptor is open, and the kernel reads and writes one ifreq, which outlives
        // the call.
        let status: c_int = unsafe { libc::ioctl(self.0.as_raw_fd(), question, &raw mut request) };
        if status == 0 { Ok(request) } else { Err(io::Error::last_os_error()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_as_sysfs_says() {
        let queries = InterfaceQueries::new().unwrap();
        let read = |attribute: &str| {
            std::fs::read_to_string(format!("/sys/class/net/lo/{attribute}")).unwrap().trim().to_owned()
        };
        assert_eq!(queries.index("lo").unwrap().to_string(), read("ifindex"));
        assert_eq!(queries.mtu("lo").unwrap().to_string(), read("mtu"));
        const LOOPBACK: u32 = 0x8;
        assert_eq!(queries.flags("lo").unwrap() & LOOPBACK, LOOPBACK);
    }

    #[test]
    fn unknown_names_are_errors() {
        let queries = InterfaceQueries::new().unwrap();
        for name in ["", "none-such", "lo\0", "a-name-that-is-too-long-for-an-interface"] {
            assert!(queries.index(name).is_err(), "{name:?}");
        }
    }
}
