//! A stored message as a line of text.
