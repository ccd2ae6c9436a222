//! Which records of a batch go to which endpoint: filters, rates and pools.

pub(crate) mod filter;
pub(crate) mod pool;
pub(crate) mod rate;
pub(crate) mod route;
pub(crate) mod selection;
