//! Notifiers against real receivers, and against misbehaving ones.

mod alertmanager;
mod failures;
mod lifecycle;
mod rig;
mod server;
