//! The records in samples of sFlow: their structures as tables (sflow.org, "sFlow Version 5",
//! "sFlow Host Structures", "sFlow Version 5 Packet Discard").
//!
//! A field that IANA's registry of IPFIX has is named as there, other ones as in sFlow's
//! structures.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{Flow, Name, Value, packet, sflow::Reader, value::text};

/// The items of a list: autonomous systems, communities, labels, VLANs.
const MAX_ITEMS: usize = 256;

/// The type of an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Item {
    U32,
    U64,
    Float,
    /// Six bytes in eight.
    Mac,
    Ipv4,
    Ipv6,
    /// An address with its type before it; the names that it has by its type.
    Address(&'static str),
    Text,
    Uuid,
    /// A list of numbers with its length before it.
    Numbers,
    /// Segments of an AS path: type, and list.
    AsPath,
    /// The beginning of a packet, with its protocol before it.
    Header,
}

use Item::{Address, AsPath, Float, Header, Ipv4, Ipv6, Mac, Numbers, Text, U32, U64, Uuid};

/// A structure: names and types of its items, in order.
#[derive(Clone, Copy)]
pub(super) struct Structure(&'static [(&'static str, Item)]);

impl Structure {
    /// The structure of a record in a flow sample, if it is known.
    pub(super) fn of_flow(enterprise: u32, format: u32) -> Option<Structure> {
        if enterprise != 0 {
            return None;
        }
        let items: &'static [(&'static str, Item)] = match format {
            1 => &[("sampledHeader", Header)],
            2 => &[
                ("ethernetFrameLength", U32),
                ("sourceMacAddress", Mac),
                ("destinationMacAddress", Mac),
                ("ethernetType", U32),
            ],
            3 => &[
                ("ipTotalLength", U32),
                ("protocolIdentifier", U32),
                ("sourceIPv4Address", Ipv4),
                ("destinationIPv4Address", Ipv4),
                ("sourceTransportPort", U32),
                ("destinationTransportPort", U32),
                ("tcpControlBits", U32),
                ("ipClassOfService", U32),
            ],
            4 => &[
                ("ipTotalLength", U32),
                ("protocolIdentifier", U32),
                ("sourceIPv6Address", Ipv6),
                ("destinationIPv6Address", Ipv6),
                ("sourceTransportPort", U32),
                ("destinationTransportPort", U32),
                ("tcpControlBits", U32),
                ("ipClassOfService", U32),
            ],
            1001 => &[("vlanId", U32), ("dot1qPriority", U32), ("postVlanId", U32), ("postDot1qPriority", U32)],
            1002 => &[
                ("ipNextHopIPv4Address", Address("ipNextHopIPv6Address")),
                ("sourceIPv4PrefixLength", U32),
                ("destinationIPv4PrefixLength", U32),
            ],
            1003 => &[
                ("bgpNextHopIPv4Address", Address("bgpNextHopIPv6Address")),
                ("routerAs", U32),
                ("bgpSourceAsNumber", U32),
                ("bgpPrevAdjacentAsNumber", U32),
                ("bgpDestinationAsPath", AsPath),
                ("bgpCommunities", Numbers),
                ("bgpLocalPreference", U32),
            ],
            1004 => &[
                ("sourceUserCharset", U32),
                ("sourceUserName", Text),
                ("destinationUserCharset", U32),
                ("destinationUserName", Text),
            ],
            1005 => &[("urlDirection", U32), ("url", Text), ("urlHost", Text)],
            1006 => &[
                ("mplsNextHopIPv4Address", Address("mplsNextHopIPv6Address")),
                ("mplsInLabelStack", Numbers),
                ("mplsOutLabelStack", Numbers),
            ],
            1007 => &[
                ("postNATSourceIPv4Address", Address("postNATSourceIPv6Address")),
                ("postNATDestinationIPv4Address", Address("postNATDestinationIPv6Address")),
            ],
            1008 => &[("mplsTunnelName", Text), ("mplsTunnelId", U32), ("mplsTunnelCos", U32)],
            1009 => &[("mplsVcInstanceName", Text), ("mplsVcId", U32), ("mplsVcLabelCos", U32)],
            1010 => &[("mplsFtnDescription", Text), ("mplsFtnMask", U32)],
            1011 => &[("mplsFecAddressPrefixLength", U32)],
            1012 => &[("vlanTunnelStack", Numbers)],
            1036 => &[("egressQueue", U32)],
            1038 => &[("discardFunction", Text)],
            _ => return None,
        };
        Some(Structure(items))
    }

    /// The structure of a record in a counter sample, if it is known.
    pub(super) fn of_counters(enterprise: u32, format: u32) -> Option<Structure> {
        if enterprise != 0 {
            return None;
        }
        let items: &'static [(&'static str, Item)] = match format {
            1 => &[
                ("ifIndex", U32),
                ("ifType", U32),
                ("ifSpeed", U64),
                ("ifDirection", U32),
                ("ifStatus", U32),
                ("ifInOctets", U64),
                ("ifInUcastPkts", U32),
                ("ifInMulticastPkts", U32),
                ("ifInBroadcastPkts", U32),
                ("ifInDiscards", U32),
                ("ifInErrors", U32),
                ("ifInUnknownProtos", U32),
                ("ifOutOctets", U64),
                ("ifOutUcastPkts", U32),
                ("ifOutMulticastPkts", U32),
                ("ifOutBroadcastPkts", U32),
                ("ifOutDiscards", U32),
                ("ifOutErrors", U32),
                ("ifPromiscuousMode", U32),
            ],
            2 => &[
                ("dot3StatsAlignmentErrors", U32),
                ("dot3StatsFCSErrors", U32),
                ("dot3StatsSingleCollisionFrames", U32),
                ("dot3StatsMultipleCollisionFrames", U32),
                ("dot3StatsSQETestErrors", U32),
                ("dot3StatsDeferredTransmissions", U32),
                ("dot3StatsLateCollisions", U32),
                ("dot3StatsExcessiveCollisions", U32),
                ("dot3StatsInternalMacTransmitErrors", U32),
                ("dot3StatsCarrierSenseErrors", U32),
                ("dot3StatsFrameTooLongs", U32),
                ("dot3StatsInternalMacReceiveErrors", U32),
                ("dot3StatsSymbolErrors", U32),
            ],
            5 => &[
                ("vlanId", U32),
                ("vlanOctets", U64),
                ("vlanUcastPkts", U32),
                ("vlanMulticastPkts", U32),
                ("vlanBroadcastPkts", U32),
                ("vlanDiscards", U32),
            ],
            1001 => &[("cpu5s", U32), ("cpu1m", U32), ("cpu5m", U32), ("totalMemory", U64), ("freeMemory", U64)],
            2000 => &[("hostname", Text), ("uuid", Uuid), ("machineType", U32), ("osName", U32), ("osRelease", Text)],
            2002 => &[("containerType", U32), ("containerIndex", U32)],
            2003 => &[
                ("loadOne", Float),
                ("loadFive", Float),
                ("loadFifteen", Float),
                ("procRun", U32),
                ("procTotal", U32),
                ("cpuNum", U32),
                ("cpuSpeed", U32),
                ("hostUptime", U32),
                ("cpuUser", U32),
                ("cpuNice", U32),
                ("cpuSystem", U32),
                ("cpuIdle", U32),
                ("cpuWio", U32),
                ("cpuIntr", U32),
                ("cpuSintr", U32),
                ("interrupts", U32),
                ("contexts", U32),
                ("cpuSteal", U32),
                ("cpuGuest", U32),
                ("cpuGuestNice", U32),
            ],
            2004 => &[
                ("memTotal", U64),
                ("memFree", U64),
                ("memShared", U64),
                ("memBuffers", U64),
                ("memCached", U64),
                ("swapTotal", U64),
                ("swapFree", U64),
                ("pageIn", U32),
                ("pageOut", U32),
                ("swapIn", U32),
                ("swapOut", U32),
            ],
            2005 => &[
                ("diskTotal", U64),
                ("diskFree", U64),
                ("partMaxUsed", U32),
                ("reads", U32),
                ("bytesRead", U64),
                ("readTime", U32),
                ("writes", U32),
                ("bytesWritten", U64),
                ("writeTime", U32),
            ],
            2006 => &[
                ("netBytesIn", U64),
                ("netPktsIn", U32),
                ("netErrsIn", U32),
                ("netDropsIn", U32),
                ("netBytesOut", U64),
                ("netPktsOut", U32),
                ("netErrsOut", U32),
                ("netDropsOut", U32),
            ],
            _ => return None,
        };
        Some(Structure(items))
    }
}

