//! Third-party captures, datagrams and logs, used in place when `../shared/corpus` is beside the
//! workspace.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use sekiwake_testkit::corpus::{corpus_or_skipped, manifest};
use sekiwake_tests::collectors::installed_or_skipped;

/// The corpus, or `None` without it or without the tools to read captures; reports that this part
/// of the test is skipped.
pub(crate) fn corpus() -> Option<PathBuf> {
    let folder = corpus_or_skipped()?;
    installed_or_skipped(&["mergecap", "tshark"]).then_some(folder)
}

/// The files of a category in the manifest.
fn files(corpus: &Path, category: &str) -> Vec<PathBuf> {
    manifest(corpus).iter().filter(|row| row[1] == category).map(|row| corpus.join(&row[0])).collect()
}

/// A captured UDP datagram.
pub(crate) struct Captured {
    pub(crate) destination_port: u16,
    pub(crate) payload: Vec<u8>,
}

/// The UDP datagrams in the captures of a category, in the order of the files, as tshark reads
/// them.
pub(crate) fn captured(corpus: &Path, category: &str) -> Vec<Captured> {
    let folder = tempfile::tempdir().unwrap();
    let merged = folder.path().join("all.pcapng");
    let output =
        Command::new("mergecap").arg("-a").arg("-w").arg(&merged).args(files(corpus, category)).output().unwrap();
    assert!(output.status.success(), "mergecap: {}", String::from_utf8_lossy(&output.stderr));
    let output = Command::new("tshark")
        .args(["-n", "-T", "fields", "-E", "occurrence=f", "-e", "udp.dstport", "-e", "udp.payload", "-r"])
        .arg(&merged)
        .output()
        .unwrap();
    assert!(output.status.success(), "tshark: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter_map(datagram).collect()
}

/// The datagram of a line of tshark's output; `None` where a frame completes no datagram.
fn datagram(line: &str) -> Option<Captured> {
    let (port, payload) = line.split_once('\t')?;
    let (pairs, _) = payload.as_bytes().as_chunks::<2>();
    let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let payload = pairs.iter().map(byte).collect::<Option<_>>()?;
    Some(Captured { destination_port: port.parse().ok()?, payload })
}

/// The datagrams of a category: one per file.
pub(crate) fn datagrams(corpus: &Path, category: &str) -> Vec<Vec<u8>> {
    files(corpus, category).iter().map(|path| fs::read(path).unwrap()).collect()
}

/// The lines of the logs of a category.
pub(crate) fn lines(corpus: &Path, category: &str) -> Vec<Vec<u8>> {
    let texts = files(corpus, category).into_iter().map(|path| fs::read(path).unwrap());
    texts.flat_map(|text| text.split(|&byte| byte == b'\n').map(<[u8]>::to_vec).collect::<Vec<_>>()).collect()
}
