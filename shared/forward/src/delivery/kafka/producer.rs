//! The brokers of a topic, and rounds of batches to them.

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use super::{
    Batch, Failure, Place,
    connection::{Access, Connection},
    error::{self, UNKNOWN_TOPIC_OR_PARTITION, Verdict, verdict},
    wire::{Api, BrokerAddress, Metadata, ProducerId, read_produced},
};
use crate::{config::destination::Endpoint, metrics::ErrorKind};

/// The longest request of the outbox, with everything that it takes.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest question about partitions and leaders to one broker.
const METADATA_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a leader waits for its replicas.
const REPLICAS_TIMEOUT_MS: i32 = 8_000;

/// Partitions and leaders are asked for again after this time, even without an error.
const METADATA_AGE: Duration = Duration::from_secs(300);

/// Attempts in a row without success, within this time, before it is an outage.
const MAX_ATTEMPTS: u32 = 5;
const ATTEMPTS_TIME: Duration = Duration::from_secs(2);
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// Attempts in a row.
pub(super) struct Attempts {
    begun_at: Instant,
    made: u32,
}

impl Attempts {
    pub(super) fn begin() -> Attempts {
        Attempts { begun_at: Instant::now(), made: 0 }
    }

    /// Waits before the next attempt, if there is one.
    pub(super) fn pause(&mut self, failure: Failure) -> Result<(), Failure> {
        self.made += 1;
        if !failure.is_passing || self.made >= MAX_ATTEMPTS || self.begun_at.elapsed() >= ATTEMPTS_TIME {
            return Err(failure);
        }
        thread::sleep(FIRST_PAUSE * (1 << self.made.min(4)));
        Ok(())
    }
}

/// What became of the first batch of each partition.
#[derive(Default)]
pub(super) struct Round {
    /// Indexes of stored ones, ascending.
    pub(super) stored: Vec<usize>,
    /// First datagrams of those that the topic does not take, with the error.
    pub(super) rejected: Vec<(Place, i16)>,
    /// Why others were not stored.
    pub(super) failure: Option<Failure>,
}

pub(super) struct Producer {
    bootstrap: Vec<Endpoint>,
    topic: String,
    access: Access,
    metadata: Metadata,
    /// When the metadata were received; `None`: they are out of date.
    known_since: Option<Instant>,
    connections: BTreeMap<i32, Connection>,
    id: Option<ProducerId>,
    /// The next sequence number of each partition.
    sequences: BTreeMap<usize, i32>,
    /// The bootstrap server to begin with.
    first_server: usize,
    deadline: Instant,
}

impl Producer {
    pub(super) fn new(bootstrap: Vec<Endpoint>, topic: String, access: Access) -> Producer {
        Producer {
            bootstrap,
            topic,
            access,
            metadata: Metadata::default(),
            known_since: None,
            connections: BTreeMap::new(),
            id: None,
            sequences: BTreeMap::new(),
            first_server: 0,
            deadline: Instant::now(),
        }
    }

    /// Begins a request of the outbox.
    pub(super) fn begin(&mut self) {
        self.deadline = Instant::now() + REQUEST_TIMEOUT;
    }

    /// Brokers must not take what follows for what they may have stored.
    pub(super) fn renew(&mut self) {
        self.id = None;
        self.sequences.clear();
    }

    /// The number of partitions.
    pub(super) fn partitions(&mut self) -> Result<usize, Failure> {
        if self.known_since.is_none_or(|since| since.elapsed() >= METADATA_AGE) {
            self.metadata = self.ask_for_metadata()?;
            self.known_since = Some(Instant::now());
        }
        let error = self.metadata.error;
        if error != 0 || self.metadata.leaders.is_empty() {
            self.known_since = None;
            let topic = &self.topic;
            return Err(match error {
                0 | UNKNOWN_TOPIC_OR_PARTITION => {
                    let why = format!(
                        "topic {topic} does not exist, or the user may not see it: create it, it is not created here"
                    );
                    Failure { kind: ErrorKind::Answer, why, is_passing: false }
                }
                _ => Failure {
                    is_passing: matches!(verdict(error), Verdict::Later { .. }),
                    ..error::failure(&format!("topic {topic}"), error)
                },
            });
        }
        Ok(self.metadata.leaders.len())
    }

