//! The UDP ports and their kinds of traffic.

use sekiwake_record::Kind;

/// The UDP destination ports of each kind of traffic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ports {
    syslog: Vec<u16>,
    xflow: Vec<u16>,
    trap: Vec<u16>,
    /// The kind of every port, so that a look-up costs one load.
    kinds: Box<[Option<Kind>]>,
}

/// A port was set for two kinds.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("port {port} is set for both {first} and {second}")]
pub struct PortConflict {
    /// The port.
    pub port: u16,
    /// The kind that it was set for first.
    pub first: Kind,
    /// The other kind.
    pub second: Kind,
}

impl Ports {
    /// Ports of syslog, of flow records and of SNMP traps. A port may be listed twice for one kind.
    pub fn new(syslog: Vec<u16>, xflow: Vec<u16>, trap: Vec<u16>) -> Result<Ports, PortConflict> {
        let mut kinds = vec![None; usize::from(u16::MAX) + 1].into_boxed_slice();
        for (second, ports) in [(Kind::Syslog, &syslog), (Kind::Xflow, &xflow), (Kind::SnmpTrap, &trap)] {
            for &port in ports {
                match kinds[usize::from(port)].replace(second) {
                    Some(first) if first != second => return Err(PortConflict { port, first, second }),
                    _ => {}
                }
            }
        }
        Ok(Ports { syslog, xflow, trap, kinds })
    }

    /// The kind of datagrams to `port`; `None` if no setting claims it.
    #[inline]
    pub fn kind_of(&self, port: u16) -> Option<Kind> {
        self.kinds[usize::from(port)]
    }

    /// The ports of one kind, in the order of the setting.
    pub fn of(&self, kind: Kind) -> &[u16] {
        match kind {
            Kind::Syslog => &self.syslog,
            Kind::Xflow => &self.xflow,
            Kind::SnmpTrap => &self.trap,
        }
    }

    /// All ports, kind by kind.
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        Kind::ALL.into_iter().flat_map(|kind| self.of(kind)).copied()
    }
}

impl Default for Ports {
    /// 514 for syslog, 2055, 9995, 9996, 4739 and 6343 for flow records, 162 for traps.
    fn default() -> Ports {
        Ports::new(vec![514], vec![2055, 9995, 9996, 4739, 6343], vec![162]).expect("no port is of two kinds")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_has_the_kind_of_its_setting_and_others_have_none() {
        let ports = Ports::default();
        assert_eq!(ports.kind_of(514), Some(Kind::Syslog));
        assert_eq!(ports.kind_of(6343), Some(Kind::Xflow));
        assert_eq!(ports.kind_of(162), Some(Kind::SnmpTrap));
        assert_eq!([0, 161, 65_535].map(|port| ports.kind_of(port)), [None; 3]);
        assert_eq!(ports.iter().count(), 7);
    }

    #[test]
    fn port_of_two_kinds_is_rejected_and_one_listed_twice_is_not() {
        assert!(Ports::new(vec![514, 514], vec![], vec![65_535]).is_ok());
        let conflict = PortConflict { port: 514, first: Kind::Syslog, second: Kind::SnmpTrap };
        assert_eq!(Ports::new(vec![514], vec![], vec![514]), Err(conflict));
    }
}
