//! The settings shared by all services on the bus: how they reach it, and their group.

use std::{fmt, ops::RangeInclusive, sync::Arc, time::Duration};

use sekiwake_record::{Name, NameError};
use sekiwake_runtime::{Finding, host_name};
use sekiwake_settings::{ByteSize, Reader, Setting as _};

use crate::{
    Deduplicate,
    jetstream::JetStreamSettings,
    zeromq::{Endpoints, INPROC_CONTROL, INPROC_PUBLISH, INPROC_SUBSCRIBE},
};

/// The longest name of a group, bytes, without the service's name before it.
const MAX_GROUP_NAME: usize = 40;

/// How a service reaches the bus to publish.
#[derive(Clone, Debug)]
pub struct Publishing {
    pub(crate) zeromq: Endpoints,
    /// The other bus, if that is set.
    pub(crate) jetstream: Option<Arc<JetStreamSettings>>,
}

/// How a service reaches the bus to receive.
#[derive(Clone, Debug)]
pub struct Subscribing {
    pub(crate) zeromq: Endpoints,
    /// The other bus, if that is set.
    pub(crate) jetstream: Option<Arc<JetStreamSettings>>,
}

/// How a service reaches what coordinates groups and answers requests.
#[derive(Clone, Debug)]
pub struct Controlling {
    pub(crate) zeromq: Endpoints,
    /// The other bus, if that is set.
    pub(crate) jetstream: Option<Arc<JetStreamSettings>>,
}

/// A subscriber's group, and its name in it.
#[derive(Clone, Debug)]
pub struct Grouping {
    /// The group: replicas of a service with the same group share the work.
    pub name: Name,
    /// The member's name, for logs and `/status`.
    pub label: Name,
    /// How far back a new group starts.
    pub start_age: Duration,
    /// How the group delivers once what several captures have seen.
    pub deduplicate: Option<Deduplicate>,
}

impl Publishing {
    /// Reads `SEKIWAKE_BUS_PUBLISH` and the client's keys, or `SEKIWAKE_BUS` and what belongs to
    /// it.
    pub fn read(reader: &mut Reader) -> Publishing {
        match JetStreamSettings::read(reader) {
            Some(settings) => Publishing { zeromq: Endpoints::none(), jetstream: Some(settings) },
            None => Endpoints::read(reader, "SEKIWAKE_BUS_PUBLISH").into(),
        }
    }

    /// Whether existing streams of the servers promise what a capture needs.
    pub fn examine(&self) -> Vec<Finding> {
        #[cfg(feature = "jetstream")]
        if let Some(servers) = &self.jetstream {
            return crate::jetstream::examine_publisher(servers);
        }
        Vec::new()
    }

    /// The bus within this process.
    pub fn in_process() -> Publishing {
        Endpoints::inside(INPROC_PUBLISH).into()
    }

    /// The name of a readiness condition that waits for the bus, with its endpoints.
    pub fn readiness(&self, condition: &str) -> String {
        format!("{condition} ({})", shown(&self.zeromq, self.jetstream.as_deref()))
    }

    /// Whether a message costs the servers of this bus so much that open batches always wait for
    /// their tick, instead of leaving with the kernel's blocks, which fill sooner at high rates.
    pub fn messages_are_costly(&self) -> bool {
        self.jetstream.is_some()
    }
}

impl Subscribing {
    /// Reads `SEKIWAKE_BUS_SUBSCRIBE` and the client's keys, or `SEKIWAKE_BUS` and what belongs to
    /// it.
    pub fn read(reader: &mut Reader) -> Subscribing {
        match JetStreamSettings::read(reader) {
            Some(settings) => Subscribing { zeromq: Endpoints::none(), jetstream: Some(settings) },
            None => Endpoints::read(reader, "SEKIWAKE_BUS_SUBSCRIBE").into(),
        }
    }

    /// The bus within this process.
    pub fn in_process() -> Subscribing {
        Endpoints::inside(INPROC_SUBSCRIBE).into()
    }

