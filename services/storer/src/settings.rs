//! The storer's settings.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use sekiwake_archive::{LineFormat, MAX_PERIOD, Period, is_marked_open};
use sekiwake_bus::{Controlling, Grouping, Subscribing};
use sekiwake_record::{Kind, Name, WallTime};
use sekiwake_settings::{ByteSize, Reader, Setting};

use crate::{MaintenanceSettings, template::Template};

/// Where the storer gets its records, and how it stores them.
#[derive(Clone, Debug)]
pub struct StorerSettings {
    /// The bus.
    pub subscribing: Subscribing,
    /// The control plane.
    pub controlling: Controlling,
    /// The group, and the name of this member.
    pub grouping: Grouping,
    /// The kinds that are stored.
    pub kinds: Vec<Kind>,
    /// The store's directory; `None` to store nothing.
    pub dir: Option<PathBuf>,
    /// The path of a file below it.
    pub template: Template,
    /// The format of the lines of syslog. Other kinds are stored as packets.
    pub format: LineFormat,
    /// The commit interval: records are written and fsynced this often.
    pub commit: Duration,
    /// The period of capture time per file, seconds.
    pub rotate: u32,
    /// The size at which a file is rotated, bytes.
    pub rotate_bytes: u64,
    /// The compression level of closed files; `None` for no compression.
    pub compress: Option<i32>,
    /// How long a file is kept after it was last written to; `None`: no limit.
    pub keep: PerKind<Duration>,
    /// The most bytes of all files of a kind together; `None`: no limit.
    pub max_bytes: PerKind<ByteSize>,
}

/// A value for every kind, or for some of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PerKind<T> {
    by_kind: [Option<T>; 3],
    /// Whether it was given without naming kinds.
    is_plain: bool,
}

impl<T> Default for PerKind<T> {
    fn default() -> PerKind<T> {
        PerKind { by_kind: [const { None }; 3], is_plain: false }
    }
}

impl<T: Copy> PerKind<T> {
    /// The value for a kind.
    pub fn of(&self, kind: Kind) -> Option<T> {
        self.by_kind[kind.index()]
    }
}

/// `90d` for every kind, or `syslog=90d,xflow=2d`.
impl<T: Setting + Copy> Setting for PerKind<T> {
    fn takes() -> &'static str {
        T::takes()
    }

    fn parse(text: &str) -> Result<PerKind<T>, String> {
        if !text.contains('=') {
            return Ok(PerKind { by_kind: [Some(T::parse(text)?); 3], is_plain: true });
        }
        let mut values = PerKind::default();
        for item in text.split(',') {
            let wrong = |why: String| match why.is_empty() {
                true => format!("in {:?}", item.trim()),
                false => format!("in {:?}: {why}", item.trim()),
            };
            let (kind, value) = item.trim().split_once('=').ok_or_else(|| wrong("a kind is missing".to_owned()))?;
            let kind = Kind::from_name(kind.trim())
                .ok_or_else(|| wrong("expected syslog, xflow or snmptrap before =".to_owned()))?;
            let value = T::parse(value.trim()).map_err(wrong)?;
            if values.by_kind[kind.index()].replace(value).is_some() {
                return Err(format!("{kind} is listed twice"));
            }
        }
        Ok(values)
    }
}

/// Kinds by name, or all of them.
#[derive(Clone, Debug)]
struct Kinds(Vec<Kind>);

impl Setting for Kinds {
    fn takes() -> &'static str {
        "syslog, xflow or snmptrap, or several separated by commas, or all"
    }

    fn parse(text: &str) -> Result<Kinds, String> {
        if text == "all" {
            return Ok(Kinds(Kind::ALL.to_vec()));
        }
        let mut kinds = Vec::new();
        for name in text.split(',').map(str::trim) {
            let kind = Kind::from_name(name).ok_or_else(|| format!("{name:?} is not a kind"))?;
            if kinds.contains(&kind) {
                return Err(format!("{kind} is listed twice"));
            }
            kinds.push(kind);
        }
        Ok(Kinds(kinds))
    }
}

const DAY: Duration = Duration::from_secs(24 * 3600);

