//! Test traffic: syslog, NetFlow v5 and v9, IPFIX, sFlow and SNMP traps.
