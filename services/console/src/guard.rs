//! Who may see the page: the check of the header `Host`, and the token.

use std::{fmt, net::Ipv6Addr};

use sekiwake_runtime::SiteRequest;
use sha2::{Digest, Sha256};

/// The name of the cookie that holds the token.
const COOKIE: &str = "sekiwake-console";
const MIN_TOKEN: usize = 16;
const MAX_TOKEN: usize = 512;

/// Who may see the page.
#[derive(Clone, Debug)]
pub struct Access {
    /// The token.
    pub token: Token,
    /// The names under which the page is reached, besides `localhost` and addresses; in lower case.
    pub hosts: Vec<String>,
}

/// The token.
#[derive(Clone)]
pub enum Token {
    /// Anyone who reaches the port may see the page.
    NotNeeded,
    /// None is set, and the port may be reached by others: there is no page.
    Missing,
    /// Its hash.
    Required([u8; 32]),
}

/// Whether a request may see the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Allowed,
    /// The header `Host` names another host: a page of another site that points its name here.
    WrongHost,
    /// The page has to be enabled first.
    NotEnabled,
    /// The token is not known yet, or wrong.
    NeedsToken,
}

impl Token {
    /// The token of this text, if it is one.
    pub fn new(text: &str) -> Option<Token> {
        let is_valid = text.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b';' | b',' | b'"' | b'\\'));
        (is_valid && (MIN_TOKEN..=MAX_TOKEN).contains(&text.len())).then(|| Token::Required(hash(text)))
    }

    /// Whether it is this one. The time it takes says nothing about the token: hashes are compared,
    /// and all their bytes.
    fn is(&self, text: &str) -> bool {
        match self {
            Token::NotNeeded => true,
            Token::Missing => false,
            Token::Required(expected) => {
                let differing = hash(text).iter().zip(expected).fold(0, |sum, (a, b)| sum | (a ^ b));
                std::hint::black_box(differing) == 0
            }
        }
    }
}

/// Without the hash.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Token::NotNeeded => "NotNeeded",
            Token::Missing => "Missing",
            Token::Required(_) => "Required",
        })
    }
}

fn hash(text: &str) -> [u8; 32] {
    Sha256::digest(text.as_bytes()).into()
}

impl Access {
    /// Whether this request may see the page.
    pub(crate) fn check(&self, request: &SiteRequest) -> Verdict {
        if !self.is_own_host(request.host.as_deref().unwrap_or_default()) {
            return Verdict::WrongHost;
        }
        match self.token {
            Token::NotNeeded => Verdict::Allowed,
            Token::Missing => Verdict::NotEnabled,
            Token::Required(_) => {
                let cookies = request.cookie.as_deref().unwrap_or_default().split(';');
                let mut values = cookies.filter_map(|cookie| cookie.trim().strip_prefix(COOKIE)?.strip_prefix('='));
                match values.any(|value| self.token.is(value)) {
                    true => Verdict::Allowed,
                    false => Verdict::NeedsToken,
                }
            }
        }
    }

    /// Whether the page asks for no token.
    pub(crate) fn token_is_unneeded(&self) -> bool {
        matches!(self.token, Token::NotNeeded)
    }

    /// Whether a form was sent by a page of this console. Only browsers send the header.
    pub(crate) fn is_own_form(&self, request: &SiteRequest) -> bool {
        let Some(origin) = &request.origin else { return true };
        let origin = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        origin.zip(request.host.as_deref()).is_some_and(|(origin, host)| origin.eq_ignore_ascii_case(host))
    }

    /// The cookie that keeps this token, if one is required and it is the right one.
    pub(crate) fn cookie(&self, token: &str) -> Option<String> {
        let token = token.trim();
        let is_required = matches!(self.token, Token::Required(_));
        (is_required && self.token.is(token))
            .then(|| format!("{COOKIE}={token}; Path=/; HttpOnly; SameSite=Strict; Max-Age=2592000"))
    }

