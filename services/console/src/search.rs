//! The search of stored messages: the same query to all configured storers, and their answers in
//! one order. It fetches no other address.

use std::{
    collections::BTreeSet,
    io::{ErrorKind, Read},
    net::{SocketAddr, ToSocketAddrs},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use serde::Deserialize;
use ureq::Agent;

/// The most messages that are shown.
const LIMIT: usize = 200;
/// The time for an answer. Shorter than an admin connection may take.
const TIME_LIMIT: Duration = Duration::from_secs(8);
/// The time to look up the names of storers, which is part of it.
const RESOLVE_LIMIT: Duration = Duration::from_secs(3);
/// The largest answer, bytes: the limit of messages, of the largest size that is common.
const MAX_ANSWER: u64 = 4 << 20;
/// The most storers, after names are resolved.
const MAX_STORERS: usize = 32;
/// The longest value of a parameter, bytes.
const MAX_VALUE: usize = 400;

/// The parameters that are passed on, which are those of `/search`.
pub(crate) const PARAMETERS: [&str; 5] = ["from", "to", "source", "severity", "text"];

/// A query.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Query {
    /// Name and value, in the order of [`PARAMETERS`]; without empty values.
    values: Vec<(&'static str, String)>,
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub(crate) struct Found {
    /// The newest first.
    pub(crate) messages: Vec<Message>,
    /// Storers that did not answer completely, with the reason.
    pub(crate) failures: Vec<(String, String)>,
    /// There may be more.
    pub(crate) is_limited: bool,
    /// How many storers were asked.
    pub(crate) storers: usize,
}

/// A stored message.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Message {
    pub(crate) captured_at: String,
    pub(crate) source: String,
    pub(crate) facility: Option<String>,
    pub(crate) severity: Option<String>,
    pub(crate) payload: Option<String>,
    pub(crate) payload_base64: Option<String>,
}

impl Query {
    /// Of the parameters of a request; others are ignored.
    pub(crate) fn parse<'a>(parameters: impl Iterator<Item = (&'a str, &'a [u8])>) -> Query {
        let mut values = Vec::new();
        for (name, value) in parameters {
            let value = String::from_utf8_lossy(value);
            let Some(name) = PARAMETERS.into_iter().find(|known| *known == name) else { continue };
            let is_set = values.iter().any(|(other, _)| *other == name);
            let value = value.trim();
            if !is_set && !value.is_empty() {
                values.push((name, value[..value.floor_char_boundary(MAX_VALUE)].to_owned()));
            }
        }
        Query { values }
    }

    /// The value of a parameter, for the form.
    pub(crate) fn value(&self, name: &str) -> &str {
        self.values.iter().find(|(other, _)| *other == name).map_or("", |(_, value)| value)
    }

    fn to_url(&self, storer: SocketAddr) -> String {
        let mut url = format!("http://{storer}/search?order=newest&limit={LIMIT}");
        for (name, value) in &self.values {
            url += &format!("&{name}={}", encoded(value));
        }
        url
    }
}

