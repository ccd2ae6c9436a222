//! Against a model: whatever a disk does, what was said to be stored is there, and nothing else.

use std::collections::BTreeMap;

use proptest::{prelude::*, test_runner::TestRunner};
use sekiwake_record::{Flags, Format, Name, Record, Vlans};
use sekiwake_store::{LineEncoder, LineFormat, Lines};
use sekiwake_storer::{Keeping, KeepingSettings, Load, Template, Writer, WriterSettings};

use crate::simulated::{Fault, Mutant, SimulatedDisk};

const MINUTE: u64 = 60_000_000_000;

#[derive(Clone, Debug)]
enum Action {
    /// Messages, by minute and source, are stored; something goes wrong after so many operations.
    Store(Vec<(u8, u8)>, Option<(u32, Fault)>),
    /// Files that are due are closed.
    Tend,
    /// Closed files are compressed.
    Keep(Option<(u32, Fault)>),
    /// The clock moves, possibly backwards, minutes.
    Clock(i8),
    /// The storer is stopped and started.
    Restart,
    /// The power goes.
    Crash,
}

fn fault() -> impl Strategy<Value = Option<(u32, Fault)>> {
    let kind = prop_oneof![Just(Fault::Full), Just(Fault::Device), Just(Fault::Power)];
    proptest::option::of((0u32..30, kind))
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        6 => (proptest::collection::vec((0u8..4, 0u8..6), 1..12), fault()).prop_map(|(messages, fault)| Action::Store(messages, fault)),
        1 => Just(Action::Tend),
        2 => fault().prop_map(Action::Keep),
        1 => (-3i8..6).prop_map(Action::Clock),
        1 => Just(Action::Restart),
        1 => Just(Action::Crash),
    ]
}

/// A storer on a simulated disk, and what is to be true of it.
struct Model {
    disk: SimulatedDisk,
    writer: Option<Writer<SimulatedDisk>>,
    format: LineFormat,
    template: Template,
    now_ns: u64,
    sent: u64,
    /// Of each message that was said to be stored, how often it may be there.
    allowed: BTreeMap<u64, u64>,
}

impl Model {
    fn new(seed: u64, mutant: Mutant, format: LineFormat, template: &str) -> Model {
        let disk = SimulatedDisk::new(seed);
        disk.set_mutant(mutant);
        let template = Template::parse(template).unwrap();
        let mut model =
            Model { disk, writer: None, format, template, now_ns: 100 * MINUTE, sent: 0, allowed: BTreeMap::new() };
        model.open();
        model
    }

    fn open(&mut self) {
        self.writer = None;
        let settings = WriterSettings {
            rotate_bytes: 1500,
            max_open: 8,
            max_parts: 8,
            ..WriterSettings::new(Name::new("m").unwrap(), self.format)
        };
        let (writer, _) = Writer::open(self.disk.clone(), settings).unwrap();
        self.writer = Some(writer);
    }

    fn crash(&mut self) {
        self.writer = None;
        self.disk.crash();
        self.open();
    }

    fn load(&self, messages: &[(u64, u8, u8)]) -> Load {
        let mut load = Load::new(self.template.clone(), Name::new("m").unwrap(), 60);
        let mut encoder = LineEncoder::new(self.format);
        for (number, minute, source) in messages {
            let payload = format!("<13>number {number} {}", "x".repeat(*number as usize % 300));
            let record = Record {
                captured_at_ns: u64::from(*minute) * MINUTE + 90 * MINUTE,
                source: [198, 51, 100, *source].into(),
                source_port: 514,
                destination: [203, 0, 113, 1].into(),
                destination_port: 514,
                format: Format::Rfc3164,
                flags: Flags::default(),
                payload: payload.as_bytes(),
                vlans: Vlans::new(),
                dscp_ttl: 0,
            };
            encoder.encode(&record, load.buffer(record.captured_at_ns, record.source));
        }
        load
    }

    fn apply(&mut self, action: &Action) {
        match action {
            Action::Store(messages, fault) => self.store(messages, *fault),
            Action::Tend => self.writer.as_mut().unwrap().tend(self.now_ns),
            Action::Keep(fault) => {
                if let Some((after, fault)) = fault {
                    self.disk.fail_after(*after, *fault);
                }
                let settings =
                    KeepingSettings { member: Name::new("m").unwrap(), compress: Some(1), keep: None, max_bytes: None };
                let keeping = Keeping::new(self.disk.clone(), settings);
                keeping.round(self.now_ns, &|| false);
                self.disk.mend();
                if self.disk.is_dead() {
                    self.crash();
                }
            }
            Action::Clock(minutes) => {
                self.now_ns = self.now_ns.saturating_add_signed(i64::from(*minutes) * MINUTE as i64);
            }
            Action::Restart => {
                self.writer.as_mut().unwrap().close_all();
                self.open();
            }
            Action::Crash => self.crash(),
        }
        self.check();
    }

