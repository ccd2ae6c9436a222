//! Headers of RFC 3164, which describes what devices did, and of those that do otherwise.

use std::net::IpAddr;

use super::{Message, timestamp};

/// The longest TAG, bytes. RFC 3164 §4.1.3 says 32; programs write more.
const MAX_TAG: usize = 64;

/// The longest process id, bytes (RFC 5424 §6).
const MAX_PID: usize = 128;

/// Reads the header behind the PRI: what is left is the message.
pub(super) fn header<'a>(after_pri: &'a [u8], message: &mut Message<'a>) -> &'a [u8] {
    let text = trim(after_pri);
    // Check Point and Meraki devices write the version of RFC 5424 and other timestamps.
    let versioned = text.strip_prefix(b"1 ").map(trim).filter(|rest| timestamp::length(rest).is_some());
    let mut rest = versioned.unwrap_or(text);
    if versioned.is_none() {
        rest = sequence(rest, message);
    }
    let Some(after) = take_timestamp(rest, message) else {
        let from_origin = message.sequence.and_then(|_| origin(rest, message));
        return match from_origin {
            Some(after) => tag(after, message),
            None => tag(rest, message),
        };
    };
    rest = after;
    // Cisco devices end the timestamp with a colon, and have no host behind it.
    match rest.strip_prefix(b":") {
        Some(after) => rest = trim(after),
        None => {
            rest = trim(rest);
            if let Some(after) = hostname(rest, message) {
                rest = after;
            }
        }
    }
    if versioned.is_some()
        && let Some(after) = fields(rest, message)
    {
        return after;
    }
    tag(rest, message)
}

/// The number and colon that Cisco devices begin with. NX-OS and UCS leave the number out.
fn sequence<'a>(text: &'a [u8], message: &mut Message<'a>) -> &'a [u8] {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let Some(after) = text[digits..].strip_prefix(b": ") else { return text };
    let number = std::str::from_utf8(&text[..digits]).unwrap_or_default().parse();
    if digits > 0 && number.is_err() {
        return text;
    }
    message.sequence = number.ok();
    trim(after)
}

/// Takes a timestamp. The marks that Cisco devices write before one stay out of it: `*` for a clock
/// that was never set, `.` for one that has lost its source.
fn take_timestamp<'a>(text: &'a [u8], message: &mut Message<'a>) -> Option<&'a [u8]> {
    let text = text.strip_prefix(b"*").or_else(|| text.strip_prefix(b".")).unwrap_or(text);
    let (timestamp, rest) = text.split_at(timestamp::length(text)?);
    message.timestamp = Some(String::from_utf8_lossy(timestamp));
    Some(rest)
}

/// What Cisco devices write between sequence number and timestamp: `host: `, or `host node:` on IOS
/// XR.
fn origin<'a>(text: &'a [u8], message: &mut Message<'a>) -> Option<&'a [u8]> {
    let (host, after) = word(text);
    if host.is_empty() {
        return None;
    }
    let (hostname, node, rest) = match host.strip_suffix(b":") {
        Some(hostname) => (hostname, None, take_timestamp(trim(after), message)?),
        None => {
            let after = trim(after);
            let colon = after.iter().position(|byte| matches!(byte, b':' | b' ')).filter(|&at| after[at] == b':')?;
            (host, Some(&after[..colon]), take_timestamp(&after[colon + 1..], message)?)
        }
    };
    message.hostname = Some(String::from_utf8_lossy(hostname));
    message.node = node.map(String::from_utf8_lossy);
    Some(trim(rest.strip_prefix(b":").unwrap_or(rest)))
}

/// Takes a host. `None` if the next word is a tag, or the last one.
fn hostname<'a>(text: &'a [u8], message: &mut Message<'a>) -> Option<&'a [u8]> {
    let (word, rest) = word(text);
    let rest = trim(rest);
    let is_address = || std::str::from_utf8(word).is_ok_and(|word| word.parse::<IpAddr>().is_ok());
    let is_tag = || word.starts_with(b"%") || word.ends_with(b":") || (word.contains(&b'[') && word.contains(&b']'));
    if word.is_empty() || rest.is_empty() || is_no_host(word) || (is_tag() && !is_address()) {
        return None;
    }
    message.hostname = Some(String::from_utf8_lossy(word));
    // Cisco ASA: `host : %ASA-…`
    Some(rest.strip_prefix(b": ").map_or(rest, trim))
}

/// Whether a word has signs that no name of a host has: a pair `key=value`, JSON, CEF.
fn is_no_host(word: &[u8]) -> bool {
    word.iter().any(|byte| matches!(byte, b'=' | b'"' | b'{' | b'|' | b'<' | b'>' | b','))
}

/// Takes the fields that Check Point devices write behind the host: `app procid msgid [`.
fn fields<'a>(text: &'a [u8], message: &mut Message<'a>) -> Option<&'a [u8]> {
    let (app_name, rest) = word(text);
    let (procid, rest) = word(trim(rest));
    let (msgid, rest) = word(trim(rest));
    let rest = trim(rest);
    let is_header = !app_name.is_empty() && !procid.is_empty() && !msgid.is_empty() && rest.starts_with(b"[");
    if !is_header {
        return None;
    }
    let field = |text: &'a [u8]| (text != b"-").then(|| String::from_utf8_lossy(text));
    (message.app_name, message.procid, message.msgid) = (field(app_name), field(procid), field(msgid));
    Some(rest)
}

/// Takes a tag and a process id: `su: `, `sshd[42]: `, `%SYS-5-CONFIG_I: `.
fn tag<'a>(text: &'a [u8], message: &mut Message<'a>) -> &'a [u8] {
    let is_in_tag = |byte: &u8| byte.is_ascii_alphanumeric() || b"_-./%@#+*()~$&".contains(byte) || *byte >= 0x80;
    let length = text.iter().take(MAX_TAG + 1).take_while(|byte| is_in_tag(byte)).count();
    if length == 0 || length > MAX_TAG {
        return text;
    }
    let (name, mut rest) = text.split_at(length);
    let mut pid = None;
    if let Some(inside) = rest.strip_prefix(b"[") {
        let end = inside.iter().take(MAX_PID + 1).position(|byte| matches!(byte, b']' | b' '));
        let Some(end) = end.filter(|&end| end > 0 && inside[end] == b']') else { return text };
        pid = Some(String::from_utf8_lossy(&inside[..end]));
        rest = &inside[end + 1..];
    }
    // Some devices put a space before the colon. `CEF:0|` and `http://` are no tags.
    let has_gap = rest.starts_with(b" : ");
    let after = match rest {
        [b' ', b':', b' ', after @ ..] if has_gap => after,
        [b':', after @ ..] if pid.is_some() || matches!(after.first(), None | Some(b' ')) => after,
        [b' ', after @ ..] if pid.is_some() => after,
        _ => return text,
    };
    message.app_name = Some(String::from_utf8_lossy(name));
    message.procid = pid;
    trim(after)
}

/// Splits at the first space.
fn word(text: &[u8]) -> (&[u8], &[u8]) {
    text.split_at(text.iter().position(|&byte| byte == b' ').unwrap_or(text.len()))
}

fn trim(text: &[u8]) -> &[u8] {
    let spaces = text.iter().take_while(|&&byte| byte == b' ').count();
    &text[spaces..]
}
