//! The bus on NATS JetStream, with a real server.

mod groups;
mod losses;
mod moving;
mod publishing;
mod security;
pub(crate) mod server;
mod servers;
mod sites;
