//! Notifiers against those who are told, and against those who behave badly.

mod alertmanager;
mod failures;
mod life;
mod rig;
mod server;
