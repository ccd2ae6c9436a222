//! `explain`: what the detector would have said.
