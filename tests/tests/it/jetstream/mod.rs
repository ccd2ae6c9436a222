//! The bus on NATS JetStream, with a real server.

mod groups;
mod losses;
mod moving;
pub(crate) mod operator;
mod publishing;
mod security;
pub(crate) mod server;
mod servers;
mod sites;
