//! `deploy/renames.tsv`: the table of names that have changed, the script that rewrites users'
//! rules and dashboards with it, and the tables in the changelog.

use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    path::PathBuf,
    process::{Command, Stdio},
};

const BEGIN: &str = "<!-- renames: printed by deploy/rename-metrics --markdown -->\n";
const END: &str = "<!-- end of renames -->";

#[test]
fn rename_script_passes_its_own_check() {
    assert_eq!(rename(&["--self-check"], ""), "ok\n");
}

#[test]
fn changelog_has_the_table_of_renames() {
    let path = project("CHANGELOG.md");
    let changelog = fs::read_to_string(&path).unwrap();
    let (before, rest) = changelog.split_once(BEGIN).expect("the changelog has a place for renames");
    let (_, after) = rest.split_once(END).expect("the place for renames ends");
    let wanted = format!("{before}{BEGIN}{}\n{END}{after}", rename(&["--markdown"], ""));
    if std::env::var_os("TEST_SEKIWAKE_REGENERATE").is_some() {
        fs::write(&path, wanted).unwrap();
        return;
    }
    assert!(changelog == wanted, "CHANGELOG.md differs from deploy/renames.tsv: run with TEST_SEKIWAKE_REGENERATE=1");
}

#[test]
fn renamed_metrics_exist_under_their_new_names_only() {
    let page = fs::read_to_string(project("docs/metrics.md")).unwrap();
    let present: BTreeSet<&str> = page.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    let table = fs::read_to_string(project("deploy/renames.tsv")).unwrap();
    let renamed: Vec<(&str, &str)> =
        table.lines().filter_map(|line| line.strip_prefix("metric\t")?.split_once('\t')).collect();
    assert!(renamed.len() > 20, "{}", renamed.len());
    for (old, new) in renamed {
        assert!(!present.contains(old), "{old} is still in docs/metrics.md");
        assert!(present.contains(new), "{new} is not in docs/metrics.md");
    }
}

#[test]
fn rule_and_dashboard_are_rewritten() {
    let rule = "expr: sekiwake_store_held_records{job=\"storer\"} > 0 # sekiwake_store_held_records_limit stays\n";
    let dashboard = "{\"expr\": \"rate(sekiwake_group_notes_bytes[5m]) / sekiwake_group_notes\"}\n";
    assert_eq!(
        rename(&[], rule),
        "expr: sekiwake_store_unsynced_records{job=\"storer\"} > 0 # sekiwake_store_held_records_limit stays\n"
    );
    assert_eq!(
        rename(&[], dashboard),
        "{\"expr\": \"rate(sekiwake_group_handoff_bytes[5m]) / sekiwake_group_handoff_entries\"}\n"
    );
}

/// The script's output for these arguments and this standard input.
fn rename(arguments: &[&str], input: &str) -> String {
    let mut command = Command::new("python3");
    command.arg(project("deploy/rename-metrics")).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{arguments:?}: {text}");
    text
}

fn project(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(name)
}
