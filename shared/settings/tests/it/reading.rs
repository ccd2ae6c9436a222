use std::{ffi::OsString, os::unix::ffi::OsStringExt, path::PathBuf, time::Duration};

use sekiwake_settings::{ByteSize, Endpoint, Environment, List, Mistakes, Ports, Reader, read};

fn environment(pairs: &[(&str, &str)]) -> Environment {
    Environment::from_pairs(pairs.iter().copied())
}

fn lines(result: Result<(), Mistakes>) -> Vec<String> {
    result.map_or_else(|mistakes| mistakes.to_string().lines().map(str::to_owned).collect(), |()| Vec::new())
}

#[test]
fn unset_and_empty_variables_have_their_default() {
    let environment =
        environment(&[("SEKIWAKE_TICK", ""), ("SEKIWAKE_CAPTURE_FILE", "  "), ("SEKIWAKE_RETAIN", " 1GiB\n")]);
    let read = read(&environment, |reader| {
        (
            reader.value::<Duration>("SEKIWAKE_TICK"),
            reader.optional::<PathBuf>("SEKIWAKE_CAPTURE_FILE"),
            reader.value::<ByteSize>("SEKIWAKE_RETAIN"),
            reader.value::<Ports>("SEKIWAKE_XFLOW_PORTS").to_vec(),
        )
    });
    let xflow_ports = vec![2055, 9995, 9996, 4739, 6343];
    assert_eq!(read, Ok((Duration::from_millis(6), None, ByteSize(1 << 30), xflow_ports)));
}

#[test]
fn all_mistakes_are_reported_at_once_on_one_line_each() {
    let environment = environment(&[
        ("SEKIWAKE_TICK", "abc"),
        ("SEKIWAKE_DRAIN", "10"),
        ("SEKIWAKE_RETAIN", "256MB"),
        ("SEKIWAKE_SYSLOG_PORTS", "514,1514,514"),
        ("SEKIWAKE_CAPTURE_THREADS", "17"),
        ("SEKIWAKE_CAPTURE_TUNNELS", "yes"),
        ("SEKIWAKE_BUS_PUBLISH", "tcp://127.0.0.1:5559, tcp://*:5559"),
        ("SEKIWAKE_ADMIN", "9600"),
        ("SEKIWAKE_TIK", "2ms"),
        ("SEKIWAKE_tick", "2ms"),
        ("SEKIWAKE_SEKIWAKE_TICK", "2ms"),
        ("SEKIWAKE_PROXY_PORT", "tcp://198.51.100.1:5559"),
        ("SEKIWAK_TICK", "2ms"),
        ("sekiwake_drain", "2s"),
        ("TEST_SEKIWAKE_TICK", "2ms"),
        ("PATH", "/bin"),
    ]);
    let mut reader = Reader::new(&environment);
    reader.value::<Duration>("SEKIWAKE_TICK");
    reader.value::<Duration>("SEKIWAKE_DRAIN");
    reader.value::<ByteSize>("SEKIWAKE_RETAIN");
    reader.value::<Ports>("SEKIWAKE_SYSLOG_PORTS");
    reader.within::<u16>("SEKIWAKE_CAPTURE_THREADS", 1..=16);
    reader.value::<bool>("SEKIWAKE_CAPTURE_TUNNELS");
    reader.value::<List<Endpoint>>("SEKIWAKE_BUS_PUBLISH");
    reader.optional::<std::net::SocketAddr>("SEKIWAKE_ADMIN");
    reader.mistake("SEKIWAKE_CAPTURE_FILE", "", "a path");
    let expected = [
        r#"SEKIWAKE_PROXY_PORT="tcp://198.51.100.1:5559": no such setting, it looks like a service link injected by Kubernetes: set enableServiceLinks to false"#,
        r#"SEKIWAKE_SEKIWAKE_TICK="2ms": no such setting"#,
        r#"SEKIWAKE_TIK="2ms": no such setting, did you mean SEKIWAKE_TICK?"#,
        r#"SEKIWAKE_tick="2ms": no such setting, did you mean SEKIWAKE_TICK?"#,
        r#"SEKIWAK_TICK="2ms": no such setting, did you mean SEKIWAKE_TICK?"#,
        r#"sekiwake_drain="2s": no such setting, did you mean SEKIWAKE_DRAIN?"#,
        r#"SEKIWAKE_TICK="abc": expected a duration such as 2ms, 10s or 1m"#,
        r#"SEKIWAKE_DRAIN="10": expected a duration such as 2ms, 10s or 1m (missing unit, expected us, ms, s, m, h, d or w)"#,
        r#"SEKIWAKE_RETAIN="256MB": expected a size such as 256MiB, 64KiB or 1GiB (unknown unit MB, expected B, KiB, MiB, GiB or TiB)"#,
        r#"SEKIWAKE_SYSLOG_PORTS="514,1514,514": expected ports from 1 to 65535, separated by commas (514 is listed twice)"#,
        r#"SEKIWAKE_CAPTURE_THREADS="17": expected a whole number, from 1 to 16"#,
        r#"SEKIWAKE_CAPTURE_TUNNELS="yes": expected true or false"#,
        r#"SEKIWAKE_BUS_PUBLISH="tcp://127.0.0.1:5559, tcp://*:5559": expected a ZeroMQ endpoint such as tcp://127.0.0.1:5559 or ipc:///run/sekiwake/publish (in "tcp://*:5559": * is not a host to connect to)"#,
        r#"SEKIWAKE_ADMIN="9600": expected an address with a port such as 127.0.0.1:9600, [::1]:9600 or :9600"#,
        r#"SEKIWAKE_CAPTURE_FILE is not set: expected a path"#,
    ];
    assert_eq!(lines(reader.finish()), expected);
}

