//! The real binaries over veth pairs.

mod documents;
