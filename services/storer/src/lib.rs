//! Keeps syslog on disk.

mod disk;
mod keeping;
mod template;
mod writer;
