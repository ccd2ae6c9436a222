//! Manual pages and shell completions of every shipped binary, from their command lines and the
//! table of settings.
//!
//! It is a crate of its own, so that no shipped binary contains a generator.

mod binaries;
mod page;

use std::{fs, path::Path};

use anyhow::Context;
use clap_complete::Shell;

pub use binaries::{Binary, binaries};

/// Writes `manual/NAME.SECTION`, `completions/bash/NAME`, `completions/zsh/_NAME` and
/// `completions/fish/NAME.fish` below `folder`. `date` is that of the pages, as `2026-01-31`.
///
/// # Errors
/// A file cannot be written.
pub fn write_all(folder: &Path, date: &str) -> anyhow::Result<()> {
    let binaries = binaries();
    for binary in &binaries {
        let page = page::page(binary, &binaries, date)?;
        write(&folder.join("manual").join(format!("{}.{}", binary.name(), binary.section)), &page)?;
        for (shell, path) in [
            (Shell::Bash, format!("bash/{}", binary.name())),
            (Shell::Zsh, format!("zsh/_{}", binary.name())),
            (Shell::Fish, format!("fish/{}.fish", binary.name())),
        ] {
            let text = completions(binary, shell);
            write(&folder.join("completions").join(path), text.as_bytes())?;
        }
    }
    Ok(())
}

fn completions(binary: &Binary, shell: Shell) -> String {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut binary.line.command.clone(), binary.name(), &mut text);
    let text = String::from_utf8_lossy(&text);
    // For bash, clap_complete takes the hyphens in a name for the limits of subcommands in some
    // places and not in others, so that it would complete nothing behind a subcommand.
    let wrong = format!("{}__subcmd__", binary.name().replace('-', "__subcmd__"));
    let right = format!("{}__subcmd__", binary.name().replace('-', "__"));
    text.replace(&wrong, &right)
}

fn write(path: &Path, contents: &[u8]) -> anyhow::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let written = fs::create_dir_all(folder).and_then(|()| fs::write(path, contents));
    written.with_context(|| format!("cannot write {}", path.display()))
}
