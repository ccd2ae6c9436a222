//! Third-party captures, datagrams and logs, used in place when `../shared/corpus` is beside the
//! workspace.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::skip::skip;

/// The folder of the corpus. Without it, reports that the test or this part of it is skipped.
pub fn corpus_or_skipped() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/corpus");
    if folder.join("MANIFEST.tsv").exists() {
        return Some(folder);
    }
    skip(format!("no corpus at {}", folder.display()));
    None
}

/// The rows of the corpus's manifest.
pub fn manifest(corpus: &Path) -> Vec<Vec<String>> {
    table(&corpus.join("MANIFEST.tsv"))
}

/// The rows of a table, without its head, split at tabs.
pub fn table(path: &Path) -> Vec<Vec<String>> {
    let text = fs::read(path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()));
    let text = String::from_utf8_lossy(&text);
    text.lines().skip(1).map(|line| line.split('\t').map(str::to_owned).collect()).collect()
}
