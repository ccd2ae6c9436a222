//! Forwarders: destinations that change, fail and return, spoofed addresses, templates.

mod dead;
mod delivered;
mod rejecting;
mod reload;
mod secrets;
mod spoofing;
mod templates;

use std::{fs, path::Path};

use sekiwake_tests::Service;

use crate::support::*;

/// Replaces a file atomically, as an editor or a ConfigMap does.
fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(new, path).unwrap();
}

/// The number of reloads of the destinations file with this outcome.
fn reloads(forwarder: &Service<'_>, outcome: &str) -> u64 {
    let label = format!("outcome=\"{outcome}\"");
    forwarder.metrics().unwrap().count("sekiwake_forward_reloads_total", &[&label])
}

/// Disables the collectors' reverse path filter, which would drop all spoofed datagrams.
fn disable_reverse_path_filter(site: &TestSite) {
    let no_filter = || {
        for scope in ["all", "in0"] {
            fs::write(format!("/proc/sys/net/ipv4/conf/{scope}/rp_filter"), "0").unwrap();
        }
    };
    site.collectors.enter(no_filter).unwrap();
}
