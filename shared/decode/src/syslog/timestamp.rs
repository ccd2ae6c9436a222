//! Timestamps at the start of a text, as devices write them.
//!
//! ```text
//! Mmm dd hh:mm:ss     RFC 3164 §4.1.2; with a year, a fraction or a zone behind or between
//! yyyy Mmm dd hh:mm:ss
//! yyyy-mm-dd hh:mm:ss and with T, a fraction, a zone
//! 1650972789.42       seconds since 1970
//! ```

const MONTHS: [&[u8; 3]; 12] =
    [b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec"];

/// Names of zones that devices write. Any capital letters could be a host.
const ZONES: [&[u8]; 37] = [
    b"UTC", b"GMT", b"Z", b"EST", b"EDT", b"CST", b"CDT", b"MST", b"MDT", b"PST", b"PDT", b"AKST", b"AKDT", b"HST",
    b"WET", b"WEST", b"CET", b"CEST", b"EET", b"EEST", b"BST", b"MSK", b"IST", b"SGT", b"HKT", b"JST", b"KST", b"AWST",
    b"ACST", b"AEST", b"AEDT", b"NZST", b"NZDT", b"BRT", b"ART", b"SAST", b"PKT",
];

/// The length of a timestamp at the start of `text`, bytes. `None` if there is none.
pub(super) fn length(text: &[u8]) -> Option<usize> {
    let reader = || Reader { text, at: 0 };
    if text.first()?.is_ascii_digit() {
        reader().iso().or_else(|| reader().year_first()).or_else(|| reader().epoch())
    } else {
        reader().month_first()
    }
}

struct Reader<'a> {
    text: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn rest(&self) -> &[u8] {
        &self.text[self.at..]
    }

    /// Moves past one of these.
    fn sign(&mut self, signs: &[u8]) -> Option<u8> {
        let sign = *self.rest().first().filter(|byte| signs.contains(byte))?;
        self.at += 1;
        Some(sign)
    }

    /// Moves past a number of so many digits.
    fn number(&mut self, least: usize, most: usize) -> Option<u64> {
        let digits = self.rest().iter().take(most + 1).take_while(|byte| byte.is_ascii_digit()).count();
        if digits < least || digits > most {
            return None;
        }
        let value = self.rest()[..digits].iter().fold(0, |value, digit| value * 10 + u64::from(digit - b'0'));
        self.at += digits;
        Some(value)
    }

    fn spaces(&mut self) -> Option<usize> {
        let spaces = self.rest().iter().take_while(|&&byte| byte == b' ').count();
        self.at += spaces;
        (spaces > 0).then_some(spaces)
    }

    fn month(&mut self) -> Option<()> {
        MONTHS.iter().find(|&&month| self.rest().starts_with(month))?;
        self.at += 3;
        Some(())
    }

    fn day(&mut self) -> Option<()> {
        self.spaces()?;
        self.number(1, 2).filter(|day| (1..=31).contains(day)).map(|_| ())
    }

    /// `hh:mm:ss`, a fraction and a zone.
    fn time(&mut self) -> Option<usize> {
        self.number(1, 2).filter(|&hour| hour < 24)?;
        self.sign(b":")?;
        self.number(2, 2).filter(|&minute| minute < 60)?;
        self.sign(b":")?;
        self.number(2, 2).filter(|&second| second <= 60)?;
        // Huawei devices write two fractions.
        for _ in 0..2 {
            let before = self.at;
            if self.sign(b".,").and_then(|_| self.number(1, 9)).is_none() {
                self.at = before;
            }
        }
        Some(self.at)
    }

    /// A zone: directly behind, or behind a space.
    fn zone(&mut self) -> usize {
        let before = self.at;
        let spaces = self.spaces().unwrap_or_default();
        let name = self.rest().iter().take_while(|byte| byte.is_ascii_uppercase()).count();
        let ends = matches!(self.rest().get(name), None | Some(b' ' | b':'));
        let is_name = ends && ZONES.contains(&&self.rest()[..name]);
        if spaces <= 1 && is_name {
            self.at += name;
        } else if spaces > 1 || self.offset().is_none() {
            self.at = before;
        }
        self.at
    }

    /// `+02:00`, `-0330`.
    fn offset(&mut self) -> Option<()> {
        self.sign(b"+-")?;
        if self.number(4, 4).is_some() {
            return Some(());
        }
        self.number(2, 2)?;
        self.sign(b":")?;
        self.number(2, 2).map(|_| ())
    }

    /// A year between date and time, or behind the time.
    fn year(&mut self) -> Option<()> {
        let before = self.at;
        let year = self.spaces().and_then(|_| self.number(4, 4)).filter(|year| (1970..2200).contains(year));
        // A year ends; a host such as `2001-sw` does not.
        if year.is_none() || !matches!(self.rest().first(), None | Some(b' ' | b':')) {
            self.at = before;
            return None;
        }
        Some(())
    }

    fn month_first(&mut self) -> Option<usize> {
        self.month()?;
        self.day()?;
        let has_year = self.year().is_some();
        self.spaces()?;
        self.time()?;
        if !has_year {
            self.year();
        }
        Some(self.zone())
    }

    fn year_first(&mut self) -> Option<usize> {
        self.number(4, 4)?;
        self.spaces()?;
        self.month()?;
        self.day()?;
        self.spaces()?;
        self.time()?;
        Some(self.zone())
    }

    fn iso(&mut self) -> Option<usize> {
        self.number(4, 4)?;
        let sign = self.sign(b"-/")?;
        self.number(1, 2).filter(|month| (1..=12).contains(month))?;
        self.sign(&[sign])?;
        self.number(1, 2).filter(|day| (1..=31).contains(day))?;
        self.sign(b"T ")?;
        self.time()?;
        Some(self.zone())
    }

    /// Ten digits and a fraction, up to a space.
    fn epoch(&mut self) -> Option<usize> {
        self.number(10, 10)?;
        if self.sign(b".").is_some() {
            self.number(1, 9)?;
        }
        matches!(self.rest().first(), Some(b' ')).then_some(self.at)
    }
}
