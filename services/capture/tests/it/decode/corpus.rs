//! Captures made by others, where they are at hand.

use std::{path::Path, process::Command};

#[test]
fn the_captures_of_others_are_explained_as_two_independent_decoders_read_them() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/corpus");
    let compare = corpus.join("compare.py");
    if !compare.exists() {
        eprintln!("SKIPPED: no corpus of captures beside the workspace ({})", corpus.display());
        return;
    }
    let output = Command::new("python3")
        .arg(&compare)
        .arg(env!("CARGO_BIN_EXE_sekiwake-capture"))
        .output()
        .expect("python3 runs the comparison");
    let report = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{report}{}", String::from_utf8_lossy(&output.stderr));
    println!("{report}");
}
