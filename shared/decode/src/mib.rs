//! Names, enumerations and display hints of object identifiers, from the text of MIB modules.
//!
//! ```text
//! files ─▶ lexer ─▶ parser: definitions of each module ─▶ resolver: arcs, syntaxes ─▶ Mib
//! ```
//! The compiler is our own because a MIB folder is hostile input and mib-rs 0.10, the only
//! maintained one, has no bounds: a file of 1.2 MB with nested CHOICEs overflows its stack, which
//! ends the process, and 320 kB of chained definitions take 480 MB. It also brings a licence that
//! `deny.toml` refuses. What names and display hints need of SMI is about 900 lines here: no
//! recursion, and memory in proportion to the text.
//!
//! Mistakes are common in MIB files of vendors. A mistake costs the definition that it is in, not
//! the file, and what a file's imports lack is looked for in all others. Files are read elsewhere.

mod hint;
mod known;
mod lexer;
mod parser;
mod resolver;
mod table;

#[cfg(test)]
mod tests;

pub use self::{
    resolver::{Limits, Loaded, MibFile, Skipped, load},
    table::{Found, Kind, Mib, Syntax},
};
