//! The shape of the source tree: layers, the code map of ARCHITECTURE.md, widths and lengths.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::documents::{check, document};

/// The widest comment, in characters.
const MAX_COMMENT_COLUMNS: usize = 100;
/// The longest README, in words.
const MAX_README_WORDS: usize = 1_000;

/// Which dependencies of a crate count.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Section {
    /// Those that its binaries link.
    Shipped,
    /// Those of its tests too.
    WithTests,
}

/// The folders of the workspace's crates that lie in `parent`, as `services/tap`.
fn crates_in(parent: &str) -> Vec<String> {
    let entries = fs::read_dir(document(parent)).unwrap().map(|entry| entry.unwrap());
    let folders = entries.filter(|entry| entry.path().join("Cargo.toml").exists());
    let mut names: Vec<String> =
        folders.map(|entry| format!("{parent}/{}", entry.file_name().to_string_lossy())).collect();
    names.sort();
    names
}

/// The crates of this workspace that a crate depends on, by folder name.
fn dependencies(folder: &str, wanted: Section) -> BTreeSet<String> {
    let text = fs::read_to_string(document(folder).join("Cargo.toml")).unwrap();
    let mut section = "";
    let mut found = BTreeSet::new();
    for line in text.lines() {
        if line.starts_with('[') {
            section = line.trim_matches(['[', ']']);
        }
        let counts = match section {
            "dependencies" | "build-dependencies" => true,
            "dev-dependencies" => wanted == Section::WithTests,
            _ => false,
        };
        if let Some(rest) = line.strip_prefix("sekiwake-").filter(|_| counts) {
            found.extend(rest.split(['.', ' ', '=']).next().map(str::to_owned));
        }
    }
    found
}

#[test]
fn no_shipped_crate_depends_on_test_code() {
    for folder in [crates_in("services"), crates_in("shared")].concat() {
        let known = dependencies(&folder, Section::Shipped);
        let has_test_code = ["testkit", "tests", "manual"].iter().any(|name| known.contains(*name));
        assert!(!has_test_code || folder == "shared/testkit", "{folder} depends on {known:?}");
    }
}

#[test]
fn services_and_shared_crates_depend_on_no_service() {
    let services: BTreeSet<String> =
        crates_in("services").iter().map(|folder| folder.trim_start_matches("services/").to_owned()).collect();
    // The all-in-one puts all services into one process; which is its purpose.
    let layered = [crates_in("services"), crates_in("shared")].concat();
    for folder in layered.iter().filter(|folder| *folder != "services/all-in-one") {
        let known = dependencies(folder, Section::WithTests);
        let wrong: Vec<&String> = known.intersection(&services).collect();
        assert!(wrong.is_empty(), "{folder} depends on {wrong:?}");
    }
}

/// The crates that a build for this machine compiles for the workspace or one of its packages.
fn compiled_crates(arguments: &[&str]) -> BTreeSet<String> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(document(".")).args(["tree", "--locked", "--offline", "--edges", "normal,build"]);
    let output = command.args(["--prefix", "none", "--format", "{p}"]).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout).unwrap();
    lines.lines().filter_map(|line| Some(line.split(' ').next()?.to_owned())).collect()
}

/// A crate that passes the feature on by a dependency with default features compiles NATS anyway.
#[test]
fn every_binary_can_be_built_without_nats() {
    let client = "async-nats";
    assert!(compiled_crates(&["--workspace"]).contains(client));
    assert!(!compiled_crates(&["--workspace", "--no-default-features"]).contains(client));
    for folder in [crates_in("services"), crates_in("deploy")].concat() {
        let package = folder.split('/').next_back().map(|name| format!("sekiwake-{name}")).unwrap();
        let without = compiled_crates(&["--package", &package, "--no-default-features"]);
        assert!(!without.contains(client), "{package} without default features compiles {client}");
        let with = compiled_crates(&["--package", &package]);
        assert!(with.contains(client) == with.contains("sekiwake-bus"), "{package} does not pass its feature on");
    }
}

#[test]
fn code_map_says_what_each_crate_depends_on() {
    let text = fs::read_to_string(document("ARCHITECTURE.md")).unwrap();
    let mut mapped = BTreeSet::new();
    let mut wanted = String::new();
    for line in text.lines() {
        match crate_of_row(line) {
            Some((folder, head)) => {
                let known: Vec<String> = dependencies(folder, Section::Shipped).into_iter().collect();
                let known = if known.is_empty() { "–".to_owned() } else { known.join(", ") };
                wanted += &format!("{head} | {known} |\n");
                assert!(mapped.insert(folder.to_owned()), "{folder} has two rows in the code map");
            }
            None => wanted += &format!("{line}\n"),
        }
    }
    let others = ["tests", "deploy/manual"].map(str::to_owned);
    for folder in [crates_in("services"), crates_in("shared"), others.to_vec()].concat() {
        assert!(mapped.contains(&folder), "{folder} has no row in the code map");
    }
    check("ARCHITECTURE.md", &wanted);
}

