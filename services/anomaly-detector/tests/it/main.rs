//! Tests.
mod notify;
mod reference;
