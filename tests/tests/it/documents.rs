//! The documents that are generated from the code: the README's table of settings, `.env.example`, `docs/metrics.md`.
//!
//! With `TEST_SEKIWAKE_REGENERATE=1` they are written anew, to be reviewed as a difference; otherwise they are compared.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::PathBuf,
    process::Command,
};

use sekiwake_settings::{EVERY_SERVICE, VARIABLES, Variable, VariableDefault};
use sekiwake_testkit::netns::available_or_skipped;
use sekiwake_tests::{FORWARDERS, Services, Site, WIRE, binary};

use crate::keys::keygen;

const BEGIN: &str = "<!-- settings: generated from the code -->\n";
const END: &str = "<!-- end of settings -->";

#[test]
fn the_readme_lists_every_setting() {
    let readme = fs::read_to_string(document("README.md")).unwrap();
    let (before, rest) = readme.split_once(BEGIN).expect("the README has a place for settings");
    let (_, after) = rest.split_once(END).expect("which ends");
    check("README.md", &format!("{before}{BEGIN}{}{END}{after}", settings_table()));
}

#[test]
fn the_example_environment_lists_every_setting() {
    check(".env.example", &example_environment());
}

#[test]
fn the_documentation_lists_every_metric() {
    if !available_or_skipped("the_documentation_lists_every_metric") {
        return;
    }
    let site = Site::new().unwrap();
    // One key for all, for what is counted only where there are keys.
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("key");
    keygen(&key);
    let (key, public_key) = (key.display().to_string(), folder.path().join("key.pub").display().to_string());
    let (destinations, spool) = (folder.path().join("destinations"), folder.path().join("spool").display().to_string());
    fs::write(&destinations, "udp://198.51.100.11:514 tcp://198.51.100.11:514?spool=2MiB").unwrap();
    let destinations = destinations.display().to_string();
    let others = ["sekiwake-storer", "sekiwake-anomaly-detector"];
    let names = [&["sekiwake-capture", "sekiwake-proxy"][..], &FORWARDERS.map(|(_, name)| name), &others].concat();
    let store = folder.path().join("store").display().to_string();
    let environment = [
        ("SEKIWAKE_STORE_DIR", &*store),
        ("SEKIWAKE_NOTIFY", "syslog+udp://127.0.0.1:5514"),
        ("SEKIWAKE_CAPTURE_INTERFACES", WIRE),
        ("SEKIWAKE_SYSLOG_DESTINATIONS_FILE", &destinations),
        ("SEKIWAKE_SPOOL_DIR", &spool),
        ("SEKIWAKE_XFLOW_DESTINATIONS", "udp://198.51.100.11:2055"),
        ("SEKIWAKE_TRAP_DESTINATIONS", "udp://198.51.100.11:162"),
        ("SEKIWAKE_BUS_KEY_FILE", &key),
        ("SEKIWAKE_BUS_SERVER_KEY_FILE", &public_key),
        ("SEKIWAKE_BUS_ALLOWED_KEYS_FILE", &public_key),
    ];
    let services = Services::start(&site.host, &names, &environment).unwrap();
    let mut families = BTreeMap::new();
    for service in &services.0 {
        collect(&service.page("/metrics").unwrap(), &mut families);
    }
    services.stop().unwrap();
    check("docs/metrics.md", &metrics_page(&families));
}

