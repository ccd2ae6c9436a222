//! The command line that all binaries have in common.

use clap::{Arg, ArgAction, ArgMatches, Command};
use sekiwake_settings::{Reader, VARIABLES, Variable, variable};

use crate::{About, VERSION};

/// How wide `--help` is, at most.
const COLUMNS: usize = 100;

/// Where the text begins that explains a variable.
const INDENT: usize = 34;

/// `--help` (with the variables that these services read), `--version`, `--check`.
pub(crate) fn command(about: &About, services: &[&str]) -> Command {
    let revision = option_env!("SEKIWAKE_REVISION").map(|revision| format!("{revision}, ")).unwrap_or_default();
    let platform = format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS);
    Command::new(about.binary)
        .about(about.summary)
        .version(format!("{VERSION} ({revision}{platform})"))
        .max_term_width(COLUMNS)
        .after_help(help(about, services))
        .arg(
            Arg::new("check")
                .long("check")
                .action(ArgAction::SetTrue)
                .help("Print the resolved settings, or all that is wrong with them, and exit"),
        )
}

pub(crate) fn wants_check(matches: &ArgMatches) -> bool {
    matches.get_flag("check")
}

/// The resolved settings, one a line, in the form of an environment file; what is no variable follows as comments.
pub(crate) fn resolved(reader: &Reader, described: Vec<(String, String)>) -> String {
    let (replaced, comments): (Vec<_>, Vec<_>) = described.into_iter().partition(|(name, _)| variable(name).is_some());
    let mut read: Vec<(&str, &str)> = reader.resolved().collect();
    read.sort_by_key(|(name, _)| VARIABLES.iter().position(|variable| variable.name == *name));
    let mut text = String::new();
    for (name, value) in read {
        let value = replaced.iter().find(|(replaced, _)| replaced == name).map_or(value, |(_, value)| value);
        // A list of destinations may come on many lines; white space separates it all the same.
        let value = value.split_whitespace().collect::<Vec<_>>().join(" ");
        text += &format!("{name}={value}\n");
    }
    for (name, value) in comments {
        text += &format!("# {name}: {value}\n");
    }
    text
}

/// The table of variables, by group.
fn help(about: &About, services: &[&str]) -> String {
    let mut text = "Settings are environment variables:\n".to_owned();
    let mut group = None;
    for variable in VARIABLES.iter().filter(|variable| services.iter().any(|service| variable.concerns(service))) {
        if group != Some(variable.group) {
            group = Some(variable.group);
            text += &format!("\n{}:\n", variable.group.heading());
        }
        text += &entry(variable, &default_of(variable, about));
    }
    text + "\nExit status: 0 done or told to stop, 1 failed, 2 a mistake in the settings or on the command line."
}

fn default_of(variable: &Variable, about: &About) -> String {
    match variable.name {
        "SEKIWAKE_ADMIN" => format!("127.0.0.1:{}", about.admin_port),
        _ => variable.default.text().to_owned(),
    }
}

/// `  NAME    about [takes; default: text]`, wrapped.
fn entry(variable: &Variable, default: &str) -> String {
    let words = format!("{} [{}; default: {default}]", variable.about, variable.takes);
    let mut text = format!("  {:width$}", variable.name, width = INDENT - 2);
    let mut column = INDENT;
    for word in words.split(' ') {
        if column > INDENT && column + 1 + word.len() > COLUMNS {
            text += &format!("\n{:INDENT$}", "");
            column = INDENT;
        } else if column > INDENT {
            text.push(' ');
            column += 1;
        }
        text += word;
        column += word.len();
    }
    text.push('\n');
    text
}
