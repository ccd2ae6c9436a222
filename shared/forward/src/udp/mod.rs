//! Sending to UDP destinations: one worker per endpoint.

pub(crate) mod egress;
pub(crate) mod flush;
pub(crate) mod health;
pub(crate) mod plan;
pub(crate) mod sending;
pub(crate) mod socket;
pub(crate) mod target;
pub(crate) mod worker;