#[test]
fn mistake_found_by_several_services_is_reported_once() {
    let mut reader = Reader::new(&environment(&[("SEKIWAKE_BUS_SUBSCRIBE", "zmq")]));
    for _service in 0..3 {
        reader.value::<List<Endpoint>>("SEKIWAKE_BUS_SUBSCRIBE");
    }
    assert_eq!(lines(reader.finish()).len(), 1);
}

#[test]
fn values_that_are_not_utf8_are_mistakes_on_one_line() {
    let environment = Environment::from_pairs([
        (OsString::from("SEKIWAKE_PUBLISHER"), OsString::from_vec(vec![b'a', 0xff])),
        (OsString::from("SEKIWAKE_GROUP"), OsString::from("a\nb")),
        (OsString::from_vec(b"SEKIWAKE_\xff".to_vec()), OsString::from("1")),
    ]);
    let mut reader = Reader::new(&environment);
    reader.value::<sekiwake_record::Name>("SEKIWAKE_GROUP");
    let expected = [
        "SEKIWAKE_PUBLISHER=\"a\u{fffd}\": expected UTF-8 text",
        "SEKIWAKE_\u{fffd}=\"1\": no such setting",
        r#"SEKIWAKE_GROUP="a\nb": expected a name of 1 to 63 letters, digits, dots, underscores and hyphens"#,
    ];
    assert_eq!(lines(reader.finish()), expected);
}

#[test]
fn settings_of_other_services_are_accepted_and_unused_listed() {
    let environment =
        environment(&[("SEKIWAKE_STORE_DIR", "/data"), ("SEKIWAKE_TICK", "1ms"), ("SEKIWAKE_RETAIN", "1MiB")]);
    let mut reader = Reader::new(&environment);
    reader.value::<Duration>("SEKIWAKE_TICK");
    assert_eq!(reader.unused("capture"), ["SEKIWAKE_RETAIN"]);
    assert_eq!(reader.resolved().collect::<Vec<_>>(), [("SEKIWAKE_TICK", "1ms")]);
    assert_eq!(reader.finish(), Ok(()));
}

#[test]
#[should_panic(expected = "SEKIWAKE_NOWHERE is not in the table of variables")]
fn reading_a_variable_outside_the_table_panics() {
    Reader::new(&Environment::default()).optional::<String>("SEKIWAKE_NOWHERE");
}

#[test]
fn values_of_unknown_names_that_may_be_secret_are_hidden() {
    for (name, value) in [
        ("SEKIWAKE_NOTIFI", "webhook+https://chat.example/s3cret"),
        ("SEKIWAK_NOTIFY", "webhook+https://chat.example/s3cret"),
        ("SEKIWAKE_HOOK", "https://chat.example/s3cret"),
        ("SEKIWAKE_BUS_KEY", "s3cret"),
        ("SEKIWAKE_PASSWORD", "s3cret"),
    ] {
        let text = read(&Environment::from_pairs([(name, value)]), |_| ()).unwrap_err().to_string();
        assert!(text.starts_with(&format!("{name}=\"(hidden)\": no such setting")), "{text}");
    }
    let text = read(&Environment::from_pairs([("SEKIWAKE_SYSLOG_DESTINATION", "udp://a")]), |_| ()).unwrap_err();
    assert!(text.to_string().starts_with("SEKIWAKE_SYSLOG_DESTINATION=\"udp://a\""), "{text}");
}
