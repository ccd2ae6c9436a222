//! Peers that refuse, do not read, or are not there: what waits is dropped by reason, memory is bounded, and it goes on afterwards.
