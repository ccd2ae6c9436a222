//! Wakes a thread that waits for its bus.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::atomic::{AtomicBool, Ordering, fence},
};

use rustix::{
    event::{EventfdFlags, eventfd},
    io::{read, write},
};

/// Ends the wait of a thread: its descriptor becomes readable.
#[derive(Debug)]
pub(crate) struct Bell {
    descriptor: OwnedFd,
    /// The thread waits, or is about to.
    is_awaited: AtomicBool,
}

impl Bell {
    pub(crate) fn new() -> io::Result<Bell> {
        let descriptor = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Bell { descriptor, is_awaited: AtomicBool::new(false) })
    }

    /// Ends the wait, if there is one. The thread sees everything that was done before the call.
    pub(crate) fn ring(&self) {
        // With the fence in `begin_wait`, either this sees that the thread is about to wait, or the
        // thread sees what was done.
        fence(Ordering::SeqCst);
        if self.is_awaited.load(Ordering::Relaxed) && self.is_awaited.swap(false, Ordering::Relaxed) {
            // It cannot fail: the counter is far from its limit, because it is rung once per wait.
            let _ = write(&self.descriptor, &1_u64.to_ne_bytes());
        }
    }

    /// From here on a ring makes the descriptor readable. To be called before the last look at what
    /// the wait is for.
    pub(crate) fn begin_wait(&self) {
        self.is_awaited.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// The wait has ended.
    pub(crate) fn end_wait(&self) {
        self.is_awaited.store(false, Ordering::Relaxed);
    }

    /// Makes the readable descriptor unreadable again.
    pub(crate) fn silence(&self) {
        // It cannot fail: it is readable, and only this thread reads.
        let _ = read(&self.descriptor, &mut [0; 8]);
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}
