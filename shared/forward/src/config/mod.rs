//! Destinations as they are configured, the file that lists them, the addresses of their names, and
//! checks of the path to them.

pub(crate) mod address;
pub(crate) mod destination;
pub(crate) mod preflight;
pub(crate) mod registry;
pub(crate) mod reload;
pub(crate) mod resolve;
