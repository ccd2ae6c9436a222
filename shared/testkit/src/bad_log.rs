//! Standard errors that lose what a program logs.

use std::{
    fs::{File, OpenOptions},
    io::{self, ErrorKind, PipeReader, Write},
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    process::Stdio,
};

use rustix::fs::OFlags;

/// A standard error that loses the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadLog {
    /// Writing fails: the disk is full.
    FullDisk,
    /// Writing fails: the pipe's reader has closed it.
    ClosedPipe,
    /// Writing blocks: the pipe is full, and nobody reads it.
    FullPipe,
}

/// All of them.
pub const BAD_LOGS: [BadLog; 3] = [BadLog::FullDisk, BadLog::ClosedPipe, BadLog::FullPipe];

impl BadLog {
    /// The file, and the end of the pipe that has to stay open.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(self) -> io::Result<(Stdio, Option<PipeReader>)> {
        if self == BadLog::FullDisk {
            return Ok((OpenOptions::new().write(true).open("/dev/full")?.into(), None));
        }
        let (reader, writer) = io::pipe()?;
        if self == BadLog::ClosedPipe {
            return Ok((writer.into(), None));
        }
        let mut options = OpenOptions::new();
        let flags = OFlags::NONBLOCK.bits().cast_signed();
        let mut filler: File =
            options.write(true).custom_flags(flags).open(format!("/proc/self/fd/{}", writer.as_raw_fd()))?;
        while filler.write(&[b'x'; 4096]).map_err(|error| error.kind()) != Err(ErrorKind::WouldBlock) {}
        Ok((writer.into(), Some(reader)))
    }
}