/// The variables that a binary of this version reads: what `--check` prints.
fn read_by_this_version() -> BTreeSet<String> {
    let binaries = [
        "capture",
        "proxy",
        "syslog-forwarder",
        "xflow-forwarder",
        "trap-forwarder",
        "storer",
        "anomaly-detector",
        "tap",
    ];
    let check = |name: &str| {
        let mut command = Command::new(binary(&format!("sekiwake-{name}")));
        let output = command.arg("--check").env("SEKIWAKE_CAPTURE_INTERFACES", "lo").output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let pages: Vec<String> = binaries.map(check).into();
    pages.iter().flat_map(|page| page.lines()).filter_map(|line| Some(line.split_once('=')?.0.to_owned())).collect()
}

fn settings_table() -> String {
    let mut table = String::new();
    let mut group = None;
    let is_read = read_by_this_version();
    let (now, later): (Vec<&Variable>, Vec<&Variable>) = VARIABLES.iter().partition(|one| is_read.contains(one.name));
    for variable in now {
        if group != Some(variable.group) {
            group = Some(variable.group);
            let _ = write!(
                table,
                "\n**{}**\n\n| variable | read by | takes | default | |\n|---|---|---|---|---|\n",
                variable.group.heading()
            );
        }
        let Variable { name, read_by, takes, about, .. } = variable;
        let readers = if read_by.contains(&EVERY_SERVICE) { "all".to_owned() } else { read_by.join(", ") };
        let default = match variable.default {
            VariableDefault::Value(text) => format!("`{text}`"),
            VariableDefault::Described(text) => text.to_owned(),
        };
        let _ = writeln!(table, "| `{name}` | {readers} | {takes} | {default} | {about} |");
    }
    table.push('\n');
    if !later.is_empty() {
        let later: Vec<String> = later.iter().map(|variable| format!("`{}`", variable.name)).collect();
        let _ = write!(table, "Reserved, and without effect in this version: {}.\n\n", later.join(", "));
    }
    table
}

fn example_environment() -> String {
    let mut text = String::from(
        "# Every setting of Sekiwake with its default. One file can serve all services: each reads what concerns it.\n\
         # Generated from the code; a setting that is commented out or empty has its default.\n\
         # For docker compose: cp .env.example .env. It sets the addresses of the bus, of admin ports and of directories by itself: leave these as they\n\
         # are. What concerns compose alone is in docs/deploy-compose.md.\n",
    );
    let mut group = None;
    let is_read = read_by_this_version();
    for variable in VARIABLES.iter().filter(|variable| is_read.contains(variable.name)) {
        if group != Some(variable.group) {
            group = Some(variable.group);
            let _ = write!(text, "\n# ---- {} ----\n", variable.group.heading());
        }
        let (value, default) = match variable.default {
            VariableDefault::Value(text) => (text, String::new()),
            VariableDefault::Described(described) => ("", format!(" (default: {described})")),
        };
        let _ = write!(text, "\n# {}{default}\n#{}={value}\n", variable.about, variable.name);
    }
    text
}

/// What one metric is, put together from the pages of all services.
#[derive(Default)]
struct Family {
    help: String,
    kind: String,
    labels: BTreeSet<String>,
    services: BTreeSet<String>,
}

fn collect(page: &str, families: &mut BTreeMap<String, Family>) {
    for line in page.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            families.entry(name.to_owned()).or_default().help = help.to_owned();
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            families.entry(name.to_owned()).or_default().kind = kind.to_owned();
        } else {
            let name = line.split(['{', ' ']).next().unwrap_or_default();
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
            let family = base.filter(|base| families.contains_key(*base)).unwrap_or(name);
            let family = families.get_mut(family).expect("HELP comes before samples");
            for label in line.split_once('{').map_or("", |(_, rest)| rest).split("\",") {
                match label.split_once("=\"") {
                    Some(("service", value)) => {
                        family.services.insert(value.split('"').next().unwrap_or_default().to_owned());
                    }
                    Some(("le", _)) | None => {}
                    Some((label, _)) => {
                        family.labels.insert(label.to_owned());
                    }
                }
            }
        }
    }
}

fn metrics_page(families: &BTreeMap<String, Family>) -> String {
    let mut page = String::from(
        "# Metrics\n\nWhat the services count, on `/metrics` of their admin ports. Generated from the running services.\n\n\
         All carry the label `service`. Losses are counters with the label `reason`; for every service, in == out + dropped + held.\n\n\
         | metric | type | labels | services | |\n|---|---|---|---|---|\n",
    );
    for (name, family) in families {
        let list = |names: &BTreeSet<String>| names.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        let services = if family.services.len() >= 5 { "all".to_owned() } else { list(&family.services) };
        let _ =
            writeln!(page, "| `{name}` | {} | {} | {services} | {} |", family.kind, list(&family.labels), family.help);
    }
    page
}

fn document(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(name)
}

fn check(name: &str, wanted: &str) {
    let path = document(name);
    if std::env::var_os("TEST_SEKIWAKE_REGENERATE").is_some() {
        fs::write(&path, wanted).unwrap();
        return;
    }
    let present = fs::read_to_string(&path).unwrap_or_default();
    let differs = present.lines().zip(wanted.lines()).find(|(present, wanted)| present != wanted);
    assert!(
        present == wanted,
        "{name} is not what the code says, from {differs:?} on: run the test with TEST_SEKIWAKE_REGENERATE=1 and look at the difference"
    );
}
