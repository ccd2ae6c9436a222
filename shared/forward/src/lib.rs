//! The forwarding engine: destinations, queues, batched sending.
