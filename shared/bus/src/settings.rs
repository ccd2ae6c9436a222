//! Where the bus is: the settings that publishers and subscribers share.

use std::time::Duration;

use sekiwake_record::{Name, NameError};
use sekiwake_runtime::host_name;
use sekiwake_settings::{Endpoint, List, Reader};

use crate::keys::ClientKeys;

/// The longest name of a group, bytes: a service's name stands before it.
const MAX_GROUP_NAME: usize = 40;

/// Where to publish.
#[derive(Clone, Debug)]
pub struct Publishing {
    /// The proxy's endpoints for publishers.
    pub endpoints: Vec<String>,
}

/// Where to subscribe.
#[derive(Clone, Debug)]
pub struct Subscribing {
    /// The proxy's endpoints for subscribers.
    pub endpoints: Vec<String>,
    /// This party's keys, where the bus is encrypted.
    pub keys: Option<ClientKeys>,
}

/// Where the control plane is.
#[derive(Clone, Debug)]
pub struct Controlling {
    /// The proxy's endpoints for control.
    pub endpoints: Vec<String>,
    /// This party's keys, where the bus is encrypted.
    pub keys: Option<ClientKeys>,
}

/// Which group a subscriber is a member of, and as whom.
#[derive(Clone, Debug)]
pub struct Grouping {
    /// Replicas of a service with one name share the work.
    pub name: Name,
    /// What people call this member.
    pub label: Name,
    /// How far back a group begins that is seen for the first time.
    pub start_age: Duration,
}

impl Publishing {
    /// Reads `SEKIWAKE_BUS_PUBLISH`.
    pub fn read(reader: &mut Reader) -> Publishing {
        refuse_keys(reader);
        Publishing { endpoints: endpoints(reader, "SEKIWAKE_BUS_PUBLISH") }
    }
}

impl Subscribing {
    /// Reads `SEKIWAKE_BUS_SUBSCRIBE`.
    pub fn read(reader: &mut Reader) -> Subscribing {
        refuse_keys(reader);
        Subscribing { endpoints: endpoints(reader, "SEKIWAKE_BUS_SUBSCRIBE"), keys: None }
    }
}

impl Controlling {
    /// Reads `SEKIWAKE_BUS_CONTROL`.
    pub fn read(reader: &mut Reader) -> Controlling {
        Controlling { endpoints: endpoints(reader, "SEKIWAKE_BUS_CONTROL"), keys: None }
    }

    /// Whether the coordinator is in this process: such connections are not seen by a watch, and stand as long as the process does.
    pub(crate) fn is_in_process(&self) -> bool {
        self.endpoints.iter().any(|endpoint| endpoint.starts_with("inproc:"))
    }
}

impl Grouping {
    /// Reads `SEKIWAKE_GROUP`, `SEKIWAKE_MEMBER` and `SEKIWAKE_GROUP_START`.
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
        }
    }

    /// The group of this service: `<service>.<name>`, so that one environment can serve all services.
    ///
    /// # Errors
    /// A service whose name is too long.
    pub fn group(&self, service: &str) -> Result<Name, NameError> {
        Name::new(&format!("{service}.{}", self.name))
    }
}

/// Keys that were set and not used would be worse than none: whoever sets them counts on encryption.
pub fn refuse_keys(reader: &mut Reader) {
    for name in ["SEKIWAKE_BUS_SERVER_KEY_FILE", "SEKIWAKE_BUS_KEY_FILE", "SEKIWAKE_BUS_ALLOWED_KEYS_FILE"] {
        if let Some(path) = reader.optional::<String>(name) {
            reader.mistake(name, &path, "to be unset: this version does not encrypt the bus");
        }
    }
}

/// A list from the start, of one entry for now: with two, nothing would merge what comes twice.
fn endpoints(reader: &mut Reader, name: &'static str) -> Vec<String> {
    let list: List<Endpoint> = reader.value(name);
    if list.0.len() > 1 {
        let given: Vec<&str> = list.0.iter().map(Endpoint::as_str).collect();
        reader.mistake(name, &given.join(","), "one endpoint (several proxies are not supported by this version)");
    }
    list.0.iter().map(|endpoint| endpoint.as_str().to_owned()).collect()
}