/// The crate of a row of the code map, and the row without its last column.
fn crate_of_row(line: &str) -> Option<(&str, &str)> {
    let folder = line.strip_prefix("| `")?.split_once("` | ")?.0;
    let (head, _) = line.strip_suffix(" |")?.rsplit_once(" | ")?;
    document(folder).join("Cargo.toml").exists().then_some((folder, head))
}

/// All Rust files below `folder`, except in `target`.
fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("target") {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The words of a file's code, without comments.
fn words(path: &Path) -> BTreeSet<String> {
    let text = fs::read_to_string(path).unwrap();
    let code = text.lines().map(|line| line.split("//").next().unwrap_or_default());
    let words = code.flat_map(|line| line.split(|character: char| !character.is_alphanumeric() && character != '_'));
    words.map(str::to_owned).collect()
}

#[test]
fn zeromq_is_named_only_below_the_seam() {
    // The proxy is a part of the bus on ZeroMQ, and `sys` has what the crate `zmq` lacks.
    let below = ["shared/bus/src/zeromq", "shared/sys/src", "services/proxy/src"].map(document);
    // These tell one bus from another.
    let seam = ["lib.rs", "bus.rs", "frame.rs", "settings.rs"].map(|file| document("shared/bus/src").join(file));
    let mut files = Vec::new();
    for folder in [crates_in("services"), crates_in("shared")].concat() {
        rust_files(&document(&folder).join("src"), &mut files);
    }
    files.retain(|file| !below.iter().any(|folder| file.starts_with(folder)));
    assert!(files.len() > 100, "{} files", files.len());
    let names = |file: &Path| {
        let words = words(file);
        words.contains("zmq") || words.contains("zeromq") && !seam.iter().any(|allowed| allowed == file)
    };
    let wrong: Vec<&PathBuf> = files.iter().filter(|file| names(file)).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn architecture_lists_the_traits_of_the_bus() {
    let code = fs::read_to_string(document("shared/bus/src/traits.rs")).unwrap();
    let name = |line: &str| Some(line.strip_prefix("pub trait ")?.split([':', ' ']).next()?.to_owned());
    let traits: BTreeSet<String> = code.lines().filter_map(name).collect();
    let text = fs::read_to_string(document("ARCHITECTURE.md")).unwrap();
    let (_, after) = text.split_once("| trait | methods |").unwrap();
    let rows = after.lines().skip(2).take_while(|line| line.starts_with('|'));
    let rows: Vec<Vec<&str>> = rows.map(|row| row.split(" | ").collect()).collect();
    let listed: BTreeSet<String> = rows.iter().map(|row| row[0].trim_matches(['|', ' ', '`']).to_owned()).collect();
    assert_eq!(listed, traits);
    let method = |line: &str| Some(line.strip_prefix("    fn ")?.split('(').next()?.to_owned());
    for function in code.lines().filter_map(method) {
        assert!(rows.iter().any(|row| row[1].contains(&format!("`{function}`"))), "{function} is not in the table");
    }
}

#[test]
fn comments_are_at_most_100_columns_wide() {
    let mut files = Vec::new();
    for folder in ["services", "shared", "tests", "deploy/manual", "fuzz"] {
        rust_files(&document(folder), &mut files);
    }
    assert!(files.len() > 100, "{} files", files.len());
    let mut wide = Vec::new();
    for path in files {
        let text = fs::read_to_string(&path).unwrap();
        // Drawings and examples stand in fences, and are as wide as they must be.
        let mut in_fence = false;
        for (number, line) in (1..).zip(text.lines()) {
            let comment = line.trim_start().strip_prefix("//").map(|rest| rest.trim_start_matches(['/', '!']).trim());
            match comment {
                Some(comment) if comment.starts_with("```") => in_fence = !in_fence,
                Some(_) if !in_fence && line.chars().count() > MAX_COMMENT_COLUMNS => {
                    wide.push(format!("{}:{number}", path.display()));
                }
                Some(_) => {}
                None => in_fence = false,
            }
        }
    }
    assert!(wide.is_empty(), "wider than {MAX_COMMENT_COLUMNS} columns:\n{}", wide.join("\n"));
}

#[test]
fn readme_has_at_most_1000_words() {
    let words = fs::read_to_string(document("README.md")).unwrap().split_whitespace().count();
    assert!(words <= MAX_README_WORDS, "{words} words");
}
