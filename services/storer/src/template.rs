//! The path of a file, as a template of what is in it.
