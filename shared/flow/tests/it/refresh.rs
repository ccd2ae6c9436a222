//! Templates are owed again at an interval, unless the exporter has sent them itself.

use std::time::Duration;

use sekiwake_flow::Exporters;

use crate::datagram::{ahead, exporters, ipfix, netflow9, observe, set};

const SLOT: u32 = 3;
const WANTED: u64 = 1 << SLOT;
const AFTER: Duration = Duration::from_secs(60);

fn template(id: u16) -> Vec<u8> {
    netflow9(0, 1, &[set(0, &[id, 1, 8, 4])])
}

fn data(id: u16) -> Vec<u8> {
    netflow9(1, 1, &[set(id, &[1, 2])])
}

/// Whether data at this second has templates ahead of it.
fn is_owed_at(exporters: &mut Exporters, second: u64) -> bool {
    at(exporters, second);
    observe(exporters, &data(256), second, WANTED).owed == WANTED
}

fn at(exporters: &mut Exporters, second: u64) {
    exporters.set_now(Duration::from_secs(second));
    exporters.refresh_slot(SLOT, AFTER, true);
}

#[test]
fn templates_are_owed_again_after_the_interval() {
    let mut exporters = exporters();
    at(&mut exporters, 0);
    observe(&mut exporters, &template(256), 1, WANTED);
    let owed: Vec<u64> = (1..=190).filter(|second| is_owed_at(&mut exporters, *second)).collect();
    assert_eq!(owed, [60, 120, 180]);
    assert_eq!(ahead(&exporters, &data(256), 1400).len(), 1);
    at(&mut exporters, 1000);
    assert_eq!(observe(&mut exporters, &data(256), 1, 1).owed, 1, "another slot");
    assert!(is_owed_at(&mut exporters, 1001));
}

#[test]
fn exporter_that_repeats_its_templates_gets_none_ahead() {
    let mut exporters = exporters();
    for second in 0..600 {
        at(&mut exporters, second);
        if second % 59 == 0 {
            observe(&mut exporters, &template(256), second, WANTED);
        }
        assert!(!is_owed_at(&mut exporters, second), "{second}");
    }
    // Where repeats may have been dropped, they do not count.
    exporters.refresh_slot(SLOT, AFTER, false);
    assert_eq!(observe(&mut exporters, &data(256), 600, WANTED).owed, WANTED);
}

#[test]
fn exporter_that_repeats_only_some_gets_all_ahead() {
    let mut exporters = exporters();
    let mut owed = Vec::new();
    for second in 0..130 {
        at(&mut exporters, second);
        if second == 0 {
            observe(&mut exporters, &template(257), second, WANTED);
        }
        if second % 10 == 5 {
            observe(&mut exporters, &template(256), second, WANTED);
        }
        if is_owed_at(&mut exporters, second) {
            owed.push(second);
        }
    }
    assert_eq!(owed.len(), 2, "{owed:?}");
}

#[test]
fn options_data_has_to_be_repeated_too() {
    let options = ipfix(0, 1, &[set(3, &[258, 2, 1, 149, 4, 34, 4])]);
    let rates = ipfix(0, 1, &[set(258, &[0, 1, 0, 100])]);
    let mut exporters = exporters();
    at(&mut exporters, 0);
    observe(&mut exporters, &options, 0, WANTED);
    observe(&mut exporters, &rates, 0, WANTED);
    at(&mut exporters, 50);
    observe(&mut exporters, &options, 50, WANTED);
    at(&mut exporters, 61);
    assert_eq!(observe(&mut exporters, &rates, 61, WANTED).owed, WANTED, "the data is 61 s old");
    for second in [100, 130, 160] {
        at(&mut exporters, second);
        observe(&mut exporters, &options, second, WANTED);
        assert_eq!(observe(&mut exporters, &rates, second, WANTED).owed, 0, "{second}");
    }
}

#[test]
fn new_exporter_has_an_interval_of_its_own() {
    let mut exporters = exporters();
    at(&mut exporters, 0);
    at(&mut exporters, 500);
    observe(&mut exporters, &template(256), 500, WANTED);
    assert!(!is_owed_at(&mut exporters, 559));
    assert!(is_owed_at(&mut exporters, 560));
}
