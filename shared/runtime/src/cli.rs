//! The command line that all binaries share.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Arg, ArgAction, ArgMatches, Command};
use sekiwake_settings::{Environment, Reader, UNITS, VARIABLES, Variable, variable};

use crate::{About, FileContents, VERSION};

/// The width of `--help`.
const COLUMNS: usize = 100;

/// The spaces before the name of a variable, and between the longest name and the descriptions.
const GAP: usize = 2;

/// The name of the option.
const ENV_FILE: &str = "env-file";

/// An environment file of more bytes is not read.
const MAX_ENV_FILE_BYTES: u64 = 1 << 20;

/// The exit statuses and their meanings, for help and manual pages.
pub const EXIT_STATUSES: [(u8, &str); 3] =
    [(0, "finished or stopped"), (1, "failed"), (2, "mistake in the settings or on the command line")];

/// The command line of a binary, and what its documentation says besides.
#[derive(Clone, Debug)]
pub struct CommandLine {
    /// The names of the binary.
    pub about: About,
    /// Its options, arguments and subcommands. The help behind them lists the variables.
    pub command: Command,
    /// The variables that it reads.
    pub variables: Vec<&'static Variable>,
}

impl CommandLine {
    /// `--help`, `--version`, `--check` and `--env-file`, and the variables.
    pub(crate) fn new(about: About, reads: impl Fn(&Variable) -> bool) -> CommandLine {
        let variables: Vec<&'static Variable> = VARIABLES.iter().filter(|variable| reads(variable)).collect();
        CommandLine { command: command(&about, &variables), about, variables }
    }

    /// The default of a variable, as text.
    pub fn default_of(&self, variable: &Variable) -> String {
        default_of(variable, &self.about)
    }
}

fn command(about: &About, variables: &[&Variable]) -> Command {
    let revision = option_env!("SEKIWAKE_REVISION").map(|revision| format!("{revision}, ")).unwrap_or_default();
    let platform = format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS);
    Command::new(about.binary)
        .about(about.summary)
        .version(format!("{VERSION} ({revision}{platform})"))
        .max_term_width(COLUMNS)
        .after_help(help(about, variables))
        .arg(
            Arg::new("check")
                .long("check")
                .action(ArgAction::SetTrue)
                .help("Print the resolved settings, or all mistakes in them, and exit"),
        )
        .arg(
            env_file_option().requires("check").help(
                "Check with this file too, in the syntax of systemd's EnvironmentFile; it overrides the environment",
            ),
        )
        .arg(
            Arg::new("no-files").long("no-files").action(ArgAction::SetTrue).requires("check").help(
                "Check without the files (destinations, keys, certificates) and the NATS servers that settings name",
            ),
        )
}

/// `--env-file`, without its help.
fn env_file_option() -> Arg {
    Arg::new(ENV_FILE).long(ENV_FILE).value_name("FILE").value_parser(clap::value_parser!(PathBuf))
}

/// `--env-file` of a subcommand.
pub(crate) fn env_file_of_subcommand() -> Arg {
    env_file_option()
        .help("Read this file too, in the syntax of systemd's EnvironmentFile; it overrides the environment")
}

/// Whether the settings are to be checked only.
pub(crate) fn wants_check(matches: &ArgMatches) -> bool {
    matches.get_flag("check")
}

/// The environment of the process, with the file of `--env-file`, if the command line has it.
///
/// # Errors
/// The file cannot be read.
pub(crate) fn environment(matches: &ArgMatches) -> anyhow::Result<Environment> {
    let environment = Environment::from_process();
    // Subcommands without the option do not know its name.
    let Ok(Some(path)) = matches.try_get_one::<PathBuf>(ENV_FILE) else { return Ok(environment) };
    let contents = read_env_file(path)?;
    Ok(environment.with_file(&path.to_string_lossy(), &contents))
}

fn read_env_file(path: &Path) -> anyhow::Result<Vec<u8>> {
    let contents = FileContents::read(path, MAX_ENV_FILE_BYTES);
    Ok(contents.with_context(|| format!("cannot read {} (--env-file)", path.display()))?.bytes)
}

/// Whether the files that settings name are to be read.
pub(crate) fn wants_files(matches: &ArgMatches) -> bool {
    !matches.get_flag("no-files")
}

/// The resolved settings as an environment file, one per line. Names that are not variables follow
/// as comments.
pub(crate) fn resolved(reader: &Reader, described: Vec<(String, String)>) -> String {
    let (replaced, comments): (Vec<_>, Vec<_>) = described.into_iter().partition(|(name, _)| variable(name).is_some());
    let mut settings: Vec<(&str, &str)> = reader.resolved().collect();
    settings.sort_by_key(|(name, _)| VARIABLES.iter().position(|variable| variable.name == *name));
    let mut text = String::new();
    for (name, value) in settings {
        let value = replaced.iter().find(|(replaced, _)| replaced == name).map_or(value, |(_, value)| value);
        // A list of destinations may have many lines; any white space separates it.
        let value = value.split_whitespace().collect::<Vec<_>>().join(" ");
        text += &format!("{name}={value}\n");
    }
    for (name, value) in comments {
        text += &format!("# {name}: {value}\n");
    }
    text
}

/// The table of variables, by group.
fn help(about: &About, variables: &[&Variable]) -> String {
    let mut text = "Settings are environment variables:\n".to_owned();
    let longest = variables.iter().map(|variable| variable.name.len()).max().unwrap_or(0);
    let indent = GAP + longest + GAP;
    let mut group = None;
    for variable in variables {
        if group != Some(variable.group) {
            group = Some(variable.group);
            text += &format!("\n{}:\n", variable.group.heading());
        }
        text += &entry(variable, &default_of(variable, about), indent);
    }
    text.push('\n');
    for units in UNITS.iter().filter(|units| variables.iter().any(|variable| units.concern(variable))) {
        text += &format!("A {} is {}.\n", units.of, units.form);
    }
    let statuses = EXIT_STATUSES.map(|(status, meaning)| format!("{status} {meaning}")).join(", ");
    text + &format!("Exit status: {statuses}.")
}

fn default_of(variable: &Variable, about: &About) -> String {
    match variable.name {
        "SEKIWAKE_ADMIN" => format!("127.0.0.1:{}", about.admin_port),
        _ => variable.default.text().to_owned(),
    }
}

/// `  NAME    about [takes; default: text]`, wrapped, with descriptions from column `indent` on.
fn entry(variable: &Variable, default: &str, indent: usize) -> String {
    let words = format!("{} [{}; default: {default}]", variable.about, variable.takes);
    let mut text = format!("{:GAP$}{:width$}", "", variable.name, width = indent - GAP);
    let mut column = indent;
    for word in words.split(' ') {
        if column > indent && column + 1 + word.len() > COLUMNS {
            text += &format!("\n{:indent$}", "");
            column = indent;
        } else if column > indent {
            text.push(' ');
            column += 1;
        }
        text += word;
        column += word.len();
    }
    text.push('\n');
    text
}
