//! Counting and judging: logic without I/O.
