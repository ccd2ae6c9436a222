//! The engine against real sockets.

mod accounting;
mod destinations;
mod namespaces;
mod names;
mod payloads;
mod rig;
