//! What is known without a folder: the roots that modules begin at, textual conventions of
//! SNMPv2-TC, and SNMPv2-MIB, IF-MIB and SNMP-COMMUNITY-MIB as far as traps carry them. Names and
//! numbers are those of RFC 1155, 1213, 2578, 2579, 2863, 3418 and 3584.

use super::table::{Builder, Kind, Labels};

/// A name: its arcs, its module, and what it is.
type Name = (&'static str, &'static [u32], &'static str, Kind);

const SMI: &str = "SNMPv2-SMI";
const SNMP: &str = "SNMPv2-MIB";
const IF: &str = "IF-MIB";
const COMMUNITY: &str = "SNMP-COMMUNITY-MIB";

/// Names that other modules begin at, and notifications.
pub(super) const NAMES: &[Name] = &[
    ("ccitt", &[0], SMI, Kind::Other),
    ("iso", &[1], SMI, Kind::Other),
    ("joint-iso-ccitt", &[2], SMI, Kind::Other),
    ("org", &[1, 3], SMI, Kind::Other),
    ("dod", &[1, 3, 6], SMI, Kind::Other),
    ("internet", &[1, 3, 6, 1], SMI, Kind::Other),
    ("directory", &[1, 3, 6, 1, 1], SMI, Kind::Other),
    ("mgmt", &[1, 3, 6, 1, 2], SMI, Kind::Other),
    ("mib-2", &[1, 3, 6, 1, 2, 1], SMI, Kind::Other),
    ("transmission", &[1, 3, 6, 1, 2, 1, 10], SMI, Kind::Other),
    ("experimental", &[1, 3, 6, 1, 3], SMI, Kind::Other),
    ("private", &[1, 3, 6, 1, 4], SMI, Kind::Other),
    ("enterprises", &[1, 3, 6, 1, 4, 1], SMI, Kind::Other),
    ("security", &[1, 3, 6, 1, 5], SMI, Kind::Other),
    ("snmpV2", &[1, 3, 6, 1, 6], SMI, Kind::Other),
    ("snmpDomains", &[1, 3, 6, 1, 6, 1], SMI, Kind::Other),
    ("snmpProxys", &[1, 3, 6, 1, 6, 2], SMI, Kind::Other),
    ("snmpModules", &[1, 3, 6, 1, 6, 3], SMI, Kind::Other),
    ("zeroDotZero", &[0, 0], SMI, Kind::Other),
    ("system", &[1, 3, 6, 1, 2, 1, 1], SNMP, Kind::Other),
    ("interfaces", &[1, 3, 6, 1, 2, 1, 2], IF, Kind::Other),
    ("snmp", &[1, 3, 6, 1, 2, 1, 11], SNMP, Kind::Other),
    ("snmpMIB", &[1, 3, 6, 1, 6, 3, 1], SNMP, Kind::Other),
    ("snmpMIBObjects", &[1, 3, 6, 1, 6, 3, 1, 1], SNMP, Kind::Other),
    ("snmpTrap", &[1, 3, 6, 1, 6, 3, 1, 1, 4], SNMP, Kind::Other),
    ("snmpTraps", &[1, 3, 6, 1, 6, 3, 1, 1, 5], SNMP, Kind::Other),
    ("coldStart", &[1, 3, 6, 1, 6, 3, 1, 1, 5, 1], SNMP, Kind::Notification),
    ("warmStart", &[1, 3, 6, 1, 6, 3, 1, 1, 5, 2], SNMP, Kind::Notification),
    ("linkDown", &[1, 3, 6, 1, 6, 3, 1, 1, 5, 3], IF, Kind::Notification),
    ("linkUp", &[1, 3, 6, 1, 6, 3, 1, 1, 5, 4], IF, Kind::Notification),
    ("authenticationFailure", &[1, 3, 6, 1, 6, 3, 1, 1, 5, 5], SNMP, Kind::Notification),
    ("egpNeighborLoss", &[1, 3, 6, 1, 6, 3, 1, 1, 5, 6], SNMP, Kind::Notification),
    ("snmpTrapOID", &[1, 3, 6, 1, 6, 3, 1, 1, 4, 1], SNMP, Kind::Object),
    ("snmpTrapEnterprise", &[1, 3, 6, 1, 6, 3, 1, 1, 4, 3], SNMP, Kind::Object),
    ("snmpTrapAddress", &[1, 3, 6, 1, 6, 3, 18, 1, 3], COMMUNITY, Kind::Object),
    ("snmpTrapCommunity", &[1, 3, 6, 1, 6, 3, 18, 1, 4], COMMUNITY, Kind::Object),
    ("ifNumber", &[1, 3, 6, 1, 2, 1, 2, 1], IF, Kind::Object),
];

/// What an object or a type shows.
struct Shown {
    name: &'static str,
    hint: &'static str,
    labels: &'static [(i64, &'static str)],
}

const fn plain(name: &'static str) -> Shown {
    Shown { name, hint: "", labels: &[] }
}

const fn hinted(name: &'static str, hint: &'static str) -> Shown {
    Shown { name, hint, labels: &[] }
}

