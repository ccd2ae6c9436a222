//! Third-party captures, compared with two independent decoders where they are available.

use std::process::Command;

use sekiwake_testkit::corpus::corpus_or_skipped;

#[test]
fn third_party_captures_decode_as_in_two_other_decoders() {
    let Some(corpus) = corpus_or_skipped() else { return };
    let output = Command::new("python3")
        .arg(corpus.join("compare.py"))
        .arg(env!("CARGO_BIN_EXE_sekiwake-capture"))
        .output()
        .expect("python3 runs the comparison");
    let report = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{report}{}", String::from_utf8_lossy(&output.stderr));
    println!("{report}");
}
