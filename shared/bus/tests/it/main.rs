//! The bus over real libzmq and TCP on loopback.
#![allow(clippy::unwrap_used)]

mod control;
mod curve;
mod events;
mod flow;
mod hostile;
mod key_files;
mod load;
mod notes;
mod overflow;
mod properties;
mod python;
mod restart;
mod support;
