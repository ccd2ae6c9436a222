//! Re-sends trap datagrams to one or many destinations.
