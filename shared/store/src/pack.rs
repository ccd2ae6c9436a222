//! Closed files, compressed: independent zstd frames that `zstdcat` reads, and a table of what is where.