impl StorerSettings {
    /// Reads `SEKIWAKE_STORE_*` and the settings of a member of a group.
    pub fn read(reader: &mut Reader) -> StorerSettings {
        let subscribing = Subscribing::read(reader);
        let controlling = Controlling::read(reader);
        let grouping = Grouping::read(reader);
        let rotate: Duration = reader.within("SEKIWAKE_STORE_ROTATE", Duration::from_secs(60)..=DAY);
        // Periods must not cross midnight, so that a day's files hold exactly that day's messages.
        if rotate.subsec_nanos() != 0 || !DAY.as_secs().is_multiple_of(rotate.as_secs()) {
            let shown = sekiwake_settings::show_duration(rotate);
            reader.mistake("SEKIWAKE_STORE_ROTATE", &shown, "a duration that divides a day, such as 10m, 1h or 1d");
        }
        let compress: u32 = reader.within("SEKIWAKE_STORE_COMPRESS", 0..=19);
        let keep: PerKind<Duration> = reader.optional("SEKIWAKE_STORE_KEEP").unwrap_or_default();
        if let Some(keep) = keep.by_kind.into_iter().flatten().find(|&keep| keep < Duration::from_secs(60)) {
            reader.mistake("SEKIWAKE_STORE_KEEP", &sekiwake_settings::show_duration(keep), "a duration of at least 1m");
        }
        let kinds = reader.value::<Kinds>("SEKIWAKE_STORE_KINDS").0;
        StorerSettings {
            max_bytes: read_max_bytes(reader, &kinds),
            dir: Some(reader.value("SEKIWAKE_STORE_DIR")),
            template: read_template(reader, &grouping.label, &kinds),
            kinds,
            subscribing,
            controlling,
            grouping,
            format: reader.value::<Format>("SEKIWAKE_STORE_FORMAT").0,
            commit: reader.within("SEKIWAKE_STORE_COMMIT", Duration::from_millis(10)..=Duration::from_secs(60)),
            rotate: u32::try_from(rotate.as_secs()).unwrap_or(MAX_PERIOD),
            rotate_bytes: reader.within("SEKIWAKE_STORE_ROTATE_BYTES", ByteSize(64 << 10)..=ByteSize(1 << 40)).0,
            compress: i32::try_from(compress).ok().filter(|&level| level > 0),
            keep,
        }
    }
}

impl StorerSettings {
    /// How files of a kind are maintained.
    pub(crate) fn maintenance(&self, kind: Kind) -> MaintenanceSettings {
        MaintenanceSettings {
            member: self.grouping.label.clone(),
            kind,
            is_stored: self.kinds.contains(&kind),
            compress: self.compress,
            keep: self.keep.of(kind),
            max_bytes: self.max_bytes.of(kind).map(|bytes| bytes.0),
        }
    }
}

/// With several kinds a total would let one of them displace the others.
fn read_max_bytes(reader: &mut Reader, kinds: &[Kind]) -> PerKind<ByteSize> {
    let max_bytes: Option<PerKind<ByteSize>> = reader.optional("SEKIWAKE_STORE_MAX_BYTES");
    let Some(max_bytes) = max_bytes else { return PerKind::default() };
    if max_bytes.is_plain {
        let mut own = PerKind::default();
        match kinds {
            // Not of kinds that were stored before.
            [kind] => own.by_kind[kind.index()] = max_bytes.of(*kind),
            _ => {
                let shown = max_bytes.of(Kind::Syslog).unwrap_or_default().to_string();
                let expected = "a size per kind, such as syslog=100GiB,xflow=400GiB,snmptrap=1GiB, because \
                                SEKIWAKE_STORE_KINDS names several";
                reader.mistake("SEKIWAKE_STORE_MAX_BYTES", &shown, expected);
            }
        }
        return own;
    }
    if let Some(missing) = kinds.iter().find(|kind| max_bytes.of(**kind).is_none()) {
        let expected = format!("a size for {missing}, too, because SEKIWAKE_STORE_KINDS names it");
        reader.mistake("SEKIWAKE_STORE_MAX_BYTES", "", &expected);
    }
    max_bytes
}

