//! Receives many datagrams per system call: for the receivers of tests, demo and benches.

use std::{
    ffi::c_int,
    io,
    mem::MaybeUninit,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
    os::fd::{AsRawFd, BorrowedFd},
};

use crate::AddressStorage;

const MESSAGES: usize = 64;
const SLOT_BYTES: usize = 65_536;
const CONTROL_BYTES: usize = 64;

/// Memory for [`receive_batch`], reused for each call: 4 MiB.
#[derive(Debug)]
pub struct ReceiveBuffers {
    memory: Vec<u8>,
    messages: Vec<Message>,
}

#[derive(Clone, Copy, Debug)]
struct Message {
    source: SocketAddr,
    length: usize,
    segment_bytes: usize,
}

/// One datagram of a received batch.
#[derive(Clone, Copy, Debug)]
pub struct Received<'a> {
    /// The sender's address.
    pub source: SocketAddr,
    /// Its payload.
    pub payload: &'a [u8],
}

impl Default for ReceiveBuffers {
    fn default() -> ReceiveBuffers {
        ReceiveBuffers { memory: vec![0; MESSAGES * SLOT_BYTES], messages: Vec::with_capacity(MESSAGES) }
    }
}

impl ReceiveBuffers {
    /// The datagrams of the last batch, in order of arrival. Messages that the kernel coalesced
    /// (`UDP_GRO`) are split again.
    pub fn datagrams(&self) -> impl Iterator<Item = Received<'_>> {
        self.messages.iter().enumerate().flat_map(|(slot, message)| {
            let bytes = &self.memory[slot * SLOT_BYTES..slot * SLOT_BYTES + message.length];
            let whole = bytes.is_empty().then_some(bytes);
            let parts = bytes.chunks(message.segment_bytes.max(1));
            whole.into_iter().chain(parts).map(|payload| Received { source: message.source, payload })
        })
    }
}

#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; CONTROL_BYTES]);

/// Receives up to 64 messages with `recvmmsg(2)` without blocking, and returns how many. With
/// `UDP_GRO` a message can have several datagrams.
///
/// # Errors
/// `WouldBlock` when the socket is empty; ICMP errors of a connected socket.
pub fn receive_batch(socket: BorrowedFd<'_>, buffers: &mut ReceiveBuffers) -> io::Result<usize> {
    buffers.messages.clear();
    let mut headers = [const { MaybeUninit::<libc::mmsghdr>::uninit() }; MESSAGES];
    let mut slices = [const { MaybeUninit::<libc::iovec>::uninit() }; MESSAGES];
    let mut addresses = [const { MaybeUninit::<AddressStorage>::zeroed() }; MESSAGES];
    let mut controls = [Control([0; CONTROL_BYTES]); MESSAGES];
    let base = buffers.memory.as_mut_ptr();
    for index in 0..MESSAGES {
        // SAFETY: the slot lies within the 64 slots of `memory`.
        let slot = unsafe { base.add(index * SLOT_BYTES) };
        slices[index].write(libc::iovec { iov_base: slot.cast(), iov_len: SLOT_BYTES });
        // SAFETY: an all-zero msghdr is valid: null pointers with zero lengths.
        let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
        header.msg_hdr.msg_iov = slices[index].as_mut_ptr();
        header.msg_hdr.msg_iovlen = 1;
        header.msg_hdr.msg_name = addresses[index].as_mut_ptr().cast();
        header.msg_hdr.msg_namelen = size_of::<AddressStorage>() as libc::socklen_t;
        header.msg_hdr.msg_control = (&raw mut controls[index]).cast();
        header.msg_hdr.msg_controllen = CONTROL_BYTES as _;
        headers[index].write(header);
    }
    // SAFETY: all headers are initialised and point to memory that outlives the call and is
    // borrowed exclusively.
    let received = unsafe {
        libc::recvmmsg(
            socket.as_raw_fd(),
            headers.as_mut_ptr().cast(),
            MESSAGES as u32,
            libc::MSG_DONTWAIT as _,
            std::ptr::null_mut(),
        )
    };
    if received < 0 {
        return Err(io::Error::last_os_error());
    }
    for index in 0..received as usize {
        // SAFETY: the kernel has filled this header, and with it the address and the control
        // messages it points to.
        let message = unsafe {
            let header = headers[index].assume_init_ref();
            let length = (header.msg_len as usize).min(SLOT_BYTES);
            let segment_bytes = gro_segment(&header.msg_hdr).unwrap_or(length);
            Message { source: load_address(addresses[index].assume_init_ref()), length, segment_bytes }
        };
        buffers.messages.push(message);
    }
    Ok(received as usize)
}

/// # Safety
/// The kernel must have filled the header's control buffer.
unsafe fn gro_segment(header: &libc::msghdr) -> Option<usize> {
    const UDP_GRO: c_int = 104;
    // SAFETY: by this function's contract the control messages are well-formed; CMSG_NXTHDR stays
    // within msg_controllen.
    unsafe {
        let mut control = libc::CMSG_FIRSTHDR(header);
        while !control.is_null() {
            if (*control).cmsg_level == libc::SOL_UDP && (*control).cmsg_type == UDP_GRO {
                let bytes = libc::CMSG_DATA(control).cast::<c_int>().read_unaligned();
                return usize::try_from(bytes).ok().filter(|&bytes| bytes > 0);
            }
            control = libc::CMSG_NXTHDR(header, control);
        }
    }
    None
}

/// # Safety
/// The storage must hold a socket address of the family that it names, or zeros.
pub(crate) unsafe fn load_address(storage: &AddressStorage) -> SocketAddr {
    // SAFETY: both views begin with the family, which selects the valid one.
    unsafe {
        if c_int::from(storage.v4.sin_family) == libc::AF_INET6 {
            let v6 = &storage.v6;
            let address = Ipv6Addr::from(v6.sin6_addr.s6_addr);
            SocketAddrV6::new(address, u16::from_be(v6.sin6_port), v6.sin6_flowinfo, v6.sin6_scope_id).into()
        } else {
            let v4 = &storage.v4;
            SocketAddrV4::new(Ipv4Addr::from(v4.sin_addr.s_addr.to_ne_bytes()), u16::from_be(v4.sin_port)).into()
        }
    }
}
