//! One manual page.

use std::io::{self, Write};

use clap::Command;
use clap_mangen::{
    Man,
    roff::{Inline, Roff, bold, italic, roman},
};
use sekiwake_runtime::{EXIT_STATUSES, VERSION};
use sekiwake_settings::UNITS;

use crate::binaries::Binary;

/// Where the package has the settings of the services.
const SETTINGS_FILE: &str = "/etc/sekiwake/sekiwake.env";

/// The page of a binary, in the language of man(7).
pub(crate) fn page(binary: &Binary, all: &[Binary], date: &str) -> io::Result<Vec<u8>> {
    let mut command = binary.line.command.clone();
    // Completes the names and usages of subcommands.
    command.build();
    let man = Man::new(command.clone())
        .title(binary.name().to_uppercase())
        .section(binary.section.to_string())
        .date(date)
        .source(format!("Sekiwake {VERSION}"))
        .manual("Sekiwake");
    let mut page = Page::default();
    page.add(|out| man.render_title(out))?;
    // The name is not taken from the title, which is in capitals.
    page.roff(|roff| {
        roff.control("SH", ["NAME"]);
        roff.text([roman(format!("{} - {}", binary.name(), lower_case(binary.line.about.summary)))]);
    })?;
    page.add(|out| man.render_synopsis_section(out))?;
    match binary.description.as_slice() {
        [] => page.add(|out| man.render_description_section(out))?,
        paragraphs => page.roff(|roff| {
            for (index, paragraph) in paragraphs.iter().enumerate() {
                match index {
                    0 => roff.control("SH", ["DESCRIPTION"]),
                    _ => roff.control("PP", []),
                };
                roff.text([roman(*paragraph)]);
            }
        })?,
    }
    page.add(|out| man.render_options_section(out))?;
    add_commands(&mut page, &mut command)?;
    page.roff(|roff| {
        settings(roff, binary);
        exit_statuses(roff, binary);
        signals(roff, binary);
        if binary.is_service() {
            roff.control("SH", ["FILES"]);
            roff.control("TP", []);
            roff.text([italic(SETTINGS_FILE)]);
            roff.text([roman("Settings of the services that systemd starts.")]);
        }
        examples(roff, binary);
        see_also(roff, binary, all);
    })?;
    Ok(page.text.into_bytes())
}

/// The text of a page.
#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    /// Adds what `render` writes.
    fn add(&mut self, render: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
        let mut part = Vec::new();
        render(&mut part)?;
        let part = String::from_utf8(part).map_err(io::Error::other)?;
        // clap_mangen breaks lines around blank lines, where that has no effect.
        let part = part.replace(".br\n\n.br\n", ".sp\n");
        for line in part.lines() {
            // Each part defines the apostrophe, once is enough.
            let is_definition = line.starts_with(".ie \\n(.g .ds Aq") || line.starts_with(".el .ds Aq");
            if !is_definition || self.text.lines().filter(|present| *present == line).count() == 0 {
                self.text += line;
                self.text.push('\n');
            }
        }
        Ok(())
    }

    fn roff(&mut self, write: impl FnOnce(&mut Roff)) -> io::Result<()> {
        let mut roff = Roff::new();
        write(&mut roff);
        self.add(|out| roff.to_writer(out))
    }
}

/// The subcommands with their arguments.
fn add_commands(page: &mut Page, command: &mut Command) -> io::Result<()> {
    let mut is_first = true;
    for subcommand in command.get_subcommands_mut().filter(|subcommand| subcommand.get_name() != "help") {
        let usage = subcommand.render_usage().to_string();
        let about = subcommand.get_about().map(ToString::to_string).unwrap_or_default();
        page.roff(|roff| {
            if std::mem::take(&mut is_first) {
                roff.control("SH", ["COMMANDS"]);
            }
            roff.control("SS", [subcommand.get_name()]);
            roff.text([bold(usage.trim_start_matches("Usage: ").trim())]);
            roff.control("PP", []);
            roff.text([roman(format!("{about}."))]);
        })?;
        let mut options = Vec::new();
        Man::new(subcommand.clone()).render_options_section(&mut options)?;
        let options = String::from_utf8(options).map_err(io::Error::other)?;
        // They belong to the subcommand's section.
        let options: Vec<&str> = options.lines().filter(|line| !line.starts_with(".SH ")).collect();
        page.add(|out| writeln!(out, "{}", options.join("\n")))?;
    }
    Ok(())
}

