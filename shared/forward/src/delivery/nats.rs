//! NATS: messages to a subject that a stream of JetStream takes.
//!
//! ```text
//! request ─▶ messages with ids ─▶ lane per source ─▶ SubjectPublisher ─▶ outcome per message
//! ```
//! | outcome | what happens |
//! |---|---|
//! | acknowledged, also as a duplicate | sent |
//! | too large for the server or the stream | rejected |
//! | no answer, no leader, no server | sent again with the same id, before what follows |
//! | any other error, no stream | an outage, so that mistakes in settings cost no records |

use std::{collections::HashMap, net::IpAddr, path::PathBuf, time::Duration};

use sekiwake_bus::{
    NatsAccess, NatsIdentity, NatsLogin, NotPublished, NotPublishedCause, Outgoing, Published, SubjectPublisher,
    check_login, subject_publisher,
};
use sekiwake_json::{Payload, timestamp, write_line};
use sekiwake_record::Kind;
use sekiwake_runtime::Hangups;

use super::{
    Value,
    entries::Entry,
    outbox::Part,
    places::{Place, in_common, places},
    secrets,
    sending::{Answer, Request, Sink},
};
use crate::{
    config::destination::{DeliveryOptions, Destination, NatsOptions},
    metrics::ErrorKind,
    stream::TlsSettings,
};

/// The longest attempt to publish a request.
const PUBLISH_WITHIN: Duration = Duration::from_secs(8);

/// How often the connection is kept between requests.
const TEND_EVERY: Duration = Duration::from_millis(500);

/// What a sink for NATS needs.
#[derive(Clone, Debug)]
pub(crate) struct NatsSettings {
    pub(crate) kind: Kind,
    pub(crate) value: Value,
    pub(crate) subject: String,
    /// The most messages of a source on their way.
    pub(crate) pipeline: usize,
    pub(crate) access: NatsAccess,
}

impl NatsSettings {
    /// Those of a destination, whose files are read once.
    ///
    /// # Errors
    /// A file cannot be used.
    pub(crate) fn read(kind: Kind, destination: &Destination) -> Result<NatsSettings, String> {
        let options = &destination.options;
        let DeliveryOptions { value, is_encrypted, user, password, nats, .. } = &options.delivery;
        let NatsOptions { nkey, credentials, pipeline } = nats;
        if *is_encrypted {
            for endpoint in destination.servers() {
                let loaded = TlsSettings::from(&options.tls).load(&endpoint.host.to_string());
                loaded.map_err(|error| error.to_string())?;
            }
        }
        let login = match (nkey, credentials, user, password) {
            (Some(file), ..) => NatsLogin::Nkey(file.clone()),
            (_, Some(file), ..) => NatsLogin::Credentials(file.clone()),
            (_, _, Some(user), Some(file)) => NatsLogin::Password { user: user.clone(), file: file.clone() },
            _ => NatsLogin::None,
        };
        for file in [nkey, credentials, password].into_iter().flatten() {
            secrets::read(file)?;
        }
        check_login(&login)?;
        let scheme = if *is_encrypted { "tls" } else { "nats" };
        let identity = |(certificate, key): (&PathBuf, &PathBuf)| NatsIdentity {
            cert_file: certificate.clone(),
            key_file: key.clone(),
        };
        let access = NatsAccess {
            urls: destination.servers().map(|server| format!("{scheme}://{server}")).collect(),
            is_tls: *is_encrypted,
            ca_file: options.tls.ca.clone(),
            identity: options.tls.certificate.as_ref().zip(options.tls.key.as_ref()).map(identity),
            login,
        };
        let subject = destination.path.trim_start_matches('/').to_owned();
        Ok(NatsSettings { kind, value: *value, subject, pipeline: *pipeline as usize, access })
    }
}

/// A subject.
pub(crate) struct NatsSink {
    settings: NatsSettings,
    /// How often the process was asked to read its files again.
    hangups: Hangups,
    /// Opened with the first request: settings are also checked without one.
    publisher: Option<Box<dyn SubjectPublisher>>,
    unfinished: Option<Unfinished>,
    unnamed: Unnamed,
    /// The same memory for every envelope.
    envelope: Vec<u8>,
}

/// A request of which not everything has an outcome.
#[derive(Default)]
struct Unfinished {
    parts: Vec<Part>,
    messages: Vec<Outgoing>,
    /// Per datagram, how many messages there are up to its last one.
    ends: Vec<usize>,
    lanes: HashMap<IpAddr, usize>,
}

/// Ids for records that have none, such as those of a replay.
struct Unnamed {
    run: u64,
    next: u64,
}

impl NatsSink {
    /// # Errors
    /// There are no random numbers.
    pub(crate) fn new(settings: NatsSettings, hangups: Hangups) -> Result<NatsSink, String> {
        let run = getrandom::u64().map_err(|error| format!("cannot get random numbers: {error}"))?;
        let unnamed = Unnamed { run, next: 0 };
        Ok(NatsSink { settings, hangups, publisher: None, unfinished: None, unnamed, envelope: Vec::new() })
    }

