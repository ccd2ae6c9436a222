//! Spools on disk that no destination uses: their destination was removed or renamed, or their
//! group was. They are reported, never deleted.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// Where spools may be.
pub(crate) struct Search {
    /// Folders of this process, and the names of spools that it uses there.
    pub(crate) own: Vec<PathBuf>,
    pub(crate) used: Vec<String>,
    /// The directory with a folder `KIND.GROUP` per group.
    pub(crate) base: PathBuf,
    /// `KIND.` and `KIND.GROUP` of this process.
    pub(crate) kind_prefix: String,
    pub(crate) own_group: String,
}

impl Search {
    /// The folders with contents that will not be sent.
    pub(crate) fn find(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for folder in self.own.iter().flat_map(subfolders) {
            let is_used = self.used.iter().any(|name| folder.file_name().is_some_and(|file| file == name.as_str()));
            if !is_used && has_segments(&folder) {
                found.push(folder);
            }
        }
        let locked = locked_files();
        let others = subfolders(&self.base).into_iter().filter(|folder| {
            let name = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            name.starts_with(&self.kind_prefix) && name != self.own_group
        });
        for group in others {
            // One per replica: the group's own folder, and those in it.
            let replicas = std::iter::once(group.clone()).chain(subfolders(&group));
            for replica in replicas.filter(|replica| !is_locked(replica, &locked)) {
                found.extend(subfolders(&replica).into_iter().filter(|folder| has_segments(folder)));
            }
        }
        found.sort();
        found.dedup();
        found
    }
}

fn subfolders(folder: impl AsRef<Path>) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

fn has_segments(folder: &Path) -> bool {
    let is_segment = |file: &fs::DirEntry| file.path().extension().is_some_and(|end| end == "segment");
    fs::read_dir(folder).is_ok_and(|files| files.flatten().any(|file| is_segment(&file)))
}

/// Whether a running process uses this directory of spools.
fn is_locked(dir: &Path, locked: &BTreeSet<u64>) -> bool {
    fs::metadata(dir.join("lock")).is_ok_and(|lock| locked.contains(&lock.ino()))
}

/// The inodes of locked files. Trying the locks would take them from a process that starts now.
fn locked_files() -> BTreeSet<u64> {
    // 1: FLOCK  ADVISORY  WRITE 4711 08:01:131077 0 EOF
    let inode = |line: &str| line.split_whitespace().nth(5)?.rsplit(':').next()?.parse().ok();
    fs::read_to_string("/proc/locks").unwrap_or_default().lines().filter_map(inode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::spools::Spools;

    #[test]
    fn spools_of_removed_destinations_and_groups_are_found() {
        let base = tempfile::tempdir().unwrap();
        let spool = |path: &str| {
            let folder = base.path().join(path);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("00000000000000000000.segment"), "").unwrap();
            folder
        };
        spool("syslog.default/used");
        let expected = [spool("syslog.default/removed"), spool("syslog.old/any"), spool("syslog.old/2/any")];
        spool("xflow.old/any");
        spool("syslog.running/any");
        fs::create_dir_all(base.path().join("syslog.default/empty")).unwrap();
        let running = Spools::new(&base.path().join("syslog.running"));
        running.dir().unwrap();
        let search = Search {
            own: vec![base.path().join("syslog.default")],
            used: vec!["used".to_owned()],
            base: base.path().to_owned(),
            kind_prefix: "syslog.".to_owned(),
            own_group: "syslog.default".to_owned(),
        };
        let mut expected = expected.to_vec();
        expected.sort();
        assert_eq!(search.find(), expected);
        drop(running);
        assert_eq!(search.find().len(), 4, "the group has ended");
    }
}
