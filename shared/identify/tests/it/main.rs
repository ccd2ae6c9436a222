//! Identification of formats: tables, properties, and third-party captures.

#![allow(clippy::unwrap_used, reason = "a test that cannot read its own input has failed")]

mod corpus;
mod formats;
mod properties;
