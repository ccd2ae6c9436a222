//! The only unsafe code of the workspace: system calls and socket options that no safe crate
//! offers, each behind a safe function. Also the two clocks, because everything that has a socket
//! reads them.

mod arrivals;
#[cfg(feature = "bus")]
mod bus;
pub mod clock;
mod epoll;
mod errors;
mod interface;
mod options;
mod receive;
mod send;
mod stream;

pub use arrivals::Arrivals;
#[cfg(feature = "bus")]
pub use bus::{curve_public_key, enforce_zap_domain, set_tcp_user_timeout, set_xpub_nodrop, signal_of, stop_monitor};
pub use epoll::{EpollListener, epoll_listeners};
pub use errors::{ErrorOrigin, QueuedError, receive_error, set_receive_errors};
pub use interface::InterfaceQueries;
pub use options::{
    FanoutMode, force_receive_buffer, join_fanout, kernel_filter_length, poll_readable, poll_readable_or, set_udp_gro,
};
pub use receive::{ReceiveBuffers, Received, receive_batch};
pub use send::{MAX_MESSAGES, MAX_SEGMENTED_BYTES, MAX_SEGMENTS, Outgoing, send_batch};
pub use stream::{TcpState, peer_address, received_bytes, shut_down, tcp_state, unacknowledged_bytes};

/// Memory for a socket address of either family.
pub(crate) union AddressStorage {
    pub(crate) v4: libc::sockaddr_in,
    pub(crate) v6: libc::sockaddr_in6,
}
