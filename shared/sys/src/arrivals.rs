//! Notices data on connections that belong to a library, which reads it.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd},
};

use rustix::{
    buffer::spare_capacity,
    event::{Timespec, epoll},
    io::Errno,
};

/// Descriptors reported by one call.
const MAX_ARRIVALS: usize = 64;

/// Connections on which data may have arrived. Data that the library has read by the time of the
/// call is not reported; while data keeps arriving, some of it is.
#[derive(Debug)]
pub struct Arrivals {
    epoll: OwnedFd,
}

impl Arrivals {
    /// Watches no connection yet.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn new() -> io::Result<Arrivals> {
        Ok(Arrivals { epoll: epoll::create(epoll::CreateFlags::CLOEXEC)? })
    }

    /// Watches a connection until it is closed. The library may have closed it, and its number may
    /// be that of another descriptor by now, which is then watched instead.
    ///
    /// # Errors
    /// The number is no open descriptor, or one that cannot be watched.
    pub fn watch(&self, descriptor: RawFd) -> io::Result<()> {
        // SAFETY: the number is used for one system call, which returns an error if it is closed,
        // and takes no ownership.
        let source = unsafe { BorrowedFd::borrow_raw(descriptor) };
        let data = epoll::EventData::new_u64(u64::from(descriptor.unsigned_abs()));
        match epoll::add(&self.epoll, source, data, epoll::EventFlags::IN | epoll::EventFlags::ET) {
            // It is watched already.
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// The connections on which data has arrived since they were last reported, at most 64 of them.
    ///
    /// # Errors
    /// Those of epoll_wait(2).
    pub fn take(&self) -> io::Result<Vec<RawFd>> {
        let mut events = Vec::with_capacity(MAX_ARRIVALS);
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        match epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&now)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(events.iter().filter_map(|event| RawFd::try_from(event.data.u64()).ok()).collect())
    }
}

impl AsFd for Arrivals {
    /// Readable while there is a connection to report.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}
