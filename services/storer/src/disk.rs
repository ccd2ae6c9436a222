//! What the writer does to a file system, so that tests can put one under it that tears writes.
