//! Documents that are generated from the code: the tables of `docs/settings.md`, `.env.example`,
//! and in a module of its own `docs/metrics.md`.
//!
//! With `TEST_SEKIWAKE_REGENERATE=1` they are written, for review in `git diff`; otherwise they are
//! compared.

pub(crate) mod metrics_page;

use std::{collections::BTreeSet, fmt::Write as _, fs, path::PathBuf, process::Command};

use sekiwake_settings::{EVERY_SERVICE, VARIABLES, Variable, VariableDefault};
use sekiwake_tests::binary;

const BEGIN: &str = "<!-- settings: generated from the code -->\n";
const END: &str = "<!-- end of settings -->";

#[test]
fn settings_page_lists_every_setting() {
    let page = fs::read_to_string(document("docs/settings.md")).unwrap();
    let (before, rest) = page.split_once(BEGIN).expect("the page has a begin marker");
    let (_, after) = rest.split_once(END).expect("the page has an end marker");
    check("docs/settings.md", &format!("{before}{BEGIN}{}{END}{after}", settings_table()));
}

#[test]
fn example_environment_lists_every_setting() {
    check(".env.example", &example_environment());
}

/// The variables that any binary reads, from the output of `--check`.
fn read_by_this_version() -> BTreeSet<String> {
    let binaries = [
        "capture",
        "proxy",
        "syslog-forwarder",
        "xflow-forwarder",
        "trap-forwarder",
        "storer",
        "anomaly-detector",
        "console",
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
                "\n**{}**\n\n| variable | read by | type | default | description |\n|---|---|---|---|---|\n",
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
        "# All settings of Sekiwake with their defaults. One file can serve all services.\n\
         # Generated from the code. A setting that is commented out or empty has its default.\n\
         # The Debian package installs it as /etc/sekiwake/sekiwake.env.\n\
         # For docker compose: cp .env.example .env. Compose sets the addresses of the bus and of admin\n\
         # ports, and directories: leave these commented out. Its own variables are in\n\
         # docs/deploy-compose.md.\n",
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

pub(crate) fn document(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(name)
}

pub(crate) fn check(name: &str, wanted: &str) {
    let path = document(name);
    if std::env::var_os("TEST_SEKIWAKE_REGENERATE").is_some() {
        fs::write(&path, wanted).unwrap();
        return;
    }
    let present = fs::read_to_string(&path).unwrap_or_default();
    let differs = present.lines().zip(wanted.lines()).find(|(present, wanted)| present != wanted);
    assert!(
        present == wanted,
        "{name} differs from the code, first at {differs:?}: run the test with TEST_SEKIWAKE_REGENERATE=1 and review git diff"
    );
}
