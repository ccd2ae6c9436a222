//! Tests with requirements that a machine may lack: privileges, tools, kernel modules.

use std::{fmt::Display, thread};

/// When this variable is `1`, a test without its requirements fails instead of being skipped.
pub const REQUIRE_VARIABLE: &str = "TEST_SEKIWAKE_REQUIRE_NETNS";

/// The name of the running test: libtest names a test's thread after it.
pub fn test_name() -> String {
    thread::current().name().unwrap_or("test").to_owned()
}

/// Reports on standard error that the running test, or a part of it, is skipped.
pub fn skip(why: impl Display) {
    eprintln!("SKIPPED: {}: {why}", test_name());
}

/// True when a requirement of the running test is met. Otherwise reports that the test is skipped,
/// or fails it when [`REQUIRE_VARIABLE`] is set.
pub fn met_or_skipped<E: Display>(requirement: Result<(), E>) -> bool {
    let Err(why) = requirement else { return true };
    let is_required = std::env::var_os(REQUIRE_VARIABLE).is_some_and(|value| value == "1");
    assert!(!is_required, "{} cannot run, and {REQUIRE_VARIABLE}=1: {why}", test_name());
    skip(why);
    false
}
