//! Re-sends syslog datagrams to one or many destinations.
