//! The captures, datagrams and texts of others, used in place when `../shared/corpus` stands beside the workspace.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use sekiwake_tests::collectors::installed_or_skipped;

/// The corpus, unless there is none here, or nothing to read captures with; then it is said that `test` is without it.
pub(crate) fn corpus(test: &str) -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/corpus");
    if !folder.join("MANIFEST.tsv").exists() {
        eprintln!("SKIPPED: {test}, the part with the traffic of others: no corpus at {}", folder.display());
        return None;
    }
    installed_or_skipped(test, &["mergecap", "tshark"]).then_some(folder)
}

/// The files of a category, as the manifest lists them.
fn files(corpus: &Path, category: &str) -> Vec<PathBuf> {
    let text = fs::read(corpus.join("MANIFEST.tsv")).unwrap();
    let text = String::from_utf8_lossy(&text);
    let rows = text.lines().skip(1).map(|line| line.split('\t').collect::<Vec<_>>());
    rows.filter(|row| row[1] == category).map(|row| corpus.join(row[0])).collect()
}

/// The UDP payloads in the captures of a category with their destination ports, in the order of the files, as tshark reads them.
pub(crate) fn captured(corpus: &Path, category: &str) -> Vec<(u16, Vec<u8>)> {
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

/// Port and payload of a line of tshark's; of none where a frame completes no datagram.
fn datagram(line: &str) -> Option<(u16, Vec<u8>)> {
    let (port, payload) = line.split_once('\t')?;
    let (pairs, _) = payload.as_bytes().as_chunks::<2>();
    let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    Some((port.parse().ok()?, pairs.iter().map(byte).collect::<Option<_>>()?))
}

/// The files of a category as they are: a datagram each.
pub(crate) fn datagrams(corpus: &Path, category: &str) -> Vec<Vec<u8>> {
    files(corpus, category).iter().map(|path| fs::read(path).unwrap()).collect()
}

/// The lines of the texts of a category.
pub(crate) fn lines(corpus: &Path, category: &str) -> Vec<Vec<u8>> {
    let texts = files(corpus, category).into_iter().map(|path| fs::read(path).unwrap());
    texts.flat_map(|text| text.split(|&byte| byte == b'\n').map(<[u8]>::to_vec).collect::<Vec<_>>()).collect()
}
