//! Flows only: the templates of exporters, kept for destinations and left to the next owner of a
//! shard.

pub(crate) mod flows;
pub(crate) mod handoff;
