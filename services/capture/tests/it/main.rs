//! The capture crate from outside.

mod decode;
mod explain;
mod packet_file;
