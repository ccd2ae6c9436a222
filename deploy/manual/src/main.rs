//! `sekiwake-manual FOLDER`: writes `FOLDER/manual` and `FOLDER/completions`.

use std::path::PathBuf;

use clap::Parser;

/// Writes manual pages and shell completions of every binary.
#[derive(Parser)]
struct Arguments {
    /// Date of the pages
    #[arg(long, value_name = "YYYY-MM-DD")]
    date: String,
    /// Folder for `manual` and `completions`
    folder: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let Arguments { date, folder } = Arguments::parse();
    sekiwake_manual::write_all(&folder, &date)
}
