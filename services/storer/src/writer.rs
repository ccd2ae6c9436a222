//! The writer: which file a message goes to, when files are synced and closed, and what a crash left.
