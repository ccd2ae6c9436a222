//! Whom to notify, as `SEKIWAKE_NOTIFY` says it.
//!
//! ```text
//! alertmanager+http://[user:password@]host[:port][/prefix][?label.NAME=VALUE&...]      https as well
//! webhook+http://[user:password@]host[:port]/path[?query]                              https as well
//! syslog+udp://host[:514][?facility=daemon&severity=warning]
//! ```

use std::fmt;

use base64::{Engine, prelude::BASE64_STANDARD};
use sekiwake_identify::syslog::{parse_facility, parse_severity};
use sekiwake_settings::percent_decoded;
use ureq::http::Uri;

/// The most notifiers.
const MAX_NOTIFIERS: usize = 16;

/// Labels of alerts that are ours to set.
const OWN_LABELS: [&str; 6] = ["alertname", "severity", "service", "kind", "series", "source"];

/// One to be notified.
#[derive(Clone, PartialEq, Eq)]
pub struct Notifier {
    pub(super) kind: NotifierKind,
    label: String,
}

#[derive(Clone, PartialEq, Eq)]
pub(super) enum NotifierKind {
    Alertmanager { url: String, authorization: Option<String>, labels: Vec<(String, String)> },
    Webhook { url: String, authorization: Option<String> },
    Syslog { host: String, port: u16, priority: u8 },
}

/// All of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notifiers(Vec<Notifier>);

/// Something that is no notifier: which one of the list, and what is wrong with it. Says nothing of what may be a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("number {number}: {wrong}")]
pub struct NotifyError {
    number: usize,
    wrong: String,
}

impl Notifiers {
    /// Reads URIs, separated by white space.
    ///
    /// # Errors
    /// The first that is none.
    pub fn parse(text: &str) -> Result<Notifiers, NotifyError> {
        let mut notifiers: Vec<Notifier> = Vec::new();
        for (index, uri) in text.split_whitespace().enumerate() {
            let wrong = |wrong: &str| NotifyError { number: index + 1, wrong: wrong.to_owned() };
            let notifier = Notifier::parse(uri).map_err(|told| wrong(&told))?;
            if notifiers.iter().any(|other| other.label == notifier.label) {
                return Err(wrong("it is listed twice"));
            }
            notifiers.push(notifier);
            if notifiers.len() > MAX_NOTIFIERS {
                return Err(wrong("there are 16 at most"));
            }
        }
        Ok(Notifiers(notifiers))
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Notifier> {
        self.0.iter()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Notifier {
    fn parse(text: &str) -> Result<Notifier, String> {
        const SCHEMES: &str =
            "a URI with the scheme alertmanager+http, alertmanager+https, webhook+http, webhook+https or syslog+udp";
        let (scheme, rest) = text.split_once("://").ok_or(SCHEMES)?;
        let (kind, transport) = scheme.split_once('+').ok_or(SCHEMES)?;
        let parse = |transport: &str| format!("{transport}://{rest}").parse::<Uri>().map_err(|error| error.to_string());
        let is_http = matches!(transport, "http" | "https");
        let uri = match (kind, transport) {
            ("alertmanager" | "webhook", _) if is_http => parse(transport)?,
            ("syslog", "udp") => parse("http")?,
            _ => return Err(SCHEMES.to_owned()),
        };
        let authority = uri.authority().ok_or("a host is missing")?;
        let (host, port) = (authority.host(), authority.port_u16());
        // What is too large for a port is none to the parser.
        let after_userinfo = authority.as_str().rsplit_once('@').map_or(authority.as_str(), |(_, rest)| rest);
        let has_port = after_userinfo.len() > host.len();
        if host.is_empty() || port == Some(0) || has_port != port.is_some() {
            return Err("a host, and a port from 1 to 65535".to_owned());
        }
        let userinfo =
            authority.as_str().rsplit_once('@').map(|(userinfo, _)| percent_decoded(userinfo)).transpose()?;
        let authorization = userinfo.map(|userinfo| format!("Basic {}", BASE64_STANDARD.encode(userinfo)));
        let place = port.map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        let label = format!("{scheme}://{place}").to_lowercase();
        let path = uri.path().trim_end_matches('/');
        let kind = match kind {
            "alertmanager" => NotifierKind::Alertmanager {
                url: format!("{transport}://{place}{path}/api/v2/alerts"),
                authorization,
                labels: labels(uri.query().unwrap_or_default())?,
            },
            "webhook" => {
                let query = uri.query().map_or_else(String::new, |query| format!("?{query}"));
                NotifierKind::Webhook { url: format!("{transport}://{place}{}{query}", uri.path()), authorization }
            }
            _ => {
                if !path.is_empty() || authorization.is_some() {
                    return Err("syslog+udp takes a host, a port and options".to_owned());
                }
                let priority = priority(uri.query().unwrap_or_default())?;
                let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
                NotifierKind::Syslog { host, port: port.unwrap_or(514), priority }
            }
        };
        // Two webhooks may be on one host; what tells them apart may be a secret, and is not shown.
        let label = match &kind {
            NotifierKind::Webhook { url, .. } => {
                format!("{label}#{:04x}", xxhash_rust::xxh3::xxh3_64(url.as_bytes()) & 0xffff)
            }
            _ => label,
        };
        Ok(Notifier { kind, label })
    }

    /// What it is called in metrics and logs: no secrets, no path.
    pub fn label(&self) -> &str {
        &self.label
    }
}

impl fmt::Debug for Notifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.label)
    }
}

