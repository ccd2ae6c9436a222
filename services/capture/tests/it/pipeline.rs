//! Which datagrams the pipeline publishes.

use std::sync::Arc;

use sekiwake_capture::{
    decode::{DecoderSettings, LinkType, Packet},
    pipeline::Pipeline,
    ports::Ports,
};
use sekiwake_group::OwnList;
use sekiwake_testkit::packets::{Datagram, vxlan};

#[test]
fn offload_counts_only_datagrams_that_would_be_published() {
    let settings = DecoderSettings { mtu: Some(1_500), ..DecoderSettings::default() };
    let mut pipeline = Pipeline::new(settings, Arc::new(Ports::default()));
    pipeline.set_own_destinations(Arc::new(OwnList::new(["203.0.113.1:514".parse().expect("an address")])));
    let mut send = |destination: &str, payload: Vec<u8>| {
        let data = Datagram::new("198.51.100.1:40000", destination, payload).packet();
        let original_length = data.len() as u32;
        pipeline.packet(&Packet { captured_at_ns: 1, link: LinkType::Raw, data: &data, original_length });
        (pipeline.lost_to_offload(), pipeline.tally().unclaimed_offload)
    };
    assert_eq!(send("203.0.113.1:514", vec![7; 3_000]), (0, 1), "to a destination of this installation");
    assert_eq!(send("203.0.113.1:443", vec![7; 3_000]), (0, 2), "to another port");
    assert_eq!(send("203.0.113.2:514", vec![7; 3_000]), (1, 2));
    assert_eq!(send("203.0.113.1:514", vec![7; 1_000]), (1, 2), "not coalesced");
    assert_eq!(send("203.0.113.1:4789", vxlan(1, &[7; 3_000])), (2, 2), "a tunnel may carry anything");
}
