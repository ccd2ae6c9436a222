use std::{collections::HashSet, path::PathBuf, time::Duration};

use sekiwake_record::Name;
use sekiwake_settings::{BindEndpoint, ByteSize, Endpoint, List, PREFIX, Ports, Setting, VARIABLES, VariableDefault};

#[test]
fn names_are_unique_and_prefixed_and_groups_are_contiguous() {
    let names: HashSet<&str> = VARIABLES.iter().map(|variable| variable.name).collect();
    assert_eq!(names.len(), VARIABLES.len());
    for variable in VARIABLES {
        assert!(variable.name.starts_with(PREFIX), "{}", variable.name);
        assert!(
            !variable.read_by.is_empty() && !variable.about.is_empty() && !variable.takes.is_empty(),
            "{}",
            variable.name
        );
    }
    assert!(VARIABLES.is_sorted_by_key(|variable| variable.group), "the groups are not contiguous");
}

#[test]
fn every_default_value_can_be_parsed() {
    fn parses<T: Setting>(text: &str) -> bool {
        T::parse(text).is_ok()
    }
    for variable in VARIABLES {
        let VariableDefault::Value(text) = variable.default else { continue };
        let parses = match (variable.takes, variable.name) {
            ("duration", _) => parses::<Duration>(text),
            ("size", _) => parses::<ByteSize>(text),
            ("ports", _) => parses::<Ports>(text),
            ("true or false", _) => parses::<bool>(text),
            ("1 to 16" | "0 to 19", _) => parses::<u16>(text),
            ("number", _) => parses::<f64>(text),
            ("path", _) => parses::<PathBuf>(text),
            ("name", _) => parses::<Name>(text),
            ("endpoints", name) if name.starts_with("SEKIWAKE_PROXY_") => parses::<List<BindEndpoint>>(text),
            ("endpoints", _) => parses::<List<Endpoint>>(text),
            // Their types are in the crates that read them, whose tests read the defaults.
            ("filter" | "kinds or all" | "text or json" | "json or text" | "names", _) => true,
            (takes, name) => panic!("{name}: this test does not know the type {takes}"),
        };
        assert!(parses, "the default of {} cannot be parsed: {text}", variable.name);
    }
}
