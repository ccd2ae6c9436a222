//! What becomes of closed files: compressed, and deleted by age and by total size.
