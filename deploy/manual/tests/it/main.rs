//! The generated pages and completions, as their readers see them.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use sekiwake_manual::{Binary, binaries, write_all};
use sekiwake_settings::VARIABLES;
use sekiwake_testkit::skip::met_or_skipped;
use tempfile::TempDir;

fn generated() -> (TempDir, Vec<Binary>) {
    let folder = tempfile::tempdir().unwrap();
    write_all(folder.path(), "2026-01-31").unwrap();
    (folder, binaries())
}

fn page_path(folder: &Path, binary: &Binary) -> PathBuf {
    folder.join("manual").join(format!("{}.{}", binary.name(), binary.section))
}

/// A command that the tests need, or a reason to skip them.
fn has(program: &str) -> bool {
    let status = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    met_or_skipped(status.map(|_| ()).map_err(|error| format!("{program}: {error}")))
}

/// The page as text, of 300 columns, so that words are not divided.
fn shown(path: &Path) -> String {
    let mut man = Command::new("man");
    man.args(["--local-file", "--encoding=UTF-8", "--no-hyphenation", "--no-justification"]).arg(path);
    man.env("MANWIDTH", "300").env("LC_ALL", "C.UTF-8").env_remove("MAN_KEEP_FORMATTING");
    let output = man.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn every_shipped_binary_has_a_page_and_completions() {
    let services = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../services");
    let mut shipped = BTreeSet::new();
    for entry in fs::read_dir(services).unwrap() {
        let Ok(manifest) = fs::read_to_string(entry.unwrap().path().join("Cargo.toml")) else { continue };
        for part in manifest.split("[[bin]]").skip(1) {
            let name = part.split_once("name = \"").unwrap().1.split('"').next().unwrap();
            shipped.insert(name.to_owned());
        }
    }
    let (folder, binaries) = generated();
    assert_eq!(binaries.iter().map(|binary| binary.name().to_owned()).collect::<BTreeSet<_>>(), shipped);
    for binary in &binaries {
        assert!(page_path(folder.path(), binary).exists(), "{}", binary.name());
        let completions = folder.path().join("completions");
        let name = binary.name();
        for file in [format!("bash/{name}"), format!("zsh/_{name}"), format!("fish/{name}.fish")] {
            assert!(fs::metadata(completions.join(&file)).unwrap().len() > 0, "{file}");
        }
    }
}

#[test]
fn page_has_every_setting_command_and_option() {
    if !has("man") {
        return;
    }
    let (folder, binaries) = generated();
    for binary in &binaries {
        let page = shown(&page_path(folder.path(), binary));
        let name = binary.name();
        for section in ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "SETTINGS", "EXIT STATUS", "SIGNALS", "EXAMPLES"]
        {
            assert!(page.lines().any(|line| line == section), "{name} has no {section}:\n{page}");
        }
        let service = binary.line.about.service;
        let read = VARIABLES.iter().filter(|variable| match service {
            // Those of tools are on their pages.
            "all-in-one" => variable.read_by != ["tap"],
            _ if binary.section == 8 => variable.concerns(service),
            _ => variable.name.starts_with("SEKIWAKE_LOG"),
        });
        for variable in read {
            let at = page.find(&format!("{} (", variable.name));
            let entry = &page[at.unwrap_or_else(|| panic!("{name} has no {}:\n{page}", variable.name))..];
            let default = format!("Default: {}", binary.line.default_of(variable));
            assert!(entry.lines().take(5).any(|line| line.trim() == default), "{name}: {default}:\n{entry}");
        }
        let mut command = binary.line.command.clone();
        command.build();
        for subcommand in command.get_subcommands().filter(|subcommand| subcommand.get_name() != "help") {
            assert!(page.lines().any(|line| line.trim() == subcommand.get_name()), "{name} {}", subcommand.get_name());
            for option in subcommand.get_arguments().filter_map(|argument| argument.get_long()) {
                assert!(page.contains(&format!("--{option}")), "{name} has no --{option}");
            }
        }
        assert!(page.contains("--env-file"), "{name}:\n{page}");
        assert!(binary.section == 1 || page.contains("7d"), "{name} has no units");
    }
}

#[test]
fn pages_have_no_warnings() {
    if !has("man") || !has("mandoc") {
        return;
    }
    let (folder, binaries) = generated();
    for binary in &binaries {
        let path = page_path(folder.path(), binary);
        // As lintian does.
        let mut man = Command::new("man");
        man.args(["--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z"]).arg(&path);
        let output = man.env("LC_ALL", "C.UTF-8").env("MANWIDTH", "80").output().unwrap();
        let warnings = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && warnings.is_empty(), "{}: {warnings}", binary.name());
        let output = Command::new("mandoc").args(["-T", "lint", "-W", "warning"]).arg(&path).output().unwrap();
        let warnings = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && warnings.is_empty(), "{}: {warnings}", binary.name());
    }
}

#[test]
fn shells_parse_the_completions() {
    let (folder, binaries) = generated();
    for (shell, option, suffix) in [("bash", "-n", ""), ("zsh", "-n", ""), ("fish", "--no-execute", ".fish")] {
        if !has(shell) {
            continue;
        }
        for binary in &binaries {
            let prefix = if shell == "zsh" { "_" } else { "" };
            let file = folder.path().join(format!("completions/{shell}/{prefix}{}{suffix}", binary.name()));
            let output = Command::new(shell).arg(option).arg(&file).output().unwrap();
            assert!(output.status.success() && output.stderr.is_empty(), "{}: {output:?}", file.display());
        }
    }
}

#[test]
fn bash_completes_subcommands_and_their_options() {
    if !has("bash") {
        return;
    }
    let (folder, binaries) = generated();
    for binary in &binaries {
        let name = binary.name();
        let file = folder.path().join("completions/bash").join(name);
        let mut command = binary.line.command.clone();
        command.build();
        for subcommand in command.get_subcommands().filter(|subcommand| subcommand.get_name() != "help") {
            let subcommand_name = subcommand.get_name();
            // As the shell does: the function gets the command, the word and the word before it.
            let function = format!("_{}", name.replace('-', "__"));
            let script = format!(
                "source '{}'\n\
                 COMP_WORDS=({name} {subcommand_name}) COMP_CWORD=1; {function} {name} {subcommand_name} {name}\n\
                 echo \"${{COMPREPLY[@]}}\"\n\
                 COMP_WORDS=({name} {subcommand_name} --) COMP_CWORD=2; {function} {name} -- {subcommand_name}\n\
                 echo \"${{COMPREPLY[@]}}\"\n",
                file.display()
            );
            let output = Command::new("bash").args(["--norc", "-c", &script]).output().unwrap();
            let completed = String::from_utf8(output.stdout).unwrap();
            let (words, options) = completed.split_once('\n').unwrap();
            assert_eq!(words, subcommand_name, "{name}");
            let options: BTreeSet<&str> = options.split_whitespace().collect();
            let long = subcommand.get_arguments().filter_map(|argument| argument.get_long());
            let expected: Vec<String> = long.map(|option| format!("--{option}")).collect();
            assert!(!expected.is_empty(), "{name} {subcommand_name}");
            assert_eq!(options, expected.iter().map(String::as_str).collect(), "{name} {subcommand_name}");
        }
    }
}