fn encoded(value: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
    value.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// What one address has answered.
#[derive(Debug, Default)]
struct Answer {
    messages: Vec<Message>,
    is_limited: bool,
    failure: Option<Failure>,
}

#[derive(Debug)]
enum Failure {
    /// Nothing listens at this address.
    Refused(String),
    Other(String),
}

/// An address of a storer: which of the configured ones it is of.
#[derive(Clone, Copy, Debug)]
struct Address {
    storer: usize,
    address: SocketAddr,
}

/// Asks all storers at once. A name stands for a storer at each of its addresses, unless some of
/// these are of the same one.
pub(crate) fn search(storers: &[String], query: &Query) -> Found {
    let deadline = Instant::now() + TIME_LIMIT;
    let mut found = Found::default();
    let addresses = resolve(storers, &mut found);
    found.storers = addresses.len();
    let (sender, received) = mpsc::sync_channel(MAX_STORERS);
    for Address { storer, address } in addresses {
        let (sender, url) = (sender.clone(), query.to_url(address));
        let asked = move || {
            // Fails only if nobody waits any more.
            let _ = sender.send((storer, ask(&url, deadline)));
        };
        if thread::Builder::new().name("search".to_owned()).spawn(asked).is_err() {
            found.failures.push((address.to_string(), "no thread".to_owned()));
        }
    }
    drop(sender);
    let mut answers: Vec<Vec<Answer>> = storers.iter().map(|_| Vec::new()).collect();
    for (storer, answer) in received {
        answers[storer].push(answer);
    }
    for (storer, answers) in storers.iter().zip(answers) {
        found.add(storer, answers);
    }
    // As text of one form, times are in order.
    found.messages.sort_by(|a, b| b.captured_at.cmp(&a.captured_at));
    found.is_limited |= found.messages.len() > LIMIT;
    found.messages.truncate(LIMIT);
    found
}

/// The addresses of all storers. Names are looked up at the same time, because one may take long.
fn resolve(storers: &[String], found: &mut Found) -> Vec<Address> {
    let (sender, resolved) = mpsc::sync_channel(storers.len().max(1));
    for (index, storer) in storers.iter().cloned().enumerate() {
        let sender = sender.clone();
        let look_up = move || {
            let resolved = storer.to_socket_addrs().map(|addresses| addresses.take(MAX_STORERS).collect::<Vec<_>>());
            // Fails only if nobody waits any more.
            let _ = sender.send((index, resolved));
        };
        // Without a thread the name is late, and named as such.
        let _ = thread::Builder::new().name("search".to_owned()).spawn(look_up);
    }
    drop(sender);
    let until = Instant::now() + RESOLVE_LIMIT;
    let mut addresses: Vec<Address> = Vec::new();
    let mut late: BTreeSet<usize> = (0..storers.len()).collect();
    while let Ok((storer, result)) = resolved.recv_timeout(until.saturating_duration_since(Instant::now())) {
        late.remove(&storer);
        match result {
            Ok(of_name) => addresses.extend(of_name.into_iter().map(|address| Address { storer, address })),
            Err(error) => found.failures.push((storers[storer].clone(), format!("cannot be resolved: {error}"))),
        }
    }
    let seconds = RESOLVE_LIMIT.as_secs();
    let too_late = |storer: usize| (storers[storer].clone(), format!("cannot be resolved within {seconds} s"));
    found.failures.extend(late.into_iter().map(too_late));
    addresses.sort_by_key(|of| (of.address, of.storer));
    addresses.dedup_by_key(|of| of.address);
    addresses.truncate(MAX_STORERS);
    addresses
}

impl Found {
    /// Adds the answers of all addresses of a storer.
    fn add(&mut self, storer: &str, answers: Vec<Answer>) {
        let has_answered = answers.iter().any(|answer| answer.failure.is_none());
        let before = self.messages.len();
        for Answer { messages, is_limited, failure } in answers {
            self.is_limited |= is_limited;
            let known = self.messages[before..].len();
            for message in messages {
                // Two addresses of one storer give the same messages.
                if !self.messages[before..before + known].contains(&message) {
                    self.messages.push(message);
                }
            }
            match failure {
                Some(Failure::Refused(_)) if has_answered => {}
                Some(Failure::Refused(error) | Failure::Other(error)) => {
                    self.failures.push((storer.to_owned(), error));
                }
                None => {}
            }
        }
    }
}

impl From<ureq::Error> for Failure {
    fn from(error: ureq::Error) -> Failure {
        match &error {
            ureq::Error::Io(io) if io.kind() == ErrorKind::ConnectionRefused => Failure::Refused(error.to_string()),
            _ => Failure::Other(error.to_string()),
        }
    }
}

fn ask(url: &str, deadline: Instant) -> Answer {
    let agent: Agent = Agent::config_builder()
        .timeout_global(Some(deadline.saturating_duration_since(Instant::now())))
        .max_redirects(0)
        .proxy(None)
        .http_status_as_error(false)
        .build()
        .into();
    let mut response = match agent.get(url).call() {
        Ok(response) => response,
        Err(error) => return Answer { failure: Some(error.into()), ..Answer::default() },
    };
    let status = response.status();
    let mut text = Vec::new();
    let mut body = response.body_mut().as_reader().take(MAX_ANSWER + 1);
    let read = body.read_to_end(&mut text);
    let is_cut = text.len() as u64 > MAX_ANSWER;
    let text = String::from_utf8_lossy(&text);
    if status != 200 {
        let line = text.lines().next().unwrap_or_default();
        let error = format!("{}: {}", status.as_u16(), &line[..line.floor_char_boundary(MAX_VALUE)]);
        return Answer { failure: Some(Failure::Other(error)), ..Answer::default() };
    }
    let messages: Vec<Message> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).take(LIMIT).collect();
    let failure = match read {
        Err(error) => Some(format!("incomplete answer: {error}")),
        Ok(_) if is_cut && messages.len() < LIMIT => Some(format!(
            "answer larger than {} MiB: its first {} messages are shown",
            MAX_ANSWER >> 20,
            messages.len()
        )),
        Ok(_) => None,
    };
    Answer { is_limited: messages.len() >= LIMIT || is_cut, messages, failure: failure.map(Failure::Other) }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, net::TcpListener};

    use super::*;

    fn query(pairs: &[(&str, &str)]) -> Query {
        Query::parse(pairs.iter().map(|(name, value)| (*name, value.as_bytes())))
    }

    #[test]
    fn only_known_parameters_are_passed_on() {
        let query = query(&[("text", "a&limit=1 ü"), ("limit", "9"), ("from", ""), ("text", "b"), ("order", "oldest")]);
        let url = query.to_url("127.0.0.1:9605".parse().unwrap());
        assert_eq!(url, "http://127.0.0.1:9605/search?order=newest&limit=200&text=a%26limit%3D1%20%C3%BC");
    }

    /// A storer that gives one answer.
    fn storer(answer: &'static str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
        });
        address.to_string()
    }

    #[test]
    fn answers_are_merged_and_failures_named() {
        let old = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{\"captured_at\":\"2026-01-01T00:00:00Z\"}\nnot json\n";
        let new = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{\"captured_at\":\"2026-01-02T00:00:00Z\",\"x\":1}\n";
        let wrong = "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\nfrom=\"x\": expected a time\n";
        let moved = "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nConnection: close\r\n\r\n";
        let cut = "HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{\"captured_at\":\"2025-12-31T00:00:00Z\"}\n{\"captu";
        let storers = [old, new, wrong, moved, cut].map(storer);
        let found = search(&storers, &query(&[("text", "x")]));
        let times: Vec<&str> = found.messages.iter().map(|message| &*message.captured_at).collect();
        // The beginning of an incomplete answer is shown, too.
        assert_eq!(times, ["2026-01-02T00:00:00Z", "2026-01-01T00:00:00Z", "2025-12-31T00:00:00Z"]);
        assert_eq!((found.failures.len(), found.storers), (3, 5), "{:?}", found.failures);
        assert!(found.failures.iter().any(|(_, error)| error.contains("expected a time")), "{:?}", found.failures);
    }

    #[test]
    fn answer_that_is_too_large_is_named() {
        let line = format!("{{\"captured_at\":\"2026-01-01T00:00:00Z\",\"payload\":\"{}\"}}\n", "x".repeat(64 << 10));
        let answer = format!("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{}", line.repeat(80));
        let found = search(&[storer(answer.leak())], &query(&[]));
        assert!(found.is_limited && found.messages.len() < 80);
        assert!(found.failures.iter().any(|(_, error)| error.contains("larger than 4 MiB")), "{:?}", found.failures);
    }

    #[test]
    fn addresses_of_one_storer_are_one() {
        let message = |second: &str| Message { captured_at: second.to_owned(), ..Message::default() };
        let answer = |messages: Vec<Message>| Answer { messages, ..Answer::default() };
        let refused = || Answer { failure: Some(Failure::Refused("refused".to_owned())), ..Answer::default() };
        let mut found = Found::default();
        let same = || answer(vec![message("1"), message("2")]);
        found.add("one:9605", vec![refused(), same(), same()]);
        assert_eq!((found.messages.len(), found.failures.len()), (2, 0));
        found.add("two:9605", vec![answer(vec![message("1")])]);
        found.add("three:9605", vec![refused()]);
        assert_eq!((found.messages.len(), found.failures), (3, vec![("three:9605".to_owned(), "refused".to_owned())]));
    }
}