fn settings(roff: &mut Roff, binary: &Binary) {
    roff.control("SH", ["SETTINGS"]);
    roff.text([
        roman("Settings are environment variables. A variable that is unset or empty has its default. "),
        roman("An unknown variable with the prefix "),
        bold("SEKIWAKE_"),
        roman(" is a mistake; "),
        bold("--check"),
        roman(" prints all mistakes, or the resolved settings."),
    ]);
    let mut group = None;
    for variable in &binary.line.variables {
        if group != Some(variable.group) {
            group = Some(variable.group);
            roff.control("SS", [variable.group.heading()]);
        }
        roff.control("TP", []);
        roff.text([bold(variable.name), roman(" ("), italic(variable.takes), roman(")")]);
        roff.text([roman(format!("{}.", capitalized(variable.about)))]);
        roff.control("br", []);
        roff.text([roman(format!("Default: {}", binary.line.default_of(variable)))]);
    }
    let units: Vec<_> = UNITS
        .iter()
        .filter(|units| binary.line.variables.iter().any(|variable| units.concern(variable)) || binary.section == 1)
        .collect();
    if !units.is_empty() {
        roff.control("SS", ["Units"]);
    }
    for units in units {
        roff.control("TP", []);
        roff.text([italic(units.of)]);
        roff.text([roman(format!("{}.", capitalized(units.form)))]);
    }
}

fn exit_statuses(roff: &mut Roff, binary: &Binary) {
    roff.control("SH", ["EXIT STATUS"]);
    for (status, meaning) in EXIT_STATUSES {
        roff.control("TP", []);
        roff.text([bold(status.to_string())]);
        roff.text([roman(format!("{}.", capitalized(meaning)))]);
    }
    if binary.is_service() {
        roff.control("PP", []);
        roff.text([
            bold("healthcheck"),
            roman(" exits with 0 when the service is alive (ready), and with 1 otherwise."),
        ]);
    }
}

fn signals(roff: &mut Roff, binary: &Binary) {
    roff.control("SH", ["SIGNALS"]);
    roff.control("TP", []);
    roff.text([bold("SIGTERM"), roman(", "), bold("SIGINT")]);
    if !binary.is_service() {
        roff.text([roman("Ends the tool with exit status 0, or with 1 if it has not ended after 2 s.")]);
        return;
    }
    roff.text([
        roman("Stops the service: it delivers what is in flight, for at most "),
        bold("SEKIWAKE_DRAIN"),
        roman(
            ", and exits with 0, or with 1 if that time was not enough. A second signal ends it immediately, with 1.",
        ),
    ]);
    roff.control("TP", []);
    roff.text([bold("SIGHUP")]);
    roff.text([roman(binary.reloads.unwrap_or("Has no effect: the service has no file to read again."))]);
}

fn examples(roff: &mut Roff, binary: &Binary) {
    roff.control("SH", ["EXAMPLES"]);
    for (index, example) in binary.examples.iter().enumerate() {
        if index > 0 {
            roff.control("PP", []);
        }
        roff.text([roman(example.about)]);
        roff.control("PP", []);
        roff.control("RS", ["4"]);
        roff.control("nf", []);
        for line in example.lines.lines() {
            roff.text([roman(line)]);
        }
        roff.control("fi", []);
        roff.control("RE", []);
    }
}

fn see_also(roff: &mut Roff, binary: &Binary, all: &[Binary]) {
    roff.control("SH", ["SEE ALSO"]);
    let mut others: Vec<&Binary> = all.iter().filter(|other| other.name() != binary.name()).collect();
    others.sort_by_key(|other| (other.section, other.name()));
    let mut inlines: Vec<Inline> = Vec::new();
    for other in others {
        if !inlines.is_empty() {
            inlines.push(roman(", "));
        }
        inlines.push(bold(other.name()));
        inlines.push(roman(format!("({})", other.section)));
    }
    roff.text(inlines);
}

fn capitalized(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map(|first| first.to_uppercase().chain(characters).collect()).unwrap_or_default()
}

fn lower_case(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map(|first| first.to_lowercase().chain(characters).collect()).unwrap_or_default()
}
