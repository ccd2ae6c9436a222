use std::time::Duration;

use sekiwake_settings::{Environment, Reader};

#[test]
fn file_takes_precedence_and_its_later_lines_do() {
    let file = b"SEKIWAKE_TICK=3ms\nSEKIWAKE_DRAIN='4s'\nSEKIWAKE_TICK=5ms\nOTHER=1\n";
    let environment = Environment::from_pairs([("SEKIWAKE_TICK", "2ms"), ("SEKIWAKE_GROUP", "siem")]);
    let mut reader = Reader::new(&environment.with_file("site.env", file));
    assert_eq!(reader.value::<Duration>("SEKIWAKE_TICK"), Duration::from_millis(5));
    assert_eq!(reader.value::<Duration>("SEKIWAKE_DRAIN"), Duration::from_secs(4));
    assert_eq!(reader.value::<sekiwake_record::Name>("SEKIWAKE_GROUP").to_string(), "siem");
    assert_eq!(reader.finish(), Ok(()));
}

#[test]
fn mistakes_in_a_file_begin_with_file_and_line() {
    let file = b"# a comment\nSEKIWAKE_TIK=2ms\nSEKIWAKE_DRAIN=soon\nnot a line\nSEKIWAKE_GROUP=\n";
    let environment = Environment::from_pairs([("SEKIWAKE_TICK", "now")]).with_file("site.env", file);
    let mut reader = Reader::new(&environment);
    reader.value::<Duration>("SEKIWAKE_TICK");
    reader.value::<Duration>("SEKIWAKE_DRAIN");
    reader.mistake("SEKIWAKE_GROUP", "", "a name");
    let mistakes = reader.finish().unwrap_err().to_string();
    let expected = [
        r#"site.env:4: expected NAME=value or a comment"#,
        r#"site.env:2: SEKIWAKE_TIK="2ms": no such setting, did you mean SEKIWAKE_TICK?"#,
        r#"SEKIWAKE_TICK="now": expected a duration such as 2ms, 10s or 1m"#,
        r#"site.env:3: SEKIWAKE_DRAIN="soon": expected a duration such as 2ms, 10s or 1m"#,
        "SEKIWAKE_GROUP is not set: expected a name",
    ];
    assert_eq!(mistakes.lines().collect::<Vec<_>>(), expected);
}
