//! What the storer is told.

use std::{path::PathBuf, time::Duration};

use sekiwake_bus::{Controlling, Grouping, Subscribing};
use sekiwake_record::Kind;
use sekiwake_settings::{ByteSize, Reader, Setting};
use sekiwake_store::LineFormat;

use crate::template::Template;

/// Where the storer takes its records from, and how it keeps them.
#[derive(Clone, Debug)]
pub struct StorerSettings {
    /// The bus.
    pub subscribing: Subscribing,
    /// The control plane.
    pub controlling: Controlling,
    /// Which group it is a member of, and as whom.
    pub grouping: Grouping,
    /// The directory; `None` where nothing is to be stored.
    pub dir: Option<PathBuf>,
    /// The path of a file in it.
    pub template: Template,
    /// How messages stand in a file.
    pub format: LineFormat,
    /// What came is on the disk after this time.
    pub commit: Duration,
    /// The capture time that a file is for, seconds.
    pub rotate: u32,
    /// The size at which a file is followed by another, bytes.
    pub rotate_bytes: u64,
    /// The level of compression of closed files; `None` for none.
    pub compress: Option<i32>,
    /// How long a closed file is kept after the last message that came into it; `None` for ever.
    pub keep: Option<Duration>,
    /// The most that all files together may take, bytes.
    pub max_bytes: Option<u64>,
}

const DAY: Duration = Duration::from_secs(24 * 3600);

impl StorerSettings {
    /// Reads `SEKIWAKE_STORE_*` and the settings of a member of a group.
    pub fn read(reader: &mut Reader) -> StorerSettings {
        let (subscribing, controlling) = (Subscribing::read(reader), Controlling::read(reader));
        let grouping = Grouping::read(reader);
        let rotate: Duration = reader.within("SEKIWAKE_STORE_ROTATE", Duration::from_secs(60)..=DAY);
        // Files begin with the day, too, so that a day's files are a day's messages.
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
            subscribing,
            controlling,
            grouping,
            dir: Some(reader.value("SEKIWAKE_STORE_DIR")),
            template: read_template(reader),
            format: reader.value::<Format>("SEKIWAKE_STORE_FORMAT").0,
            commit: reader.within("SEKIWAKE_STORE_COMMIT", Duration::from_millis(10)..=Duration::from_secs(60)),
            rotate: u32::try_from(rotate.as_secs()).unwrap_or(sekiwake_store::MAX_PERIOD),
            rotate_bytes: reader.within("SEKIWAKE_STORE_ROTATE_BYTES", ByteSize(64 << 10)..=ByteSize(1 << 40)).0,
            compress: i32::try_from(compress).ok().filter(|&level| level > 0),
            keep,
            max_bytes: reader.optional("SEKIWAKE_STORE_MAX_BYTES").map(|size: ByteSize| size.0),
        }
    }
}

fn read_template(reader: &mut Reader) -> Template {
    let text: String = reader.value("SEKIWAKE_STORE_PATH");
    Template::parse(&text).unwrap_or_else(|wrong| {
        reader.mistake("SEKIWAKE_STORE_PATH", &text, &wrong.to_string());
        Template::default()
    })
}

/// How messages stand in a file, by the word of the setting.
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

/// The kind that is stored.
pub(crate) const KIND: Kind = Kind::Syslog;
