//! The targets of references exist: files, headings, and the functions along a datagram's path.

use std::{
    fs,
    path::{Path, PathBuf},
};

const WALK: &str = "docs/internals/a-datagram.md";

#[test]
fn links_between_documents_resolve() {
    let documents = documents();
    assert!(documents.len() > 15, "{}", documents.len());
    let mut broken = Vec::new();
    for path in &documents {
        let text = fs::read_to_string(path).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target: String = link.split_whitespace().collect();
            if target.contains("://") {
                continue;
            }
            let (file, heading) = target.split_once('#').unwrap_or((&target, ""));
            let file = if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            let is_found = file.exists() && (heading.is_empty() || headings(&file).contains(&heading.to_owned()));
            if !is_found {
                broken.push(format!("{}: {target}", path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "broken links:\n{}", broken.join("\n"));
}

#[test]
fn functions_along_a_datagrams_path_exist() {
    let page = fs::read_to_string(project(WALK)).unwrap();
    let mut checked = 0;
    for row in page.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let file = cells[2].trim_matches('`');
        let code = fs::read_to_string(project(file)).unwrap_or_else(|error| panic!("{WALK}: {file}: {error}"));
        for function in cells[1].split(", ").map(|name| name.trim_matches('`')) {
            let is_there =
                [format!("fn {function}("), format!("fn {function}<")].iter().any(|text| code.contains(text));
            assert!(is_there, "{WALK}: {file} has no function {function}");
            checked += 1;
        }
    }
    assert!(checked > 25, "{checked}");
}

/// Every document of the project.
fn documents() -> Vec<PathBuf> {
    let folders = ["", "docs", "docs/internals"].map(project);
    let entries = folders.iter().flat_map(|folder| fs::read_dir(folder).unwrap());
    entries.map(|entry| entry.unwrap().path()).filter(|path| path.extension().is_some_and(|end| end == "md")).collect()
}

/// The anchors of a document's headings.
fn headings(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap();
    let titles = text.lines().filter(|line| line.starts_with('#'));
    titles.map(|line| anchor(line.trim_start_matches('#').trim())).collect()
}

/// As GitHub makes anchors: lower case, hyphens for blanks, no punctuation.
fn anchor(title: &str) -> String {
    let kept = title.to_lowercase().replace(' ', "-");
    kept.chars().filter(|char| char.is_alphanumeric() || matches!(char, '-' | '_')).collect()
}

fn project(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(name)
}
