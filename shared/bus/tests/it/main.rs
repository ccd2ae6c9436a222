//! The bus over real libzmq and TCP on loopback.
#![allow(clippy::unwrap_used)]

mod control;
mod curve;
mod events;
mod flow;
mod handoff;
mod hostile;
mod key_files;
mod load;
mod overflow;
mod python;
mod recent;
mod registrar;
mod restart;
mod status;
mod storm;
mod support;