    fn store(&mut self, messages: &[(u8, u8)], fault: Option<(u32, Fault)>) {
        let numbered: Vec<(u64, u8, u8)> =
            messages.iter().zip(self.sent..).map(|((minute, source), number)| (number, *minute, *source)).collect();
        self.sent += messages.len() as u64;
        if let Some((after, fault)) = fault {
            self.disk.fail_after(after, fault);
        }
        // Once, and once more for each try that nobody knows the outcome of.
        let mut times = 1;
        let mut load = self.load(&numbered);
        loop {
            match self.writer.as_mut().unwrap().store(self.now_ns, &mut load) {
                Ok(()) => break,
                Err(_) if self.disk.is_dead() => {
                    self.crash();
                    // The bus gives them again.
                    load = self.load(&numbered);
                    times += 1;
                }
                Err(_) => {
                    // Of a file that was given up a part may stay, if it cannot be cut either.
                    times += 1;
                }
            }
        }
        self.disk.mend();
        self.allowed.extend(numbered.iter().map(|(number, _, _)| (*number, times)));
    }

    /// Every file is whole, and what is in all of them is what was stored.
    fn check(&self) {
        let mut counts: BTreeMap<u64, u64> = BTreeMap::new();
        let files = self.disk.files();
        for (name, bytes) in &files {
            // One that is compressed and not removed yet is there twice.
            let has_packed = files.iter().any(|(other, _)| other.packed && !name.packed && other.part == name.part);
            if has_packed {
                continue;
            }
            let mut lines = Lines::read(&bytes[..]).unwrap();
            while let Some((number, message)) = lines.next_line().unwrap() {
                let message = message.unwrap_or_else(|| panic!("line {number} of {name} is none"));
                assert!((name.period.start_ns()..name.period.end_ns()).contains(&message.captured_at_ns));
                let text = String::from_utf8_lossy(&message.payload).into_owned();
                let number = text.split(' ').nth(1).and_then(|number| number.parse().ok()).expect("a numbered message");
                *counts.entry(number).or_default() += 1;
            }
        }
        for (number, allowed) in &self.allowed {
            let count = counts.remove(number).unwrap_or(0);
            assert!(count >= 1, "number {number} was stored, and is not there");
            assert!(count <= *allowed, "number {number} is there {count} times, {allowed} at most");
        }
        assert!(counts.is_empty(), "{counts:?} were never said to be stored");
        assert!(self.disk.most_open() <= 8 + 2, "{} files were open", self.disk.most_open());
    }
}

fn runs(mutant: Mutant, cases: u32, max_shrink_iters: u32) -> Result<(), String> {
    let config = ProptestConfig { cases, failure_persistence: None, max_shrink_iters, ..ProptestConfig::default() };
    let template = prop_oneof![Just("{date}/{kind}"), Just("{hour}/{source}")];
    let format = prop_oneof![Just(LineFormat::Json), Just(LineFormat::Text)];
    let strategy = (any::<u64>(), template, format, proptest::collection::vec(action(), 1..25));
    TestRunner::new(config)
        .run(&strategy, |(seed, template, format, actions)| {
            let mut model = Model::new(seed, mutant, format, template);
            actions.iter().for_each(|action| model.apply(action));
            Ok(())
        })
        .map_err(|error| error.to_string())
}

#[test]
fn what_was_said_to_be_stored_is_there_whatever_the_disk_does() {
    runs(Mutant::None, 1500, 2000).unwrap();
}

#[test]
fn a_storer_that_forgets_to_sync_or_to_cut_is_caught() {
    // What it finds is expected, and its panics need not be told.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let caught =
        [Mutant::NoDirectorySync, Mutant::NoSync, Mutant::NoCut].map(|mutant| (mutant, runs(mutant, 1500, 0).is_err()));
    std::panic::set_hook(hook);
    assert!(caught.iter().all(|(_, is_caught)| *is_caught), "{caught:?}");
}