    /// Publishes all of these parts, going on with an unfinished request that they begin with.
    fn deliver(&mut self, parts: &[Part]) -> Result<Unfinished, NotPublished> {
        let mut unfinished = self.unfinished.take().unwrap_or_default();
        let in_common = in_common(&unfinished.parts, parts);
        unfinished.truncate(in_common);
        for Place { part, index } in places(parts).into_iter().skip(in_common) {
            if let Some(entry) = parts.get(part).and_then(|part| part.entries.get(index)) {
                self.push(&entry, &mut unfinished);
            }
        }
        unfinished.parts = parts.to_vec();
        let NatsSettings { access, subject, pipeline, .. } = &self.settings;
        let published = match &mut self.publisher {
            Some(publisher) => publisher.publish(&mut unfinished.messages, PUBLISH_WITHIN),
            None => match subject_publisher(access.clone(), &self.hangups, subject, *pipeline) {
                Ok(mut publisher) => {
                    let published = publisher.publish(&mut unfinished.messages, PUBLISH_WITHIN);
                    self.publisher = Some(publisher);
                    published
                }
                Err(error) => Err(NotPublished { cause: NotPublishedCause::Refused, why: with_cause(&error) }),
            },
        };
        match published {
            Ok(()) => Ok(unfinished),
            Err(failure) => {
                self.unfinished = Some(unfinished);
                Err(failure)
            }
        }
    }

    /// Adds the messages of a datagram.
    fn push(&mut self, entry: &Entry<'_>, unfinished: &mut Unfinished) {
        let record = &entry.record;
        let Unfinished { messages, ends, lanes, .. } = unfinished;
        let count = lanes.len();
        let lane = *lanes.entry(record.source).or_insert(count);
        let id = match entry.id {
            "" => self.unnamed.next(),
            id => id.to_owned(),
        };
        let headers = || {
            vec![
                ("source", record.source.to_string()),
                ("kind", self.settings.kind.as_str().to_owned()),
                ("format", record.format.as_str().to_owned()),
                ("captured_at", timestamp(record.captured_at_ns)),
            ]
        };
        let new =
            |id, payload: &[u8]| Outgoing { lane, id, headers: headers(), payload: payload.to_vec(), outcome: None };
        match self.settings.value {
            Value::Raw => messages.push(new(id, record.payload)),
            Value::Json => {
                self.envelope.clear();
                // Writing to memory does not fail.
                let _ = write_line(&mut self.envelope, Some(self.settings.kind), record, Payload::Included);
                messages.push(new(id, self.envelope.trim_ascii_end()));
            }
            Value::Decoded => {
                let rows = entry.rows().enumerate();
                messages.extend(rows.map(|(row, payload)| new(format!("{id}.{row}"), payload)));
            }
        }
        ends.push(messages.len());
    }
}

impl Sink for NatsSink {
    fn send(&mut self, request: &Request) -> Answer {
        match self.deliver(&request.parts) {
            Ok(done) => {
                let (rejected, why) = done.rejected();
                match why {
                    Some(why) if rejected == done.ends.len() as u64 => Answer::Rejected { why },
                    why => Answer::Accepted { rejected, why },
                }
            }
            Err(NotPublished { cause, why }) => {
                let kind = match cause {
                    NotPublishedCause::Unreachable => ErrorKind::Closed,
                    NotPublishedCause::Late => ErrorKind::TimedOut,
                    NotPublishedCause::Refused => ErrorKind::Answer,
                };
                let is_too_slow = cause == NotPublishedCause::Late;
                Answer::Failed { kind, why, after: None, is_too_slow }
            }
        }
    }

    fn tend(&mut self) -> Option<Duration> {
        if let Some(publisher) = &mut self.publisher {
            publisher.tend();
        }
        self.publisher.is_some().then_some(TEND_EVERY)
    }
}

impl Unfinished {
    /// Leaves this many datagrams. The others come again in another request.
    fn truncate(&mut self, datagrams: usize) {
        self.ends.truncate(datagrams);
        self.messages.truncate(self.ends.last().copied().unwrap_or(0));
    }

    /// How many datagrams have a rejected message, and why the last one was rejected.
    fn rejected(&self) -> (u64, Option<String>) {
        let (mut rejected, mut last) = (0, None);
        let mut start = 0;
        for &end in &self.ends {
            let why = self.messages[start..end].iter().find_map(|message| match &message.outcome {
                Some(Published::Rejected(why)) => Some(why),
                _ => None,
            });
            start = end;
            rejected += u64::from(why.is_some());
            last = why.or(last);
        }
        (rejected, last.cloned())
    }
}

impl Unnamed {
    fn next(&mut self) -> String {
        self.next += 1;
        format!("{:016x}.{}", self.run, self.next)
    }
}

fn with_cause(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}