    /// Asks the brokers, those with a connection first.
    fn ask_for_metadata(&mut self) -> Result<Metadata, Failure> {
        let mut last = None;
        while let Some((_, mut connection)) = self.connections.pop_first() {
            match metadata(&mut connection, &self.topic, self.metadata_deadline()) {
                Ok(metadata) => {
                    // Leaders may have moved to brokers with other addresses.
                    self.connections.clear();
                    self.keep(connection, &metadata);
                    return Ok(metadata);
                }
                Err(failure) => last = Some(failure),
            }
        }
        let known = self.metadata.brokers.values().cloned();
        let servers = self.bootstrap.len();
        let bootstrap = (0..servers).map(|index| &self.bootstrap[(self.first_server + index) % servers]);
        let bootstrap = bootstrap.map(|server| BrokerAddress { host: server.host.to_string(), port: server.port });
        let mut addresses: Vec<BrokerAddress> = bootstrap.collect();
        let others: Vec<BrokerAddress> = known.filter(|broker| !addresses.contains(broker)).collect();
        addresses.extend(others);
        self.first_server = self.first_server.wrapping_add(1);
        let mut failures: Vec<String> = Vec::new();
        for address in addresses {
            let deadline = self.metadata_deadline();
            let asked =
                Connection::open(&address.host, address.port, &self.access, deadline).and_then(|mut connection| {
                    metadata(&mut connection, &self.topic, deadline).map(|known| (connection, known))
                });
            match asked {
                Ok((connection, metadata)) => {
                    self.keep(connection, &metadata);
                    return Ok(metadata);
                }
                Err(failure) => {
                    failures.push(failure.why.clone());
                    last = Some(failure);
                }
            }
        }
        let last = last.unwrap_or(Failure { kind: ErrorKind::Other, why: "no broker".to_owned(), is_passing: false });
        Err(match failures.len() {
            0 | 1 => last,
            _ => Failure { why: failures.join("; "), ..last },
        })
    }

    /// One broker that hangs leaves time for the others.
    fn metadata_deadline(&self) -> Instant {
        self.deadline.min(Instant::now() + METADATA_TIMEOUT)
    }

    /// Keeps a connection for the broker that it leads to.
    fn keep(&mut self, connection: Connection, metadata: &Metadata) {
        let is_there = |(_, address): &(&i32, &BrokerAddress)| connection.leads_to(&address.host, address.port);
        if let Some((&broker, _)) = metadata.brokers.iter().find(is_there) {
            self.connections.insert(broker, connection);
        }
    }

    /// Sends the first batch of each partition to its leader.
    pub(super) fn round(&mut self, batches: &mut [Batch]) -> Round {
        let mut round = Round::default();
        let mut by_leader: BTreeMap<i32, Vec<usize>> = BTreeMap::new();
        let mut begun = Vec::new();
        for (index, batch) in batches.iter().enumerate() {
            if begun.contains(&batch.partition) {
                continue;
            }
            begun.push(batch.partition);
            match self.metadata.leaders.get(batch.partition) {
                Some(&leader) if leader >= 0 => by_leader.entry(leader).or_default().push(index),
                _ => {
                    let why = format!("partition {} of topic {} has no leader", batch.partition, self.topic);
                    round.failure = Some(Failure { kind: ErrorKind::Answer, why, is_passing: true });
                }
            }
        }
        if round.failure.is_some() {
            self.known_since = None;
        }
        let mut sent = Vec::new();
        for (leader, indexes) in by_leader {
            match self.produce(leader, &indexes, batches) {
                Ok(()) => sent.push((leader, indexes)),
                Err(failure) => self.lost(leader, &indexes, batches, failure, &mut round),
            }
        }
        for (leader, indexes) in sent {
            let Some(connection) = self.connections.get_mut(&leader) else { continue };
            let answer = connection.receive(self.deadline).map(read_produced);
            let answer = answer.and_then(|read| read.ok_or_else(|| connection.malformed()));
            match answer {
                Ok(answers) => indexes.into_iter().for_each(|index| self.settle(index, batches, &answers, &mut round)),
                Err(failure) => self.lost(leader, &indexes, batches, failure, &mut round),
            }
        }
        round.stored.sort_unstable();
        round
    }

