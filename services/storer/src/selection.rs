//! The options that say which stored datagrams `replay` and `export` read.

use std::{ffi::OsString, os::unix::ffi::OsStrExt, path::PathBuf};

use sekiwake_archive::{Query, Selection, Templates};
use sekiwake_record::{Kind, WallTime};
use sekiwake_settings::{Environment, Reader};
use sekiwake_sys::clock::wall_now_ns;

/// The filters, which are those of `search`, and the directories.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Filters {
    /// Directory to read; if given several times, the stores of several storers [default: that of
    /// SEKIWAKE_STORE_DIR]
    #[arg(long)]
    dir: Vec<PathBuf>,
    /// Captured at or after this time: 2026-01-02T03:04:05Z, 2026-01-02, now, -15m, or seconds
    /// since 1970
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    from: Option<String>,
    /// Captured before this time, in the same forms
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    to: Option<String>,
    /// Of these kinds: syslog, xflow or snmptrap, separated by commas, or all [default: syslog]
    #[arg(long, value_name = "KINDS")]
    kind: Vec<String>,
    /// Sent by these addresses or prefixes, separated by commas
    #[arg(long, value_name = "PREFIX")]
    source: Vec<String>,
    /// Of these facilities: keywords such as local7, or 0 to 23, separated by commas
    #[arg(long, value_name = "FACILITIES")]
    facility: Vec<String>,
    /// Of this severity or more severe: a keyword such as err, or 0 to 7
    #[arg(long)]
    severity: Option<String>,
    /// Of these formats, such as rfc5424 or netflow9, separated by commas
    #[arg(long)]
    format: Vec<String>,
    /// Containing these bytes, ignoring the case of ASCII letters; if given several times, all of
    /// them
    #[arg(long)]
    text: Vec<OsString>,
}

impl Filters {
    /// What they select, with the templates that flows need.
    ///
    /// # Errors
    /// An invalid filter or setting.
    pub(crate) fn selection(&self, environment: &Environment) -> anyhow::Result<Selection> {
        let read = |reader: &mut Reader| reader.value::<PathBuf>("SEKIWAKE_STORE_DIR");
        let configured = sekiwake_settings::read(environment, read)?;
        let query = Query::parse(WallTime::from_nanos(wall_now_ns()), self.pairs())?;
        let dirs = if self.dir.is_empty() { vec![configured] } else { self.dir.clone() };
        Ok(Selection { dirs, query, templates: Templates::All })
    }

    /// As names and values of a URL query.
    fn pairs(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let single = [("from", &self.from), ("to", &self.to), ("severity", &self.severity)];
        let single = single.into_iter().filter_map(|(name, value)| Some((name, value.as_ref()?.as_bytes())));
        let lists =
            [("kind", &self.kind), ("source", &self.source), ("facility", &self.facility), ("format", &self.format)];
        let lists =
            lists.into_iter().flat_map(|(name, values)| values.iter().map(move |value| (name, value.as_bytes())));
        single.chain(lists).chain(self.text.iter().map(|text| ("text", text.as_bytes())))
    }
}

/// The kinds that a query selects.
pub(crate) fn kinds_of(query: &Query) -> impl Iterator<Item = Kind> {
    Kind::ALL.into_iter().filter(|&kind| query.has_kind(kind))
}
