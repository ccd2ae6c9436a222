//! Searching stored files by time, source, severity and text.
