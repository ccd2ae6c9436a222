//! Lists in fields (RFC 6313).

use sekiwake_decode::Decoder;
use serde_json::{Value, json};

use crate::datagram::{data, ipfix, set, words};

/// A record with one list of variable length.
fn list(element: u16, contents: &[u8]) -> Value {
    let templates = [256, 1, element, 0xffff, 300, 2, 1, 2, 2, 2];
    let contents = [&[u8::try_from(contents.len()).unwrap()], contents].concat();
    let mut rows = data(&mut Decoder::new(), &ipfix(&[set(2, &words(&templates)), set(256, &contents)]));
    rows.swap_remove(0)
}

#[test]
fn basic_list_has_the_values_of_its_element() {
    let row = list(291, &[&[3][..], &words(&[10, 4]), &[0, 0, 0, 1, 0, 0, 0, 2]].concat());
    assert_eq!(row["basicList"], json!([1, 2]));
    let row = list(291, &[&[3][..], &words(&[82, 0xffff]), &[2, b'e', b'0', 1, b'e']].concat());
    assert_eq!(row["basicList"], json!(["e0", "e"]));
    let enterprise = [&[3][..], &words(&[0x8000 | 5, 1, 0, 9]), &[1, 2]].concat();
    assert_eq!(list(291, &enterprise)["basicList"], json!(["01", "02"]));
    assert_eq!(list(291, &[&[3][..], &words(&[10, 4])].concat())["basicList"], json!([]));
}

#[test]
fn template_lists_have_records() {
    let row = list(292, &[&[3][..], &words(&[300, 1, 2, 3, 4])].concat());
    let records = json!([
        {"octetDeltaCount": 1, "packetDeltaCount": 2}, {"octetDeltaCount": 3, "packetDeltaCount": 4}
    ]);
    assert_eq!(row["subTemplateList"], records);
    let row = list(293, &[&[3][..], &words(&[300, 8, 1, 2, 300, 8, 3, 4])].concat());
    assert_eq!(row["subTemplateMultiList"], json!([[records[0]], [records[1]]]));
}

#[test]
fn list_that_cannot_be_decoded_says_why() {
    let unknown = list(292, &[&[3][..], &words(&[301, 1])].concat());
    let expected = json!({"undecoded": "template has not been received, template 301", "bytes": "0001"});
    assert_eq!(unknown["subTemplateList"], expected);
    for (element, contents) in [
        (291, vec![]),
        (291, [&[3][..], &words(&[10, 4]), &[0, 0, 1]].concat()),
        (291, [&[3][..], &words(&[10, 0]), &[1]].concat()),
        (293, [&[3][..], &words(&[300, 9, 1, 2])].concat()),
        (293, [&[3][..], &words(&[300, 3])].concat()),
    ] {
        let row = list(element, &contents);
        assert!(row.to_string().contains("list is malformed"), "{row}");
    }
    let row = list(292, &[&[3][..], &words(&[300, 1])].concat());
    assert!(row.to_string().contains("do not fill"), "{row}");
}

#[test]
fn nested_lists_end_at_a_depth() {
    let mut contents = [&[3][..], &words(&[10, 4]), &[0, 0, 0, 1]].concat();
    for _ in 0..6 {
        contents = [&[3][..], &words(&[291, 0xffff]), &[u8::try_from(contents.len()).unwrap()], &contents].concat();
    }
    let text = list(291, &contents).to_string();
    assert!(text.contains("nested too deeply"), "{text}");
}

#[test]
fn many_lists_of_a_large_template_are_left_out_at_the_limit() {
    let outer: Vec<u16> = [[256, 400]].into_iter().chain([[292, 0xffff]; 400]).flatten().collect();
    let inner: Vec<u16> = [[300, 900]].into_iter().chain([[1, 2]; 900]).flatten().collect();
    let record: Vec<u8> = std::iter::repeat_n([&[3][..], &[3], &words(&[300])].concat(), 400).flatten().collect();
    let rows = data(&mut Decoder::new(), &ipfix(&[set(2, &words(&outer)), set(2, &words(&inner)), set(256, &record)]));
    let text = serde_json::to_string(&rows).unwrap();
    assert!(text.contains("too many fields"), "{} rows", rows.len());
}
