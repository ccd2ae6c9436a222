//! Tests of the capture crate through its public interface and its binary.

mod bind_ports;
mod decode;
mod deduplicate;
mod explain;
mod filter;
mod live;
mod packet_file;
mod pipe;
mod pipeline;
mod settings;