const fn labelled(name: &'static str, labels: &'static [(i64, &'static str)]) -> Shown {
    Shown { name, hint: "", labels }
}

/// RFC 2863: the administrative, and the operational status.
const ADMINISTRATIVE: &[(i64, &str)] = &[(1, "up"), (2, "down"), (3, "testing")];
const OPERATIONAL: &[(i64, &str)] =
    &[(1, "up"), (2, "down"), (3, "testing"), (4, "unknown"), (5, "dormant"), (6, "notPresent"), (7, "lowerLayerDown")];
const TRUTH: &[(i64, &str)] = &[(1, "true"), (2, "false")];

/// Below system (RFC 3418), 1 to 7.
const SYSTEM: [Shown; 7] = [
    hinted("sysDescr", "255a"),
    plain("sysObjectID"),
    plain("sysUpTime"),
    hinted("sysContact", "255a"),
    hinted("sysName", "255a"),
    hinted("sysLocation", "255a"),
    plain("sysServices"),
];

/// Columns of ifTable (RFC 2863, RFC 1213), 1 to 22.
const IF_TABLE: [Shown; 22] = [
    plain("ifIndex"),
    hinted("ifDescr", "255a"),
    plain("ifType"),
    plain("ifMtu"),
    plain("ifSpeed"),
    hinted("ifPhysAddress", "1x:"),
    labelled("ifAdminStatus", ADMINISTRATIVE),
    labelled("ifOperStatus", OPERATIONAL),
    plain("ifLastChange"),
    plain("ifInOctets"),
    plain("ifInUcastPkts"),
    plain("ifInNUcastPkts"),
    plain("ifInDiscards"),
    plain("ifInErrors"),
    plain("ifInUnknownProtos"),
    plain("ifOutOctets"),
    plain("ifOutUcastPkts"),
    plain("ifOutNUcastPkts"),
    plain("ifOutDiscards"),
    plain("ifOutErrors"),
    plain("ifOutQLen"),
    plain("ifSpecific"),
];

/// Columns of ifXTable (RFC 2863), 1 to 19.
const IF_X_TABLE: [Shown; 19] = [
    hinted("ifName", "255a"),
    plain("ifInMulticastPkts"),
    plain("ifInBroadcastPkts"),
    plain("ifOutMulticastPkts"),
    plain("ifOutBroadcastPkts"),
    plain("ifHCInOctets"),
    plain("ifHCInUcastPkts"),
    plain("ifHCInMulticastPkts"),
    plain("ifHCInBroadcastPkts"),
    plain("ifHCOutOctets"),
    plain("ifHCOutUcastPkts"),
    plain("ifHCOutMulticastPkts"),
    plain("ifHCOutBroadcastPkts"),
    labelled("ifLinkUpDownTrapEnable", &[(1, "enabled"), (2, "disabled")]),
    plain("ifHighSpeed"),
    labelled("ifPromiscuousMode", TRUTH),
    labelled("ifConnectorPresent", TRUTH),
    hinted("ifAlias", "255a"),
    plain("ifCounterDiscontinuityTime"),
];

/// Textual conventions of SNMPv2-TC (RFC 2579) and SNMP-FRAMEWORK-MIB (RFC 3411), for modules whose
/// folder lacks these.
const CONVENTIONS: [Shown; 9] = [
    hinted("DisplayString", "255a"),
    hinted("PhysAddress", "1x:"),
    hinted("MacAddress", "1x:"),
    labelled("TruthValue", TRUTH),
    hinted("DateAndTime", "2d-1d-1d,1d:1d:1d.1d,1a1d:1d"),
    labelled(
        "RowStatus",
        &[
            (1, "active"),
            (2, "notInService"),
            (3, "notReady"),
            (4, "createAndGo"),
            (5, "createAndWait"),
            (6, "destroy"),
        ],
    ),
    labelled("StorageType", &[(1, "other"), (2, "volatile"), (3, "nonVolatile"), (4, "permanent"), (5, "readOnly")]),
    hinted("SnmpAdminString", "255t"),
    hinted("Utf8String", "255t"),
];

/// Adds everything that is known.
pub(super) fn add_all(builder: &mut Builder) {
    for (name, arcs, module, kind) in NAMES {
        builder.add(arcs, name, module, *kind, None, None);
    }
    let tables: [(&[u32], &str, &[Shown]); 3] = [
        (&[1, 3, 6, 1, 2, 1, 1], SNMP, &SYSTEM),
        (&[1, 3, 6, 1, 2, 1, 2, 2, 1], IF, &IF_TABLE),
        (&[1, 3, 6, 1, 2, 1, 31, 1, 1, 1], IF, &IF_X_TABLE),
    ];
    for (root, module, objects) in tables {
        for (arc, shown) in (1..).zip(objects) {
            let labels = labels(shown).map(|labels| builder.labels(labels));
            let hint = Some(shown.hint).filter(|hint| !hint.is_empty()).map(|hint| builder.hint(hint));
            builder.add(&[root, &[arc]].concat(), shown.name, module, Kind::Object, labels, hint);
        }
    }
}

/// A textual convention: its hint, and its labels.
pub(super) fn convention(name: &str) -> Option<(&'static str, Option<Labels>)> {
    let shown = CONVENTIONS.iter().find(|shown| shown.name == name)?;
    Some((shown.hint, labels(shown)))
}

fn labels(shown: &Shown) -> Option<Labels> {
    let labels = shown.labels.iter().map(|(value, label)| (*value, (*label).to_owned())).collect();
    (!shown.labels.is_empty()).then_some(Labels { labels, is_bits: false })
}
