//! The bus over real libzmq and TCP on loopback.
#![allow(clippy::unwrap_used)]

mod control;
mod flow;
mod hostile;
mod load;
mod overflow;
mod properties;
mod python;
mod restart;
mod support;
