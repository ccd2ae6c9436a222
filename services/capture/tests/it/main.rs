//! The capture crate from outside.

mod decode;
mod explain;
mod filter;
mod live;
mod packet_file;