fn read_template(reader: &mut Reader, member: &Name, kinds: &[Kind]) -> Template {
    let text: String = reader.value("SEKIWAKE_STORE_PATH");
    let template = Template::parse(&text).unwrap_or_else(|wrong| {
        reader.mistake("SEKIWAKE_STORE_PATH", &text, &wrong.to_string());
        Template::default()
    });
    if kinds.len() > 1 && !template.has_kind() {
        reader.mistake("SEKIWAKE_STORE_PATH", &text, "a path with {kind}, because SEKIWAKE_STORE_KINDS names several");
    }
    let period = Period::of(WallTime::EPOCH, MAX_PERIOD);
    let example = template.path(period, IpAddr::from([0; 4]), Kind::Syslog, member.as_str());
    if is_marked_open(&example) {
        reader.mistake("SEKIWAKE_STORE_PATH", &text, "a path that does not end in .open, which marks open files");
    }
    template
}

/// The format of the lines, as the setting names it.
struct Format(LineFormat);

impl Setting for Format {
    fn takes() -> &'static str {
        "json or text"
    }

    fn parse(text: &str) -> Result<Format, String> {
        match text {
            "json" => Ok(Format(LineFormat::Json)),
            "text" => Ok(Format(LineFormat::Text)),
            _ => Err(String::new()),
        }
    }
}

#[cfg(test)]
mod tests {
    use sekiwake_settings::Environment;

    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<StorerSettings, String> {
        let environment = Environment::from_pairs(pairs.iter().copied());
        sekiwake_settings::read(&environment, StorerSettings::read).map_err(|mistakes| mistakes.to_string())
    }

    #[test]
    fn limits_are_for_every_kind_or_for_each() {
        let settings = read(&[("SEKIWAKE_STORE_MAX_BYTES", "1GiB"), ("SEKIWAKE_STORE_KEEP", "2d")]).unwrap();
        assert_eq!(settings.kinds, [Kind::Syslog]);
        assert_eq!(Kind::ALL.map(|kind| settings.max_bytes.of(kind)), [Some(ByteSize(1 << 30)), None, None]);
        assert_eq!(Kind::ALL.map(|kind| settings.keep.of(kind)), [Some(DAY * 2); 3]);
        let all = ("SEKIWAKE_STORE_KINDS", "all");
        let each = ("SEKIWAKE_STORE_MAX_BYTES", "syslog=1GiB, xflow=2GiB,snmptrap=3GiB");
        let settings = read(&[all, each, ("SEKIWAKE_STORE_KEEP", "xflow=2d")]).unwrap();
        assert_eq!(settings.kinds, Kind::ALL);
        let sizes = Kind::ALL.map(|kind| settings.max_bytes.of(kind).unwrap().0 >> 30);
        assert_eq!(
            (sizes, settings.keep.of(Kind::Syslog), settings.keep.of(Kind::Xflow)),
            ([1, 2, 3], None, Some(DAY * 2))
        );
    }

    #[test]
    fn several_kinds_need_a_limit_and_a_path_each() {
        let several = ("SEKIWAKE_STORE_KINDS", "syslog,xflow");
        for (name, value, expected) in [
            ("SEKIWAKE_STORE_MAX_BYTES", "1GiB", "a size per kind"),
            ("SEKIWAKE_STORE_MAX_BYTES", "syslog=1GiB", "a size for xflow, too"),
            ("SEKIWAKE_STORE_MAX_BYTES", "syslog=1GiB,flows=1GiB", "expected syslog, xflow or snmptrap"),
            ("SEKIWAKE_STORE_MAX_BYTES", "syslog=1GiB,syslog=2GiB", "listed twice"),
            ("SEKIWAKE_STORE_MAX_BYTES", "syslog=much,xflow=1GiB", "syslog=much"),
            ("SEKIWAKE_STORE_KEEP", "xflow=1s", "at least 1m"),
            ("SEKIWAKE_STORE_PATH", "{date}/all", "{kind}"),
        ] {
            let error = read(&[several, (name, value)]).unwrap_err();
            assert!(error.contains(name) && error.contains(expected), "{name}={value}: {error}");
        }
        for kinds in ["flows", "syslog,syslog", "syslog,,xflow", "all,xflow"] {
            assert!(read(&[("SEKIWAKE_STORE_KINDS", kinds)]).is_err(), "{kinds}");
        }
        assert!(read(&[("SEKIWAKE_STORE_KINDS", "xflow"), ("SEKIWAKE_STORE_PATH", "{date}/flows")]).is_ok());
    }
}
