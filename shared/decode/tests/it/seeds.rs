//! The seeds of the fuzz targets are what they are called.

use std::path::Path;

use sekiwake_decode::{
    mib::{Limits, Mib, MibFile, load},
    syslog, trap,
};

/// The seeds of a target, with their names.
fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds").join(target);
    let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    paths.map(|path| (path.file_name().unwrap().display().to_string(), std::fs::read(&path).unwrap())).collect()
}

#[test]
fn seeds_reach_what_they_are_for() {
    let mib = Mib::default();
    let traps = seeds("trap_decode");
    for (name, payload) in &traps {
        let trap = trap::decode(payload, &mib).unwrap();
        let version = serde_json::to_value(&trap).unwrap()["version"].as_str().unwrap().to_owned();
        assert!(name.starts_with(&format!("v{version}-")), "{name}");
        assert_eq!(trap.varbinds.is_empty(), name.contains("encrypted"), "{name}");
        assert!(trap.varbinds.iter().all(|binding| binding.error.is_none()), "{name}");
    }
    let lines = seeds("syslog_decode");
    for (name, line) in &lines {
        let message = syslog::decode(line);
        assert_eq!(message.priority.is_none(), name.contains("pri"), "{name}");
        assert_eq!(message.error.is_some(), name.contains("pri"), "{name}");
        assert_eq!(message.timestamp.is_none(), name == "malformed-pri", "{name}");
    }
    let modules = seeds("mib");
    for (name, text) in &modules {
        let files: Vec<MibFile> =
            text.split(|&byte| byte == 0xff).map(|text| MibFile { name: name.clone(), text: text.to_vec() }).collect();
        assert_eq!(load(&files, Limits::default()).modules, files.len(), "{name}");
    }
    assert!(traps.len() > 4 && lines.len() > 4 && modules.len() > 2);
}