    /// The name of a readiness condition that waits for the bus, with its endpoints.
    pub fn readiness(&self, condition: &str) -> String {
        format!("{condition} ({})", shown(&self.zeromq, self.jetstream.as_deref()))
    }
}

impl Controlling {
    /// Reads `SEKIWAKE_BUS_CONTROL` and the client's keys, or `SEKIWAKE_BUS` and what belongs to
    /// it.
    pub fn read(reader: &mut Reader) -> Controlling {
        match JetStreamSettings::read(reader) {
            Some(settings) => Controlling { zeromq: Endpoints::none(), jetstream: Some(settings) },
            None => Endpoints::read(reader, "SEKIWAKE_BUS_CONTROL").into(),
        }
    }

    /// The bus within this process.
    pub fn in_process() -> Controlling {
        Endpoints::inside(INPROC_CONTROL).into()
    }

    /// The name of a readiness condition that waits for the coordinator, with its endpoints.
    pub fn readiness(&self, condition: &str) -> String {
        format!("{condition} ({})", shown(&self.zeromq, self.jetstream.as_deref()))
    }
}

/// The endpoints, for messages.
impl fmt::Display for Controlling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&shown(&self.zeromq, self.jetstream.as_deref()))
    }
}

/// The endpoints of the bus that is set, for messages.
fn shown(zeromq: &Endpoints, jetstream: Option<&JetStreamSettings>) -> String {
    jetstream.map_or_else(|| zeromq.to_string(), JetStreamSettings::servers)
}

impl Grouping {
    /// Reads `SEKIWAKE_GROUP`, `SEKIWAKE_MEMBER`, `SEKIWAKE_GROUP_START`, `SEKIWAKE_DEDUPLICATE`
    /// and `SEKIWAKE_DEDUPLICATE_BYTES`.
    pub fn read(reader: &mut Reader) -> Grouping {
        let takes = "1 to 40 letters, digits, dots, hyphens or underscores";
        let group: String = reader.value("SEKIWAKE_GROUP");
        let name = Name::new(&group).ok().filter(|name| name.as_str().len() <= MAX_GROUP_NAME);
        if name.is_none() {
            reader.mistake("SEKIWAKE_GROUP", &group, takes);
        }
        let member: Option<String> = reader.optional("SEKIWAKE_MEMBER");
        let label = member.as_deref().map_or_else(|| Ok(host_name()), Name::new);
        if label.is_err() {
            let takes = "1 to 63 letters, digits, dots, hyphens or underscores";
            reader.mistake("SEKIWAKE_MEMBER", member.as_deref().unwrap_or_default(), takes);
        }
        Grouping {
            name: name.unwrap_or_else(host_name),
            label: label.unwrap_or_else(|_| host_name()),
            start_age: reader.within("SEKIWAKE_GROUP_START", Duration::ZERO..=Duration::from_secs(24 * 3600)),
            deduplicate: deduplicate(reader),
        }
    }

    /// The group of this service: `<service>.<name>`, so that all services can share one
    /// environment.
    ///
    /// # Errors
    /// A service name that is too long.
    pub fn group(&self, service: &str) -> Result<Name, NameError> {
        Name::new(&format!("{service}.{}", self.name))
    }
}

fn deduplicate(reader: &mut Reader) -> Option<Deduplicate> {
    const NAME: &str = "SEKIWAKE_DEDUPLICATE";
    const RANGE: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(5);
    const BYTES: RangeInclusive<ByteSize> = ByteSize(1 << 20)..=ByteSize(64 << 30);
    let ByteSize(max_bytes) = reader.within("SEKIWAKE_DEDUPLICATE_BYTES", BYTES);
    let duration: Duration = reader.optional(NAME)?;
    if !RANGE.contains(&duration) {
        reader.mistake(NAME, &duration.show(), "a duration, from 1ms to 5s");
    }
    Some(Deduplicate { duration, max_bytes: usize::try_from(max_bytes).unwrap_or(usize::MAX) })
}
