use std::fmt::Write as _;

use proptest::prelude::*;

use super::*;

fn file(name: &str, text: impl Into<String>) -> MibFile {
    MibFile { name: name.to_owned(), text: text.into().into_bytes() }
}

fn module(name: &str, body: &str) -> String {
    format!("{name} DEFINITIONS ::= BEGIN\n{body}\nEND\n")
}

fn loaded(files: &[MibFile]) -> Loaded {
    load(files, Limits::default())
}

fn reasons(loaded: &Loaded) -> Vec<(&str, &str, bool)> {
    loaded.skipped.iter().map(|skipped| (&*skipped.file, &*skipped.reason, skipped.is_whole)).collect()
}

/// The name and module of an object identifier, and whether it is exactly that.
fn name(mib: &Mib, arcs: &[u32]) -> Option<(String, bool)> {
    mib.find(arcs.iter().copied()).map(|found| (format!("{}::{}", found.module, found.name), found.is_exact))
}

const ACME: [u32; 7] = [1, 3, 6, 1, 4, 1, 32473];

fn below_acme(arcs: &[u32]) -> Vec<u32> {
    [&ACME[..], arcs].concat()
}

#[test]
fn notifications_and_interfaces_are_known_without_a_folder() {
    let mib = Mib::default();
    let exact = |arcs: &[u32]| name(&mib, arcs).filter(|(_, is_exact)| *is_exact).map(|(name, _)| name);
    assert_eq!(exact(&[1, 3, 6, 1, 6, 3, 1, 1, 5, 3]).as_deref(), Some("IF-MIB::linkDown"));
    assert_eq!(exact(&[1, 3, 6, 1, 6, 3, 1, 1, 5, 1]).as_deref(), Some("SNMPv2-MIB::coldStart"));
    assert_eq!(name(&mib, &[1, 3, 6, 1, 2, 1, 31, 1, 1, 1, 18, 7]), Some(("IF-MIB::ifAlias".into(), false)));
    assert_eq!(name(&mib, &[1, 3, 6, 1, 2, 1, 1, 5, 0]), Some(("SNMPv2-MIB::sysName".into(), false)));
    assert_eq!(name(&mib, &[3]), None);
    assert!(mib.bytes() < 32 << 10, "{}", mib.bytes());
}

#[test]
fn modules_refer_to_each_other_in_any_order() {
    let types = module(
        "ACME-TC",
        r#"IMPORTS acme FROM ACME-SMI; Colour ::= TEXTUAL-CONVENTION STATUS current DESCRIPTION "x" SYNTAX INTEGER { red(1) }
        Shade ::= Colour"#,
    );
    let objects = module(
        "ACME-OBJECTS-MIB",
        "IMPORTS acme FROM ACME-SMI Shade FROM ACME-TC MacAddress FROM SNMPv2-TC;
         acmeTable OBJECT-TYPE SYNTAX SEQUENCE OF AcmeEntry ACCESS not-accessible ::= { acme 1 }
         acmeEntry OBJECT-TYPE SYNTAX AcmeEntry INDEX { acmeIndex } ::= { acmeTable 1 }
         AcmeEntry ::= SEQUENCE { acmeIndex INTEGER (1..9), acmeShade Shade, acmeMac MacAddress }
         acmeShade OBJECT-TYPE SYNTAX Shade ::= { acmeEntry 2 }
         acmeMac OBJECT-TYPE SYNTAX MacAddress DEFVAL { '000000000000'H } ::= { acmeEntry 3 }",
    );
    let root = module("ACME-SMI", "acme OBJECT IDENTIFIER ::= { iso org(3) dod(6) internet(1) private(4) 1 32473 }");
    let loaded = loaded(&[file("a", objects), file("b", types), file("c", root)]);
    assert_eq!(reasons(&loaded), []);
    assert_eq!(loaded.modules, 3);
    let shade = loaded.mib.find(below_acme(&[1, 1, 2, 7]).into_iter()).unwrap();
    assert_eq!((shade.name, shade.kind, shade.arcs), ("acmeShade", Kind::Object, 10));
    assert_eq!(shade.syntax.integer(1).as_deref(), Some("red"));
    assert_eq!(shade.syntax.integer(2), None);
    let mac = loaded.mib.find(below_acme(&[1, 1, 3, 7]).into_iter()).unwrap();
    assert_eq!(mac.syntax.octets(&[0, 0x1b, 0xff]).as_deref(), Some("00:1b:ff"));
    let kind = |arcs: &[u32]| loaded.mib.find(below_acme(arcs).into_iter()).unwrap().kind;
    assert_eq!((kind(&[1]), kind(&[1, 1]), kind(&[])), (Kind::Container, Kind::Container, Kind::Other));
}

