//! Re-sends xflow datagrams to one or many destinations.