    /// Sends these batches to their leader.
    fn produce(&mut self, leader: i32, indexes: &[usize], batches: &mut [Batch]) -> Result<(), Failure> {
        self.connect(leader)?;
        let id = self.producer_id(leader)?;
        let Some(connection) = self.connections.get_mut(&leader) else { return Err(no_broker(leader)) };
        for &index in indexes {
            let batch = &mut batches[index];
            batch.was_in_doubt = std::mem::replace(&mut batch.is_in_doubt, true);
        }
        let (topic, sequences) = (&self.topic, &self.sequences);
        connection.send(Api::Produce, self.deadline, |writer| {
            let mut writer = writer.produce(topic, REPLICAS_TIMEOUT_MS, indexes.len());
            for &index in indexes {
                let Batch { partition, packed, .. } = &batches[index];
                let sequence = sequences.get(partition).copied().unwrap_or(0);
                writer.batch(*partition as i32, &packed.head(id, sequence), packed.records());
            }
            writer.finish();
        })
    }

    fn connect(&mut self, broker: i32) -> Result<(), Failure> {
        if self.connections.contains_key(&broker) {
            return Ok(());
        }
        let BrokerAddress { host, port } = self.metadata.brokers.get(&broker).ok_or_else(|| no_broker(broker))?;
        let connection = Connection::open(host, *port, &self.access, self.deadline)?;
        self.connections.insert(broker, connection);
        Ok(())
    }

    fn producer_id(&mut self, broker: i32) -> Result<ProducerId, Failure> {
        if let Some(id) = self.id {
            return Ok(id);
        }
        let Some(connection) = self.connections.get_mut(&broker) else { return Err(no_broker(broker)) };
        let answer = connection.ask(Api::InitProducerId, self.deadline, |writer| writer.init_producer_id())?;
        match ProducerId::read(answer) {
            Some(Ok(id)) => {
                self.id = Some(id);
                Ok(id)
            }
            Some(Err(error)) => Err(Failure {
                is_passing: matches!(verdict(error), Verdict::Later { .. }),
                ..error::failure("no number for the producer", error)
            }),
            None => Err(connection.malformed()),
        }
    }

    /// A request has no answer.
    fn lost(&mut self, leader: i32, indexes: &[usize], batches: &[Batch], failure: Failure, round: &mut Round) {
        let datagrams: usize = indexes.iter().map(|&index| batches[index].datagrams.len()).sum();
        tracing::debug!(leader, datagrams, why = failure.why, "broker without an answer");
        self.connections.remove(&leader);
        self.known_since = None;
        round.failure = Some(failure);
    }

    /// What a leader says about one batch.
    fn settle(&mut self, index: usize, batches: &mut [Batch], answers: &[(i32, i16)], round: &mut Round) {
        let batch = &mut batches[index];
        let partition = batch.partition;
        let answer = answers.iter().find(|(number, _)| usize::try_from(*number) == Ok(partition));
        let Some(&(_, error)) = answer else {
            let why = format!("the leader of partition {partition} says nothing about it");
            round.failure = Some(Failure { kind: ErrorKind::Answer, why, is_passing: false });
            return;
        };
        let verdict = verdict(error);
        // Whether an earlier attempt was stored is still not known.
        batch.is_in_doubt = batch.was_in_doubt;
        match verdict {
            Verdict::Stored => {
                let next = self.sequences.entry(partition).or_default();
                // Numbers go on with 0 after 2^31 - 1.
                *next = next.wrapping_add(batch.packed.count) & i32::MAX;
                round.stored.push(index);
                return;
            }
            Verdict::Rejected => {
                round.rejected.extend(batch.datagrams.first().map(|&first| (first, error)));
                return;
            }
            Verdict::Later { may_be_stored } => {
                batch.is_in_doubt |= may_be_stored;
                self.known_since = None;
            }
            Verdict::UnknownProducer => self.renew(),
            Verdict::Refused => {}
        }
        let what = format!("partition {partition} of topic {}", self.topic);
        let failure = error::failure(&what, error);
        round.failure = Some(Failure { is_passing: verdict != Verdict::Refused, ..failure });
    }
}

fn no_broker(broker: i32) -> Failure {
    Failure { kind: ErrorKind::Answer, why: format!("broker {broker} is not among the brokers"), is_passing: true }
}

fn metadata(connection: &mut Connection, topic: &str, deadline: Instant) -> Result<Metadata, Failure> {
    let answer = connection.ask(Api::Metadata, deadline, |writer| writer.metadata(topic))?;
    match Metadata::read(answer, topic) {
        Some(metadata) => Ok(metadata),
        None => Err(connection.malformed()),
    }
}
