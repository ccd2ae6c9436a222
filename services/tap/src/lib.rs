//! Prints live records as JSON lines.
