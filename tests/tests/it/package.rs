//! The description of the Debian package. `tests/package` tests the package itself.

use std::fs;

use crate::documents::document;

#[test]
fn package_contains_the_binary_of_every_service() {
    let table = fs::read_to_string(document("services/all-in-one/Cargo.toml")).unwrap();
    for entry in fs::read_dir(document("services")).unwrap() {
        let text = fs::read_to_string(entry.unwrap().path().join("Cargo.toml")).unwrap();
        let (_, section) = text.split_once("[[bin]]\nname = \"").expect("a service has a binary");
        let name = section.split('"').next().unwrap();
        let asset = format!("[\"target/release/{name}\", \"usr/bin/\", \"755\"]");
        assert!(table.contains(&asset), "{name} is not in the package");
    }
}

#[test]
fn changelog_of_the_package_has_its_version() {
    let changelog = fs::read_to_string(document("deploy/debian/changelog")).unwrap();
    let version = env!("CARGO_PKG_VERSION");
    assert!(changelog.starts_with(&format!("sekiwake ({version}) ")), "{version}");
}
