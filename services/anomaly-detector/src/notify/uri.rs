//! The URIs of `SEKIWAKE_NOTIFY`.
//!
//! ```text
//! alertmanager+http://[user:password@]host[:port][/prefix][?label.NAME=VALUE&...]      or https,
//!                                                with or without /api/v2/alerts at the end
//! webhook+http://[user:password@]host[:port]/path[?query]                              or https
//! syslog+udp://host[:514][?facility=daemon&severity=warning]
//! ```

use std::fmt;

use base64::{Engine, prelude::BASE64_STANDARD};
use sekiwake_identify::syslog::{parse_facility, parse_severity};
use sekiwake_settings::{percent_decoded, percent_decoded_bytes};
use ureq::http::Uri;

/// The most notifiers.
const MAX_NOTIFIERS: usize = 16;

/// Where Alertmanager takes alerts, below the prefix of its routes.
const ALERTS_PATH: &str = "/api/v2/alerts";

/// Labels that the detector sets itself.
const OWN_LABELS: [&str; 6] = ["alertname", "severity", "service", "kind", "series", "source"];

/// A receiver of notifications.
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

/// All configured notifiers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notifiers(Vec<Notifier>);

/// An invalid notifier: its number in the list, and the reason. Never shows the URI, which may
/// contain secrets.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("number {number}: {reason}")]
pub struct NotifyError {
    number: usize,
    reason: String,
}

impl NotifierKind {
    /// The path that is posted to, for people. That of a webhook is often its only secret.
    pub(super) fn shown_path(&self) -> Option<&str> {
        match self {
            NotifierKind::Alertmanager { url, .. } => url.match_indices('/').nth(2).map(|(at, _)| &url[at..]),
            NotifierKind::Webhook { .. } => Some("the path of this URI, which may be secret"),
            NotifierKind::Syslog { .. } => None,
        }
    }
}

impl Notifiers {
    /// Parses URIs, separated by white space.
    ///
    /// # Errors
    /// The first invalid one.
    pub fn parse(text: &str) -> Result<Notifiers, NotifyError> {
        let mut notifiers: Vec<Notifier> = Vec::new();
        for (index, uri) in text.split_whitespace().enumerate() {
            let invalid = |reason: &str| NotifyError { number: index + 1, reason: reason.to_owned() };
            let notifier = Notifier::parse(uri).map_err(|reason| invalid(&reason))?;
            if notifiers.iter().any(|other| other.label == notifier.label) {
                return Err(invalid("listed twice"));
            }
            notifiers.push(notifier);
            if notifiers.len() > MAX_NOTIFIERS {
                return Err(invalid("at most 16 notifiers"));
            }
        }
        Ok(Notifiers(notifiers))
    }

    /// All notifiers.
    pub fn iter(&self) -> impl Iterator<Item = &Notifier> {
        self.0.iter()
    }

    /// Whether the list is empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Notifier {
    fn parse(text: &str) -> Result<Notifier, String> {
        const SCHEMES: &str =
            "expected the scheme alertmanager+http, alertmanager+https, webhook+http, webhook+https or syslog+udp";
        let (scheme, rest) = text.split_once("://").ok_or(SCHEMES)?;
        let scheme = scheme.to_ascii_lowercase();
        let (kind, transport) = scheme.split_once('+').ok_or(SCHEMES)?;
        let parse = |transport: &str| format!("{transport}://{rest}").parse::<Uri>().map_err(|error| error.to_string());
        let is_http = matches!(transport, "http" | "https");
        let uri = match (kind, transport) {
            ("alertmanager" | "webhook", _) if is_http => parse(transport)?,
            ("syslog", "udp") => parse("http")?,
            _ => return Err(SCHEMES.to_owned()),
        };
        let authority = uri.authority().ok_or("the host is missing")?;
        let host = authority.host();
        let port = authority.port_u16();
        // The parser returns no port if the number is too large.
        let after_userinfo = authority.as_str().rsplit_once('@').map_or(authority.as_str(), |(_, rest)| rest);
        let has_port = after_userinfo.len() > host.len();
        if host.is_empty() || port == Some(0) || has_port != port.is_some() {
            return Err("expected a host, and a port from 1 to 65535 if any".to_owned());
        }
        let userinfo =
            authority.as_str().rsplit_once('@').map(|(userinfo, _)| percent_decoded_bytes(userinfo)).transpose()?;
        let authorization = userinfo.map(|userinfo| format!("Basic {}", BASE64_STANDARD.encode(userinfo)));
        let address = port.map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        let label = format!("{scheme}://{address}").to_lowercase();
        let path = uri.path().trim_end_matches('/');
        let kind = match kind {
            "alertmanager" => NotifierKind::Alertmanager {
                url: format!("{transport}://{address}{}{ALERTS_PATH}", prefix_of(path)),
                authorization,
                labels: labels(uri.query().unwrap_or_default())?,
            },
            "webhook" => {
                let query = uri.query().map_or_else(String::new, |query| format!("?{query}"));
                NotifierKind::Webhook { url: format!("{transport}://{address}{}{query}", uri.path()), authorization }
            }
            _ => {
                if !path.is_empty() || authorization.is_some() {
                    return Err("expected only a host, a port and options for syslog+udp".to_owned());
                }
                let priority = priority(uri.query().unwrap_or_default())?;
                let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
                NotifierKind::Syslog { host, port: port.unwrap_or(514), priority }
            }
        };
        // Webhooks may share a host. A hash distinguishes them, because the path may be secret.
        let label = match &kind {
            NotifierKind::Webhook { url, .. } => {
                format!("{label}#{:04x}", xxhash_rust::xxh3::xxh3_64(url.as_bytes()) & 0xffff)
            }
            _ => label,
        };
        Ok(Notifier { kind, label })
    }

