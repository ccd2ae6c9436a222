//! The flow templates that a group of flows keeps, on request: `templates/` prints them, and a
//! decoder begins with them.

use std::{io::Write, net::IpAddr};

use sekiwake_bus::{Bus, Controlling, HandoffEntry, KnownTemplates};
use sekiwake_decode::Decoder;
use sekiwake_flow::{KnownTemplate, TemplateField, known_templates};
use sekiwake_json::timestamp;
use sekiwake_record::Kind;
use sekiwake_runtime::Stop;
use sekiwake_sys::clock::wall_now_ns;
use serde::Serialize;
use tracing::warn;

/// The topic of templates. The bus does not publish it; they are requested.
pub(crate) const TOPIC: &str = "templates/";

/// One line of output. The names and their order are part of the interface.
#[derive(Serialize)]
struct Line {
    exporter: IpAddr,
    port: Option<u16>,
    domain: u32,
    format: &'static str,
    id: u16,
    options: bool,
    fields: Vec<Field>,
    seen_at: String,
    age_seconds: f64,
}

#[derive(Serialize)]
struct Field {
    element: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    enterprise: Option<u32>,
    length: Option<u16>,
    #[serde(skip_serializing_if = "is_false")]
    scope: bool,
}

/// How the request ended.
pub(crate) struct Printed {
    /// The number of lines.
    pub(crate) lines: u64,
    /// The templates are those that a group keeps. Otherwise a log line says what is missing.
    pub(crate) is_complete: bool,
}

/// Requests the templates, and prints the first `most` of them.
pub(crate) fn print(
    bus: &Bus,
    controlling: &Controlling,
    out: &mut impl Write,
    most: u64,
    stop: &Stop,
) -> anyhow::Result<Printed> {
    Ok(match request(bus, controlling, stop)? {
        Requested::Entries(entries) => Printed { lines: print_entries(&entries, out, most)?, is_complete: true },
        Requested::Stopped => Printed { lines: 0, is_complete: true },
        Requested::Missing => Printed { lines: 0, is_complete: false },
    })
}

/// Requests the templates, so that `decoder` knows them. Without them, it learns templates as
/// exporters repeat them; a log line says so.
pub(crate) fn learn(bus: &Bus, controlling: &Controlling, decoder: &mut Decoder, stop: &Stop) -> anyhow::Result<()> {
    if let Requested::Entries(entries) = request(bus, controlling, stop)? {
        for entry in entries {
            decoder.learn(entry.key.as_bytes(), entry.value.as_bytes(), entry.at_ns);
        }
    }
    Ok(())
}

/// The answer to a request.
enum Requested {
    Entries(Vec<HandoffEntry>),
    Stopped,
    /// A log line says why.
    Missing,
}

fn request(bus: &Bus, controlling: &Controlling, stop: &Stop) -> anyhow::Result<Requested> {
    let known = bus.requests(controlling)?.templates(Kind::Xflow, &|| stop.stopping())?;
    let endpoint = controlling.to_string();
    let missing = match known {
        KnownTemplates::Entries(entries) => return Ok(Requested::Entries(entries)),
        KnownTemplates::Stopped => return Ok(Requested::Stopped),
        KnownTemplates::NoGroup => "no templates: no xflow-forwarder or other group of flows is running",
        KnownTemplates::NoConnection => {
            "no templates: no control connection to the bus (SEKIWAKE_BUS_CONTROL or SEKIWAKE_BUS)"
        }
        KnownTemplates::NoAnswer => {
            "no templates: the bus does not answer requests for them, perhaps an earlier version or a missing permission"
        }
        KnownTemplates::Late => "no templates: not all received within 30 s, perhaps because of other readers",
        KnownTemplates::TooMany => "no templates: a group has more than 32 MiB of them",
    };
    warn!(endpoint, "{missing}");
    Ok(Requested::Missing)
}

fn print_entries(entries: &[HandoffEntry], out: &mut impl Write, most: u64) -> anyhow::Result<u64> {
    let entries = entries.iter().map(|entry| (entry.key.as_bytes(), entry.value.as_bytes(), entry.at_ns));
    let now_ns = wall_now_ns();
    let mut printed = 0;
    for template in known_templates(entries).into_iter().take(usize::try_from(most).unwrap_or(usize::MAX)) {
        serde_json::to_writer(&mut *out, &Line::new(template, now_ns))?;
        out.write_all(b"\n")?;
        printed += 1;
    }
    out.flush()?;
    Ok(printed)
}

impl Line {
    fn new(template: KnownTemplate, now_ns: u64) -> Line {
        let KnownTemplate { exporter, port, domain, format, id, is_options, fields, at_ns } = template;
        Line {
            exporter,
            port,
            domain,
            format: format.as_str(),
            id,
            options: is_options,
            fields: fields.into_iter().map(Field::new).collect(),
            seen_at: timestamp(at_ns),
            // Milliseconds are more than the clocks of two hosts agree on.
            age_seconds: (now_ns.saturating_sub(at_ns) / 1_000_000) as f64 / 1e3,
        }
    }
}

impl Field {
    fn new(field: TemplateField) -> Field {
        let TemplateField { element, enterprise, length, is_scope } = field;
        Field { element, enterprise, length, scope: is_scope }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_false(value: &bool) -> bool {
    !value
}