/// Adds the fields of a record. `None` if the record is malformed. Agents may send less than the
/// whole of a structure that grew; later versions may append to it.
pub(super) fn decode<'p>(structure: Structure, body: &'p [u8], flow: &mut Flow<'p>) -> Option<()> {
    let mut reader = Reader(body);
    for (name, item) in structure.0 {
        if reader.0.is_empty() {
            break;
        }
        let mut name = *name;
        let value = match item {
            U32 => Value::Unsigned(reader.u32()?.into()),
            U64 => Value::Unsigned(reader.u64()?),
            Float => Value::Float(f32::from_bits(reader.u32()?).into()),
            Mac => Value::Mac(*reader.bytes(8)?.first_chunk()?),
            Ipv4 => Value::Ipv4(Ipv4Addr::from(reader.u32()?)),
            Ipv6 => Value::Ipv6(Ipv6Addr::from(*reader.bytes(16)?.first_chunk::<16>()?)),
            Text => text(reader.opaque()?),
            Uuid => Value::Bytes(reader.bytes(16)?),
            Numbers => numbers(&mut reader)?,
            AsPath => as_path(&mut reader)?,
            Address(of_ipv6) => {
                let Some(address) = reader.address()? else { continue };
                if matches!(address, Value::Ipv6(_)) {
                    name = *of_ipv6;
                }
                address
            }
            Header => {
                packet::decode(&mut reader, flow)?;
                continue;
            }
        };
        flow.push(Name::Known(name), value);
    }
    Some(())
}

fn numbers<'p>(reader: &mut Reader<'p>) -> Option<Value<'p>> {
    let count = usize::try_from(reader.u32()?).ok().filter(|count| *count <= MAX_ITEMS)?;
    let numbers: Option<Vec<Value<'p>>> = (0..count).map(|_| Some(Value::Unsigned(reader.u32()?.into()))).collect();
    numbers.map(Value::List)
}

/// The segments of a path: sequences of numbers as they are, sets (type 1) as lists in the list.
fn as_path<'p>(reader: &mut Reader<'p>) -> Option<Value<'p>> {
    let segments = usize::try_from(reader.u32()?).ok().filter(|segments| *segments <= MAX_ITEMS)?;
    let mut path = Vec::new();
    for _ in 0..segments {
        let is_set = reader.u32()? == 1;
        match numbers(reader)? {
            Value::List(numbers) if !is_set => path.extend(numbers),
            set => path.push(set),
        }
        if path.len() > MAX_ITEMS {
            return None;
        }
    }
    Some(Value::List(path))
}
