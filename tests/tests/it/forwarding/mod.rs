//! What operators trust a forwarder with: destinations that change, die and come back, addresses that stay, templates that are there.

mod dead;
mod reload;
mod spoofing;
mod templates;

use std::{fs, path::Path};

use sekiwake_tests::Service;

use crate::support::*;

/// Replaces a file as an editor or a ConfigMap does: by another one, in one step.
fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(new, path).unwrap();
}

/// How often a file of destinations was applied, or refused.
fn outcomes(forwarder: &Service<'_>, outcome: &str) -> u64 {
    let label = format!("outcome=\"{outcome}\"");
    forwarder.metrics().unwrap().count("sekiwake_forward_reloads_total", &[&label])
}

/// Lets the collectors take what comes from addresses to which they have no route: without it they would see no spoofed datagram.
fn let_foreign_sources_in(site: &TestSite) {
    let no_filter = || {
        for scope in ["all", "in0"] {
            fs::write(format!("/proc/sys/net/ipv4/conf/{scope}/rp_filter"), "0").unwrap();
        }
    };
    site.collectors.enter(no_filter).unwrap();
}
