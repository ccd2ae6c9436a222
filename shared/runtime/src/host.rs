//! The name of this host.

use sekiwake_record::Name;

/// The length of the longest [`Name`].
const MAX_NAME_BYTES: usize = 63;

/// The host's name as a [`Name`]: other characters become hyphens, and it is truncated.
pub fn host_name() -> Name {
    name_from(&rustix::system::uname().nodename().to_string_lossy())
}

#[expect(clippy::expect_used, reason = "the line above leaves only allowed characters")]
fn name_from(text: &str) -> Name {
    let allowed = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '-' };
    let text: String = text.chars().map(allowed).take(MAX_NAME_BYTES).collect();
    Name::new(if text.is_empty() { "localhost" } else { &text }).expect("allowed characters, between 1 and the maximum")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_host_name_becomes_a_name() {
        for (host, name) in [("tokyo-1.example", "tokyo-1.example"), ("ホスト 1", "----1"), ("", "localhost")] {
            assert_eq!(name_from(host).as_str(), name);
        }
        assert_eq!(name_from(&"x".repeat(64)).as_str().len(), 63);
        host_name();
    }
}
