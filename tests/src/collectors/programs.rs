//! Finds installed daemons and tools.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, bail};
use sekiwake_testkit::skip::met_or_skipped;

/// Where `deploy/packages` unpacks packages that conflict with others.
const UNPACKED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/unpacked");

/// A command for a program that is installed, or that is in an unpacked package.
pub fn program(name: &str) -> anyhow::Result<Command> {
    let search = env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    let installed = env::split_paths(&search).chain(system).map(|folder| folder.join(name)).find(|path| path.is_file());
    if let Some(path) = installed {
        return Ok(Command::new(path));
    }
    for package in folders(Path::new(UNPACKED)) {
        let found = ["usr/sbin", "usr/bin"].map(|folder| package.join(folder).join(name));
        if let Some(path) = found.into_iter().find(|path| path.is_file()) {
            let mut command = Command::new(path);
            command.env("LD_LIBRARY_PATH", library_path(&package)?);
            return Ok(command);
        }
    }
    bail!("`{name}` is not installed, run deploy/packages test")
}

/// The folder of the unpacked package that contains `name`, unless it is installed.
pub(super) fn unpacked_with(name: &str) -> Option<PathBuf> {
    let command = program(name).ok()?;
    let package = Path::new(command.get_program()).ancestors().nth(3)?.to_owned();
    package.starts_with(UNPACKED).then_some(package)
}

/// The library folders of an unpacked package: `usr/lib` and its subfolders.
fn library_path(package: &Path) -> anyhow::Result<OsString> {
    let libraries = package.join("usr/lib");
    let all = folders(&libraries).into_iter().chain([libraries]);
    env::join_paths(all).context("a folder's name contains a colon")
}

fn folders(parent: &Path) -> Vec<PathBuf> {
    let entries = parent.read_dir().into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

/// True when all these programs are installed. Otherwise reports that the running test is skipped,
/// or fails it when it must not be.
pub fn installed_or_skipped(names: &[&str]) -> bool {
    met_or_skipped(names.iter().try_for_each(|name| program(name).map(drop)))
}
