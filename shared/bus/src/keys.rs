//! Keys.

/// A client's keys.
#[derive(Clone, Debug)]
pub struct ClientKeys;

/// The proxy's keys.
#[derive(Clone, Debug)]
pub struct ServerKeys;
