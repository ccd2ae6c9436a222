//! Every role in one process.
