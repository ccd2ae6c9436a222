//! Where the bus is: the settings that publishers and subscribers share.

use sekiwake_settings::{Endpoint, List, Reader};

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
        Subscribing { endpoints: endpoints(reader, "SEKIWAKE_BUS_SUBSCRIBE") }
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
