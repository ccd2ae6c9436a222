//! The storer's settings.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use sekiwake_archive::{LineFormat, MAX_PERIOD, Period, is_marked_open};
use sekiwake_bus::{Controlling, Grouping, Subscribing};
use sekiwake_record::{Kind, Name, WallTime};
use sekiwake_settings::{ByteSize, Reader, Setting};

use crate::template::Template;

/// Where the storer gets its records, and how it stores them.
#[derive(Clone, Debug)]
pub struct StorerSettings {
    /// The bus.
    pub subscribing: Subscribing,
    /// The control plane.
    pub controlling: Controlling,
    /// The group, and the name of this member.
    pub grouping: Grouping,
    /// The store's directory; `None` to store nothing.
    pub dir: Option<PathBuf>,
    /// The path of a file below it.
    pub template: Template,
    /// The format of the lines.
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
    pub keep: Option<Duration>,
    /// The most bytes of all files together; `None`: no limit.
    pub max_bytes: Option<u64>,
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
        let keep: Option<Duration> = reader.optional("SEKIWAKE_STORE_KEEP");
        if let Some(keep) = keep.filter(|&keep| keep < Duration::from_secs(60)) {
            reader.mistake("SEKIWAKE_STORE_KEEP", &sekiwake_settings::show_duration(keep), "a duration of at least 1m");
        }
        StorerSettings {
            dir: Some(reader.value("SEKIWAKE_STORE_DIR")),
            template: read_template(reader, &grouping.label),
            subscribing,
            controlling,
            grouping,
            format: reader.value::<Format>("SEKIWAKE_STORE_FORMAT").0,
            commit: reader.within("SEKIWAKE_STORE_COMMIT", Duration::from_millis(10)..=Duration::from_secs(60)),
            rotate: u32::try_from(rotate.as_secs()).unwrap_or(MAX_PERIOD),
            rotate_bytes: reader.within("SEKIWAKE_STORE_ROTATE_BYTES", ByteSize(64 << 10)..=ByteSize(1 << 40)).0,
            compress: i32::try_from(compress).ok().filter(|&level| level > 0),
            keep,
            max_bytes: reader.optional("SEKIWAKE_STORE_MAX_BYTES").map(|size: ByteSize| size.0),
        }
    }
}

fn read_template(reader: &mut Reader, member: &Name) -> Template {
    let text: String = reader.value("SEKIWAKE_STORE_PATH");
    let template = Template::parse(&text).unwrap_or_else(|wrong| {
        reader.mistake("SEKIWAKE_STORE_PATH", &text, &wrong.to_string());
        Template::default()
    });
    let example = template.path(Period::of(WallTime::EPOCH, MAX_PERIOD), IpAddr::from([0; 4]), KIND, member.as_str());
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

/// The kind of records stored.
pub(crate) const KIND: Kind = Kind::Syslog;