    /// Its name in metrics and logs, without secrets or path.
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

/// The prefix of Alertmanager's routes, without the path of its API if that is part of the URI.
fn prefix_of(path: &str) -> &str {
    let known = [ALERTS_PATH, "/api/v2", "/api/v1/alerts", "/api/v1"];
    let prefix = known.iter().find_map(|suffix| path.strip_suffix(suffix)).unwrap_or(path);
    prefix.trim_end_matches('/')
}

fn options(query: &str) -> Result<Vec<(String, String)>, String> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (name, value) =
                pair.split_once('=').ok_or("option without a value, expected NAME=VALUE after the ?")?;
            Ok((name.to_owned(), percent_decoded(value)?))
        })
        .collect()
}

fn labels(query: &str) -> Result<Vec<(String, String)>, String> {
    let mut labels: Vec<(String, String)> = Vec::new();
    for (name, value) in options(query)? {
        let takes = || format!("{name}: expected label.NAME=VALUE, where NAME is a letter, then letters, digits and _");
        let label = name.strip_prefix("label.").ok_or_else(takes)?;
        let is_name = label.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if !is_name || value.is_empty() {
            return Err(takes());
        }
        if OWN_LABELS.contains(&label) || labels.iter().any(|(other, _)| other == label) {
            return Err(format!("{name}: this label is already set"));
        }
        labels.push((label.to_owned(), value));
    }
    Ok(labels)
}

fn priority(query: &str) -> Result<u8, String> {
    // daemon.warning
    let mut facility = 3;
    let mut severity = 4;
    for (name, value) in options(query)? {
        match name.as_str() {
            "facility" => {
                facility = parse_facility(&value).ok_or("facility: expected a keyword such as daemon, or 0 to 23")?
            }
            "severity" => {
                severity = parse_severity(&value).ok_or("severity: expected a keyword such as warning, or 0 to 7")?
            }
            _ => return Err(format!("{name}: unknown option, expected facility or severity")),
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
    fn uris_are_parsed_for_all_kinds() {
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
    fn full_url_of_alertmanager_is_accepted() {
        for (text, url) in [
            ("alertmanager+http://am:9093", "http://am:9093/api/v2/alerts"),
            ("alertmanager+http://am:9093/api/v2/alerts", "http://am:9093/api/v2/alerts"),
            ("alertmanager+http://am:9093/api/v2/alerts/", "http://am:9093/api/v2/alerts"),
            ("alertmanager+http://am:9093/api/v2", "http://am:9093/api/v2/alerts"),
            ("alertmanager+http://am:9093/api/v1/alerts", "http://am:9093/api/v2/alerts"),
            ("alertmanager+http://h/am/api/v2/alerts?label.site=ams", "http://h/am/api/v2/alerts"),
            ("alertmanager+http://h/api", "http://h/api/api/v2/alerts"),
        ] {
            match one(text).kind {
                NotifierKind::Alertmanager { url: got, .. } => assert_eq!(got, url, "{text}"),
                _ => panic!("{text}"),
            }
            let path = &url[url[7..].find('/').unwrap() + 7..];
            assert_eq!(one(text).kind.shown_path(), Some(path), "{text}");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let all = Notifiers::parse("webhook+https://user:pass@h/token?key=k alertmanager+http://user:pass@h").unwrap();
        for shown in [all.to_string(), format!("{all:?}")] {
            assert!(!["pass", "token", "key"].iter().any(|secret| shown.contains(secret)), "{shown}");
        }
        assert_eq!(one("SysLog+UDP://h").label(), "syslog+udp://h");
        let error = Notifiers::parse("webhook+http://ok/ mailto:secret@example.net").unwrap_err().to_string();
        assert!(error.starts_with("number 2: ") && !error.contains("secret"), "{error}");
    }

    #[test]
    fn invalid_uris_are_rejected() {
        for invalid in [
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
            assert!(Notifiers::parse(invalid).is_err(), "{invalid}");
        }
        assert!(Notifiers::parse("").unwrap().is_empty());
    }
}