impl fmt::Display for Notifiers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, notifier) in self.0.iter().enumerate() {
            write!(f, "{}{}", if index > 0 { " " } else { "" }, notifier.label)?;
        }
        Ok(())
    }
}

fn options(query: &str) -> Result<Vec<(String, String)>, String> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=').ok_or("an option without a value, after the ?")?;
            Ok((name.to_owned(), percent_decoded(value)?))
        })
        .collect()
}

fn labels(query: &str) -> Result<Vec<(String, String)>, String> {
    let mut labels: Vec<(String, String)> = Vec::new();
    for (name, value) in options(query)? {
        let takes =
            || format!("{name}: Alertmanager takes label.NAME=VALUE, a letter first, then letters, digits and _");
        let label = name.strip_prefix("label.").ok_or_else(takes)?;
        let is_name = label.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if !is_name || value.is_empty() {
            return Err(takes());
        }
        if OWN_LABELS.contains(&label) || labels.iter().any(|(other, _)| other == label) {
            return Err(format!("{name}: this label is set already"));
        }
        labels.push((label.to_owned(), value));
    }
    Ok(labels)
}

fn priority(query: &str) -> Result<u8, String> {
    // daemon.warning
    let (mut facility, mut severity) = (3, 4);
    for (name, value) in options(query)? {
        match name.as_str() {
            "facility" => facility = parse_facility(&value).ok_or("facility: a keyword such as daemon, or 0 to 23")?,
            "severity" => severity = parse_severity(&value).ok_or("severity: a keyword such as warning, or 0 to 7")?,
            _ => return Err(format!("{name}: syslog takes facility and severity")),
        }
    }
    Ok(facility << 3 | severity)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Notifier {
        Notifiers::parse(text).unwrap().0.remove(0)
    }

    #[test]
    fn uris_say_whom_and_how() {
        let alertmanager =
            one("alertmanager+https://me:s%40crt@am.example.net:9093/am/?label.site=ams&label.team=net%20ops");
        let labels = vec![("site".to_owned(), "ams".to_owned()), ("team".to_owned(), "net ops".to_owned())];
        let url = "https://am.example.net:9093/am/api/v2/alerts".to_owned();
        let authorization = Some(format!("Basic {}", BASE64_STANDARD.encode("me:s@crt")));
        assert!(alertmanager.kind == NotifierKind::Alertmanager { url, authorization, labels });
        assert_eq!(alertmanager.label(), "alertmanager+https://am.example.net:9093");
        let webhook = one("webhook+http://[2001:db8::7]/hook?token=secret");
        assert!(
            webhook.kind
                == NotifierKind::Webhook {
                    url: "http://[2001:db8::7]/hook?token=secret".to_owned(),
                    authorization: None
                }
        );
        let syslog = one("syslog+udp://[2001:db8::7]?facility=local3&severity=err");
        assert!(
            syslog.kind == NotifierKind::Syslog { host: "2001:db8::7".to_owned(), port: 514, priority: 19 * 8 + 3 }
        );
    }

    #[test]
    fn secrets_are_not_shown() {
        let all = Notifiers::parse("webhook+https://user:pass@h/token?key=k alertmanager+http://user:pass@h").unwrap();
        for shown in [all.to_string(), format!("{all:?}")] {
            assert!(!["pass", "token", "key"].iter().any(|secret| shown.contains(secret)), "{shown}");
        }
        let wrong = Notifiers::parse("webhook+http://ok/ mailto:secret@example.net").unwrap_err().to_string();
        assert!(wrong.starts_with("number 2: ") && !wrong.contains("secret"), "{wrong}");
    }

    #[test]
    fn what_is_no_notifier_is_refused() {
        for wrong in [
            "alertmanager://h",
            "http://h",
            "webhook+ftp://h",
            "webhook+http://",
            "webhook+http://:80",
            "webhook+http://h:0",
            "webhook+http://h:99999",
            "webhook+http://me:secret@h:70000",
            "syslog+udp://h:",
            "alertmanager+http://h?secret",
            "syslog+udp://h/path",
            "syslog+udp://h?x=1",
            "syslog+udp://h?facility=99",
            "syslog+tcp://h",
            "alertmanager+http://h?site=ams",
            "alertmanager+http://h?label.alertname=x",
            "alertmanager+http://h?label.9=x",
            "alertmanager+http://h?label.a=%zz",
            "alertmanager+http://h alertmanager+http://h",
        ] {
            assert!(Notifiers::parse(wrong).is_err(), "{wrong}");
        }
        assert!(Notifiers::parse("").unwrap().is_empty());
    }
}