#[test]
fn mistakes_cost_their_definition_only() {
    let text = module(
        "ACME-MIB",
        "acme OBJECT IDENTIFIER ::= { enterprises 32473 }
         noValue OBJECT-TYPE SYNTAX INTEGER { a(1) STATUS current
         acmeOne OBJECT-TYPE SYNTAX INTEGER ::= { acme 1 }
         acmeTwo OBJECT-TYPE SYNTAX INTEGER ::= { acme two }
         9nonsense ; acmeThree OBJECT-TYPE SYNTAX Missing ::= { acme 3 }
         acmeFour OBJECT IDENTIFIER ::= { nowhere 4 }
         acmeHuge OBJECT IDENTIFIER ::= { acme 4294967296 }",
    );
    let loaded = loaded(&[file("acme.mib", text)]);
    assert_eq!(name(&loaded.mib, &below_acme(&[1])), Some(("ACME-MIB::acmeOne".into(), true)));
    assert_eq!(name(&loaded.mib, &below_acme(&[3])), Some(("ACME-MIB::acmeThree".into(), true)));
    assert_eq!(name(&loaded.mib, &below_acme(&[2])), Some(("ACME-MIB::acme".into(), false)));
    let [(file, reason, is_whole)] = reasons(&loaded)[..] else { panic!("{:?}", loaded.skipped) };
    assert_eq!((file, is_whole), ("acme.mib", false));
    assert!(reason.starts_with("line 3: ") && reason.ends_with(" mistakes)"), "{reason}");
}

#[test]
fn broken_circular_and_incomplete_files_are_named_with_the_reason() {
    let files = [
        file("circle", module("C-MIB", "a OBJECT IDENTIFIER ::= { b 1 } b OBJECT IDENTIFIER ::= { a 1 }")),
        file("circle without arcs", module("D-MIB", "d OBJECT IDENTIFIER ::= { e } e OBJECT IDENTIFIER ::= { d }")),
        file("circle of imports 1", module("E1-MIB", "IMPORTS f2 FROM E2-MIB; f1 OBJECT IDENTIFIER ::= { f2 1 }")),
        file("circle of imports 2", module("E2-MIB", "IMPORTS f1 FROM E1-MIB; f2 OBJECT IDENTIFIER ::= { f1 1 }")),
        file("empty", ""),
        file("missing", module("M-MIB", "IMPORTS x FROM X-MIB; m OBJECT IDENTIFIER ::= { x 1 }")),
        file("not a MIB", "\u{0}\u{1}PNG"),
        file("ok", module("OK-MIB", "ok OBJECT IDENTIFIER ::= { enterprises 32473 }")),
        file("second", module("OK-MIB", "other OBJECT IDENTIFIER ::= { enterprises 32473 }")),
        file(
            "truncated",
            "T-MIB DEFINITIONS ::= BEGIN t OBJECT IDENTIFIER ::= { enterprises 32473 7 } u OBJECT-TYPE SYN",
        ),
    ];
    let loaded = loaded(&files);
    let expected = [
        ("circle", "a: circular, or more than 128 arcs (2 mistakes)", false),
        ("circle without arcs", "d: circular, or more than 128 arcs (2 mistakes)", false),
        ("circle of imports 1", "f1: circular, or more than 128 arcs", false),
        ("circle of imports 2", "f2: circular, or more than 128 arcs", false),
        ("empty", "no module in it", true),
        ("missing", "m: its parent x is in module X-MIB, which is missing", false),
        ("not a MIB", "no module in it", true),
        ("second", "module OK-MIB is in ok already", true),
        ("truncated", "line 1: a definition has no value (2 mistakes)", false),
    ];
    assert_eq!(reasons(&loaded), expected);
    assert_eq!(name(&loaded.mib, &ACME), Some(("OK-MIB::ok".into(), true)));
    assert_eq!(name(&loaded.mib, &below_acme(&[7])), Some(("T-MIB::t".into(), true)));
    assert_eq!(name(&loaded.mib, &[1, 3, 6, 1, 6, 3, 1, 1, 5, 3]), Some(("IF-MIB::linkDown".into(), true)));
}

#[test]
fn smiv2_has_precedence_over_what_it_was_translated_from() {
    let old = module("RFC1213-MIB", "ifOperStatus OBJECT-TYPE SYNTAX INTEGER { up(1) } ::= { interfaces 2 1 8 }");
    let new = module(
        "IF-MIB",
        "ifMIB MODULE-IDENTITY LAST-UPDATED \"\" ::= { mib-2 31 }
         ifOperStatus OBJECT-TYPE SYNTAX INTEGER { up(1), notPresent(6) } ::= { interfaces 2 1 8 }
         ifGroup OBJECT-GROUP OBJECTS { ifOperStatus } ::= { interfaces 2 1 8 }",
    );
    for files in [[file("a", old.clone()), file("b", new.clone())], [file("a", new), file("b", old)]] {
        let loaded = loaded(&files);
        let found = loaded.mib.find([1, 3, 6, 1, 2, 1, 2, 2, 1, 8, 3].into_iter()).unwrap();
        assert_eq!((found.name, found.module), ("ifOperStatus", "IF-MIB"));
        assert_eq!(found.syntax.integer(6).as_deref(), Some("notPresent"));
    }
}

#[test]
fn modules_of_vendors_are_read_as_they_are() {
    let text = "-- a comment -------- with hyphens\r\n\
        ACME-MIB { iso 3 } DEFINITIONS ::= BEGIN\r\n\
        EXPORTS everything;\r\n\
        IMPORTS OBJECT-TYPE FROM RFC-1212 enterprises FROM RFC1155-SMI TRAP-TYPE FROM RFC-1215;\r\n\
        OBJECT-TYPE MACRO ::= BEGIN TYPE NOTATION ::= \"x\" END\r\n\
        acme OBJECT IDENTIFIER ::= { enterprises acmeCorp(32473) }-- no space\r\n\
        acme_old OBJECT-TYPE SYNTAX INTEGER { a_b(1), c (2) , d(3), } ACCESS read-only STATUS mandatory\r\n\
            DESCRIPTION \"OBJECT-TYPE ::= { in a string } -- it's\" ::= { acme 1 }\r\n\
        Opaque ::= [APPLICATION 4] IMPLICIT OCTET STRING (SIZE (0..255))\r\n\
        Any ::= CHOICE { one INTEGER, two OCTET STRING }\r\n\
        acmeLinkDown TRAP-TYPE ENTERPRISE snmp VARIABLES { ifIndex } DESCRIPTION \"\" ::= 2\r\n\
        acmeTrap TRAP-TYPE ENTERPRISE { acme } DESCRIPTION \"\" ::= 0\r\n\
        END\r\n\
        SECOND-MIB DEFINITIONS ::= BEGIN second OBJECT IDENTIFIER ::= { acme 2 } END";
    let loaded = loaded(&[file("acme", text)]);
    assert_eq!(reasons(&loaded), []);
    assert_eq!(loaded.modules, 2);
    let old = loaded.mib.find(below_acme(&[1, 0]).into_iter()).unwrap();
    assert_eq!((old.name, old.syntax.integer(1).as_deref()), ("acme_old", Some("a_b")));
    assert_eq!(old.syntax.integer(2).as_deref(), Some("c"));
    assert_eq!(name(&loaded.mib, &below_acme(&[0, 0])), Some(("ACME-MIB::acmeTrap".into(), true)));
    assert_eq!(name(&loaded.mib, &below_acme(&[2])), Some(("SECOND-MIB::second".into(), true)));
    assert_eq!(name(&loaded.mib, &[1, 3, 6, 1, 6, 3, 1, 1, 5, 3]), Some(("ACME-MIB::acmeLinkDown".into(), true)));
}

#[test]
fn limits_skip_files_and_say_which() {
    let limits = Limits { max_files: 3, max_file_bytes: 90, max_total_bytes: 150 };
    let text = module("A-MIB", "a OBJECT IDENTIFIER ::= { enterprises 1 }");
    let files =
        [file("first", text.clone()), file("large", "x".repeat(91)), file("total", "x".repeat(90)), file("fourth", "")];
    let loaded = load(&files, limits);
    let expected = [
        ("large", "91 bytes, more than 90", true),
        ("total", "all files together exceed 150 bytes", true),
        ("fourth", "more than 3 files", true),
    ];
    assert_eq!(reasons(&loaded), expected);
}

#[test]
fn deep_and_long_definitions_end_in_a_message() {
    let mut chain = String::from("a0 OBJECT IDENTIFIER ::= { enterprises 1 }\n");
    let mut types = String::from("T0 ::= INTEGER { one(1) }\n");
    for index in 1..20_000 {
        writeln!(chain, "a{index} OBJECT IDENTIFIER ::= {{ a{} 1 }}", index - 1).unwrap();
        writeln!(types, "T{index} ::= T{}", index - 1).unwrap();
    }
    types += "o OBJECT-TYPE SYNTAX T19999 ::= { enterprises 1 } p OBJECT-TYPE SYNTAX T60 ::= { enterprises 2 }";
    let choice = format!("T ::= {} INTEGER {}", "CHOICE { a ".repeat(100_000), "}".repeat(100_000));
    let arcs = format!("a OBJECT IDENTIFIER ::= {{ enterprises {} }}", "1 ".repeat(200));
    let open = format!("T ::= INTEGER {}", "(".repeat(100_000));
    let files =
        [chain, types, choice, arcs, open].map(|body| file("x", module(&format!("M{}-MIB", body.len()), &body)));
    let loaded = loaded(&files);
    let expected = [
        ("x", "a1000: circular, or more than 128 arcs (19878 mistakes)", false),
        ("x", "line 2: an object identifier has more than 128 arcs (73 mistakes)", false),
        ("x", "line 3: a bracket is not closed", false),
    ];
    assert_eq!(reasons(&loaded), expected);
    let label = |arcs: [u32; 7]| loaded.mib.find(arcs.into_iter()).unwrap().syntax.integer(1);
    assert_eq!(label([1, 3, 6, 1, 4, 1, 1]), None, "a chain of types is followed for 64 steps");
    assert_eq!(label([1, 3, 6, 1, 4, 1, 2]).as_deref(), Some("one"));
}

#[test]
fn display_hints_of_rfc_2579() {
    let number = |hint: &str, number| hint::integer(hint, number);
    assert_eq!(number("d-2", 1234).as_deref(), Some("12.34"));
    assert_eq!(number("d-2", -5).as_deref(), Some("-0.05"));
    assert_eq!(number("d-0", 5).as_deref(), Some("5"));
    assert_eq!(number("x", 255).as_deref(), Some("ff"));
    assert_eq!(number("b", 5).as_deref(), Some("101"));
    assert_eq!(number("d-99999999999", 5), None);
    assert_eq!(number("", 5), None);
    let octets = |hint: &str, bytes: &[u8]| hint::octets(hint, bytes);
    assert_eq!(octets("1x:", &[0, 0x1b]).as_deref(), Some("00:1b"));
    assert_eq!(octets("255a", b"text").as_deref(), Some("text"));
    assert_eq!(octets("1d.1d.1d.1d/2d", &[198, 51, 100, 7, 0, 162]).as_deref(), Some("198.51.100.7/162"));
    assert_eq!(octets("2x:2x:2x:2x:2x:2x:2x:2x", &[0x20, 1, 0xd, 0xb8, 0, 0]).as_deref(), Some("2001:0db8:0000"));
    assert_eq!(octets("*1x,/1x:", &[2, 0xaa, 0xbb, 3, 4]).as_deref(), Some("aa,bb/03:04"));
    assert_eq!(octets("0a[1d", &[7]), Some("[7".to_owned()));
    for malformed in ["", "a", "1", "1z", "0d", "*0", "99999999999999999999999d", "1x:0a"] {
        let shown = octets(malformed, b"abc");
        assert!(shown.as_deref().is_none_or(|text| text.len() < 64), "{malformed}: {shown:?}");
    }
    assert_eq!(octets("0d", b"abc"), None);
}

proptest! {
    #[test]
    fn any_hint_ends(hint in "[*0-9dxoat:,.]{0,12}", bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        let text = hint::octets(&hint, &bytes).unwrap_or_default();
        prop_assert!(text.len() <= 8192, "{}", text.len());
    }

    /// Words of MIB modules in any order end in a table.
    #[test]
    fn any_tokens_end_in_a_table(words in prop::collection::vec(prop::sample::select(vec![
        "A-MIB", "DEFINITIONS", "::=", "BEGIN", "END", "a", "b", "OBJECT", "IDENTIFIER", "{", "}", "(", ")", "[", "]", "1",
        "OBJECT-TYPE", "SYNTAX", "INTEGER", "BITS", "TRAP-TYPE", "ENTERPRISE", "IMPORTS", "FROM", ";", ",", "--", "\n", "\"",
        "TEXTUAL-CONVENTION", "DISPLAY-HINT", "\"1x:\"", "MACRO", "SEQUENCE", "OF", "CHOICE", "enterprises", "'", "'0'H", "-",
    ]), 0..80)) {
        let text = format!("A-MIB DEFINITIONS ::= BEGIN {}", words.join(" "));
        let loaded = loaded(&[file("x", text)]);
        prop_assert!(loaded.mib.names() >= Mib::default().names());
    }
}

/// `cargo test --release -p sekiwake-decode -- --ignored cost --nocapture`
#[test]
#[ignore = "measures"]
fn cost_of_2000_files() {
    let resident = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap().to_owned();
        line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() >> 10
    };
    let description = "The description of an object is most of the text of a module. ".repeat(4);
    let files: Vec<MibFile> = (0..2000)
        .map(|number| {
            let mut body = String::from("IMPORTS enterprises FROM SNMPv2-SMI DisplayString FROM SNMPv2-TC;\n");
            writeln!(body, "m{number} MODULE-IDENTITY LAST-UPDATED \"\" ::= {{ enterprises {number} }}").unwrap();
            for object in 1..100 {
                writeln!(
                    body,
                    "m{number}o{object} OBJECT-TYPE SYNTAX INTEGER {{ up(1), down(2) }} MAX-ACCESS read-only STATUS current
                     DESCRIPTION \"{description}\" ::= {{ m{number} {object} }}"
                )
                .unwrap();
            }
            file(&format!("{number}.mib"), module(&format!("M{number}-MIB"), &body))
        })
        .collect();
    let text: usize = files.iter().map(|file| file.text.len()).sum();
    let before = resident();
    let start = std::time::Instant::now();
    let loaded = loaded(&files);
    println!(
        "{} files of {} MB, {} names: {:?}, table {} MB, at most {} MB above the text",
        files.len(),
        text >> 20,
        loaded.mib.names(),
        start.elapsed(),
        loaded.mib.bytes() >> 20,
        resident() - before,
    );
}
