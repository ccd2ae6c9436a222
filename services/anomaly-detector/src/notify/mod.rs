//! Telling people and machines: Alertmanager, webhooks, syslog, the bus.