    /// A name that is not one of ours may have been pointed at this address by another site's
    /// page, which could then read this one. An address cannot.
    fn is_own_host(&self, host: &str) -> bool {
        let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((address, port)) => {
                return address.parse::<Ipv6Addr>().is_ok() && (port.is_empty() || port.starts_with(':'));
            }
            None => host.split_once(':').map_or(host, |(name, _)| name),
        };
        let name = name.to_ascii_lowercase();
        name == "localhost" || name.parse::<std::net::Ipv4Addr>().is_ok() || self.hosts.contains(&name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "0123456789abcdef";

    fn access(token: Token) -> Access {
        Access { token, hosts: vec!["console.example.net".to_owned()] }
    }

    fn request(host: &str, cookie: &str) -> SiteRequest {
        SiteRequest { host: Some(host.to_owned()), cookie: Some(cookie.to_owned()), ..SiteRequest::default() }
    }

    #[test]
    fn only_own_names_and_addresses_are_hosts() {
        let access = access(Token::NotNeeded);
        let own = ["localhost", "LOCALHOST:9608", "127.0.0.1:9608", "198.51.100.7", "[2001:db8::1]:9608", "[::1]"];
        for host in own.into_iter().chain(["console.example.net:9608", "Console.Example.Net"]) {
            assert_eq!(access.check(&request(host, "")), Verdict::Allowed, "{host}");
        }
        let foreign =
            ["", "example.net", "localhost.example.net", "console.example.net.", "[::1", "[x]", "::1", "[::1]x"];
        for host in foreign {
            assert_eq!(access.check(&request(host, "")), Verdict::WrongHost, "{host}");
        }
    }

    #[test]
    fn token_is_needed_in_the_cookie() {
        let access = access(Token::new(TOKEN).unwrap());
        let right = access.cookie(TOKEN).unwrap();
        let pair = right.split(';').next().unwrap();
        for cookie in [pair, &format!("a=b; {pair}"), &format!("{COOKIE}=wrong; {pair}")] {
            assert_eq!(access.check(&request("localhost", cookie)), Verdict::Allowed, "{cookie}");
        }
        for cookie in ["", COOKIE, &format!("{COOKIE}="), &format!("x{pair}"), &pair[..pair.len() - 1]] {
            assert_eq!(access.check(&request("localhost", cookie)), Verdict::NeedsToken, "{cookie}");
        }
        assert_eq!(access.cookie("0123456789abcdeX"), None);
        assert!(right.contains("HttpOnly") && right.contains("SameSite=Strict"));
    }

    #[test]
    fn without_a_token_a_wide_port_shows_no_page() {
        assert_eq!(access(Token::Missing).check(&request("localhost", "")), Verdict::NotEnabled);
        assert_eq!(access(Token::Missing).cookie(""), None);
    }

    #[test]
    fn without_need_of_a_token_no_cookie_is_set() {
        assert_eq!(access(Token::NotNeeded).cookie("x; Domain=example.net"), None);
    }

    #[test]
    fn form_of_another_site_is_rejected() {
        let access = access(Token::new(TOKEN).unwrap());
        let of =
            |origin: Option<&str>| SiteRequest { origin: origin.map(str::to_owned), ..request("localhost:9608", "") };
        for own in [None, Some("http://localhost:9608"), Some("https://LOCALHOST:9608")] {
            assert!(access.is_own_form(&of(own)), "{own:?}");
        }
        for foreign in
            ["null", "", "http://example.net", "http://localhost", "localhost:9608", "http://localhost:9608/"]
        {
            assert!(!access.is_own_form(&of(Some(foreign))), "{foreign}");
        }
    }

    #[test]
    fn token_is_long_and_printable() {
        for wrong in ["", "short", "0123456789abcde", "0123456789abcdef;", "0123456789 abcdef", "0123456789abcdé!"] {
            assert!(Token::new(wrong).is_none(), "{wrong}");
        }
        assert!(Token::new(&"x".repeat(513)).is_none());
        assert_eq!(format!("{:?}", Token::new(TOKEN).unwrap()), "Required");
    }
}
