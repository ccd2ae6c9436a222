//! The console, read through the accessibility tree of a real browser, against what services count.

use std::{
    collections::VecDeque,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use sekiwake_testkit::{process::Signal, sink::Options, skip::met_or_skipped, wait::wait_for};
use sekiwake_tests::{Browser, FIRST_DEVICE, MIRRORED, Samples, Screen, Services, Tree, WIRE, collector, has_browser};
use serde_json::Value;

use crate::{documents::document, support::*};

const CONSOLE: &str = "sekiwake-console";
const STORER: &str = "sekiwake-storer";
const DETECTOR: &str = "sekiwake-anomaly-detector";
const URL: &str = "http://127.0.0.1:9608";
/// The time over which the console measures rates.
const RATE_WINDOW: Duration = Duration::from_secs(10);
/// The largest picture in the documentation, bytes.
const MAX_PICTURE: usize = 150_000;

const WIDE: Screen = Screen { width: 1280, height: 800, is_dark: false };
const NARROW: Screen = Screen { width: 400, height: 800, is_dark: false };

/// A number as the page shows it.
fn number(text: &str) -> u64 {
    let digits: String = text.chars().take_while(|c| c.is_ascii_digit() || *c == ',').filter(|c| *c != ',').collect();
    digits.parse().unwrap_or_else(|_| panic!("not a number: {text:?}"))
}

/// A rate as the page shows it; `None` if it is not known.
fn rate(text: &str) -> Option<f64> {
    text.strip_suffix("/s")?.trim_start_matches("< ").replace(',', "").parse().ok()
}

/// Waits until the page satisfies a condition.
fn wait_for_page(browser: &mut Browser, what: &str, mut condition: impl FnMut(&Tree) -> bool) {
    let mut last = None;
    let done = wait_for(what, LONG, || {
        let tree = browser.tree().unwrap();
        let is_met = condition(&tree);
        last = Some(tree);
        is_met
    });
    if let Err(late) = done {
        panic!("{late}:\n{}", browser.text().unwrap());
    }
}

/// The row of a destination.
fn destination(tree: &Tree, uri: &str) -> Option<Vec<String>> {
    tree.row("Destinations, those in trouble first", |cells| cells[0].starts_with(uri))
}

/// The row of a group as a whole.
fn group(tree: &Tree, name: &str) -> Option<Vec<String>> {
    tree.row("Groups and their members", |cells| cells[0].starts_with(name))
}

/// The row of a member, below that of its group.
fn member(tree: &Tree, group: &str, name: &str) -> Option<Vec<String>> {
    let rows = tree.table("Groups and their members");
    let mut of_group = rows.into_iter().skip_while(|cells| !cells[0].starts_with(group)).skip(1);
    of_group.find(|cells| cells[1].starts_with(name))
}

fn of_destination(samples: &Samples, metric: &str, uri: &str) -> u64 {
    samples.count(metric, &[&format!("destination=\"{uri}\"")])
}

/// Losses by reason of a destination, in the form of the page.
fn reasons(samples: &Samples, uri: &str) -> Vec<(String, u64)> {
    let found = samples.nonzero("sekiwake_forward_dropped_datagrams_total", &[&format!("destination=\"{uri}\"")]);
    let reason = |text: &str| text.split("reason=\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
    let mut found: Vec<_> = found.iter().map(|(text, count)| (reason(text), *count as u64)).collect();
    found.sort();
    found
}

/// `disconnected 1,234 queue_full 5` as pairs.
fn shown_reasons(text: &str) -> Vec<(String, u64)> {
    let words: Vec<&str> = text.split(' ').filter(|word| !word.is_empty()).collect();
    words.chunks_exact(2).map(|pair| (pair[0].to_owned(), number(pair[1]))).collect()
}

fn console_site() -> Option<TestSite> {
    met_or_skipped(has_browser()).then(site).flatten()
}

/// Makes a picture for the documentation, if documents are to be written.
fn picture(browser: &mut Browser, name: &str) {
    let picture = browser.picture().unwrap();
    assert!(picture.len() <= MAX_PICTURE, "{name}: {} bytes", picture.len());
    if std::env::var_os("TEST_SEKIWAKE_REGENERATE").is_some() {
        fs::write(document("docs/images").join(format!("{name}.png")), picture).unwrap();
    }
}

#[test]
fn page_equals_the_counts_of_the_services() {
    let Some(site) = console_site() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (store, spools) = (path("store"), path("spool"));
    let alive = syslog_to(0);
    let dead = format!("tls://{}:6514", collector(1));
    let spooled = format!("tcp://{}:601", collector(2));
    let destinations = format!("{alive} {dead} {spooled}?spool=2MiB");
    let flows = format!("udp://{}:2055", collector(0));
    let sink = site.sink(&[at(collector(0), 514), at(collector(0), 2055)], numbered());
    let environment = [
        ("SEKIWAKE_SYSLOG_DESTINATIONS", destinations.as_str()),
        ("SEKIWAKE_XFLOW_DESTINATIONS", &flows),
        ("SEKIWAKE_STORE_DIR", &store),
        ("SEKIWAKE_SPOOL_DIR", &spools),
        ("SEKIWAKE_ANOMALY_INTERVAL", "1s"),
        ("SEKIWAKE_CONSOLE_STORERS", "127.0.0.1:9605"),
    ];
    let mut services = site.start(&[CAPTURE, PROXY, SYSLOG, XFLOW, STORER, DETECTOR, CONSOLE], &environment);
    let mut browser = Browser::start(&site.host).unwrap();
    browser.show_on(WIDE).unwrap();
    browser.open(&format!("{URL}/console/destinations")).unwrap();

    // Under load: the rate of the page is that of the counts over the same seconds.
    let sources = "--from 198.19.0.0/16 --sources 32 --protocol rfc5424,netflow5 --size 200";
    let mut sender = site.start_sender(&format!("--to {MIRRORED} {sources} --rate 1000 --duration 200s"));
    wait_for_rates(
        &mut browser,
        || {
            let sent = |service: &str, uri: &str| of_destination(&services.get(service).metrics().unwrap(), SENT, uri);
            [&alive, &flows].map(|uri| (uri.clone(), sent(if *uri == alive { SYSLOG } else { XFLOW }, uri)))
        },
        |tree, uri| destination(tree, uri).and_then(|cells| rate(&cells[4])),
    );
    browser.open(URL).unwrap();
    wait_for_rates(
        &mut browser,
        || {
            let received = |service: &str| {
                services.get(service).metrics().unwrap().count("sekiwake_bus_received_records_total", &[])
            };
            let groups =
                [(SYSLOG, "syslog-forwarder.default"), (XFLOW, "xflow-forwarder.default"), (STORER, "storer.default")];
            groups.map(|(service, name)| (name.to_owned(), received(service)))
        },
        |tree, name| group(tree, name).and_then(|cells| rate(&cells[4])),
    );
    picture(&mut browser, "console-flow");
    browser.open(&format!("{URL}/console/anomalies")).unwrap();
    picture(&mut browser, "console-anomalies");
    sender.terminate().unwrap();
    let sent = sekiwake_tests::sent_by(&mut sender, LONG).unwrap();
    assert!(sent > 0);

    // Traffic has stopped: totals, reasons and states are equal.
    browser.open(&format!("{URL}/console/destinations")).unwrap();
    wait_for_page(&mut browser, "the destinations of the counts", |tree| {
        let samples = services.get(SYSLOG).metrics().unwrap();
        [&alive, &dead, &spooled].into_iter().all(|uri| {
            let Some(cells) = destination(tree, uri) else { return false };
            let dropped = reasons(&samples, uri);
            let spool = of_destination(&samples, "sekiwake_forward_spool_datagrams", uri);
            number(&cells[3]) == of_destination(&samples, SENT, uri)
                && number(&cells[5]) == dropped.iter().map(|(_, count)| count).sum::<u64>()
                && shown_reasons(&cells[6]) == dropped
                && (spool == 0 || number(&cells[8]) == spool)
        })
    });
    let tree = browser.tree().unwrap();
    let [up, down, filled] = [&alive, &dead, &spooled].map(|uri| destination(&tree, uri).unwrap());
    assert!(up[2].starts_with("● up") && number(&up[3]) > 0, "{up:?}");
    assert!(down[2].starts_with("▲ down") && number(&down[5]) > 0, "{down:?}");
    assert!(down[9].contains("refused"), "{down:?}");
    assert!(number(&filled[8]) > 0, "nothing in the spool: {filled:?}");
    picture(&mut browser, "console-destinations");

    browser.open(URL).unwrap();
    wait_for_page(&mut browser, "the groups of the counts", |tree| {
        [(SYSLOG, "syslog-forwarder.default"), (XFLOW, "xflow-forwarder.default"), (STORER, "storer.default")]
            .into_iter()
            .all(|(service, name)| {
                let samples = services.get(service).metrics().unwrap();
                let proxy = services.get(PROXY).metrics().unwrap();
                let Some(cells) = group(tree, name) else { return false };
                number(&cells[2]) == samples.count("sekiwake_group_owned_shards", &[])
                    // Without those that were handled while shards came.
                    && number(&cells[3]) > 0
                    && number(&cells[3]) <= samples.count("sekiwake_bus_received_records_total", &[])
                    && number(&cells[5]) == proxy.count("sekiwake_group_lag_records", &[&format!("group=\"{name}\"")])
                    && number(&cells[6]) == samples.count("sekiwake_bus_lost_records_total", &[])
            })
    });
    let capture = services.get(CAPTURE).metrics().unwrap();
    wait_for_page(&mut browser, "the capture of the counts", |tree| {
        let Some(cells) = tree.row("Captures and their interfaces", |cells| cells[1] == WIRE) else { return false };
        let published = |kind: &str| {
            let text = cells[5].split(&format!("{kind} ")).nth(1).unwrap_or("0");
            number(text)
        };
        let counted =
            |kind: &str| capture.count("sekiwake_bus_published_records_total", &[&format!("kind=\"{kind}\"")]);
        published("syslog") == counted("syslog") && published("xflow") == counted("xflow")
    });
    let verdict = browser.text().unwrap();
    assert!(!verdict.contains("could not be read"), "{verdict}");
    assert!(verdict.contains("1 destination down") || verdict.contains("2 destinations down"), "{verdict}");

    // A collector ends: ICMP says so.
    drop(sink);
    browser.open(&format!("{URL}/console/destinations")).unwrap();
    let sender = site.start_sender(&format!("--to {MIRRORED} {sources} --rate 200 --duration 100s"));
    wait_for_page(&mut browser, "the collector that ended", |tree| {
        destination(tree, &alive).is_some_and(|cells| cells[2].starts_with("▲ down"))
    });

    // A member is starved: the other one owns its shards, and the page says which is silent.
    let second = [("SEKIWAKE_ADMIN", "127.0.0.1:9702"), ("SEKIWAKE_MEMBER", "second")];
    services.add(
        site.start_one(SYSLOG, &[&environment[..3], &[("SEKIWAKE_SPOOL_DIR", &*path("spool2"))], &second].concat()),
    );
    browser.open(URL).unwrap();
    wait_for_page(&mut browser, "two members", |tree| {
        member(tree, "syslog-forwarder.default", "second").is_some_and(|cells| number(&cells[2]) > 0)
    });
    let starved = services.take(SYSLOG);
    starved.process.signal(Signal::STOP).unwrap();
    wait_for_page(&mut browser, "the silent member", |tree| {
        let silent = tree.row("Services and their processes", |cells| cells[3].contains("silent since"));
        let owner = member(tree, "syslog-forwarder.default", "second");
        silent.is_some() && owner.is_some_and(|cells| number(&cells[2]) == 64)
    });
    starved.process.signal(Signal::CONT).unwrap();
    sender.terminate().unwrap();

    // An orderly stop is shown as such.
    services.take(STORER).stop().unwrap();
    wait_for_page(&mut browser, "the stopped storer", |tree| {
        let storer = tree.row("Services and their processes", |cells| cells[0] == "storer");
        storer.is_some_and(|cells| cells[3].contains("stopped since"))
    });

    // Nothing else was requested, and no script failed.
    let foreign: Vec<&String> = browser.requests().iter().filter(|url| !url.starts_with(URL)).collect();
    assert!(foreign.iter().all(|url| *url == "about:blank"), "{foreign:?}");
    assert_eq!(browser.complaints(), &[] as &[String]);
    drop(starved);
    services.stop().unwrap();
}

/// Waits until every rate of the page is that of the counts over the same seconds, within 10 %.
fn wait_for_rates<const N: usize>(
    browser: &mut Browser,
    counts: impl Fn() -> [(String, u64); N],
    shown: impl Fn(&Tree, &str) -> Option<f64>,
) {
    let mut samples: VecDeque<(Instant, [(String, u64); N])> = VecDeque::new();
    // More than one sample, because any rate is right once while the right one rises past it.
    let mut right = 0;
    wait_for_page(browser, "the page to show the rates", |tree| {
        let now = Instant::now();
        samples.push_back((now, counts()));
        while samples.get(1).is_some_and(|(at, _)| now - *at >= RATE_WINDOW) {
            samples.pop_front();
        }
        let ((first_at, first), (last_at, last)) = (&samples[0], &samples[samples.len() - 1]);
        let seconds = (*last_at - *first_at).as_secs_f64();
        let is_right = |((name, first), (_, last)): (&(String, u64), &(String, u64))| {
            let counted = (last - first) as f64 / seconds;
            counted > 10.0 && shown(tree, name).is_some_and(|shown| (shown - counted).abs() <= 0.1 * counted)
        };
        let are_right = seconds >= RATE_WINDOW.as_secs_f64() && first.iter().zip(last).all(is_right);
        right = if are_right { right + 1 } else { 0 };
        right >= 5
    });
}

#[test]
fn records_that_the_bus_did_not_take_are_shown() {
    let Some(site) = console_site() else { return };
    let destinations = syslog_to(0);
    let environment = [("SEKIWAKE_SYSLOG_DESTINATIONS", destinations.as_str()), ("SEKIWAKE_RETAIN", "4MiB")];
    let services = site.start(&[CAPTURE, PROXY, SYSLOG, CONSOLE], &environment);
    let unpublished = |services: &Services<'_>| {
        let metrics = services.get(CAPTURE).metrics().unwrap();
        metrics.count("sekiwake_bus_unpublished_records_total", &["reason=\"bus_full\""])
    };
    let mut browser = Browser::start(&site.host).unwrap();
    browser.show_on(WIDE).unwrap();
    browser.open(URL).unwrap();
    wait_for_page(&mut browser, "the capture", |tree| !tree.table("Captures and their interfaces").is_empty());
    services.get(PROXY).process.signal(Signal::STOP).unwrap();
    let protocol = "--from 198.19.0.0/16 --sources 8 --protocol rfc5424 --size 1400";
    let mut sender = site.start_sender(&format!("--to {MIRRORED} {protocol} --rate 5000 --duration 100s"));
    wait_for("a full bus", LONG, || unpublished(&services) > 0).unwrap();
    sender.terminate().unwrap();
    sender.wait(LONG).unwrap();
    services.get(PROXY).process.signal(Signal::CONT).unwrap();
    wait_for_page(&mut browser, "the loss of the counts", |tree| {
        let lost = unpublished(&services);
        let loss = tree.row("Losses by place and reason", |cells| cells[1] == "bus_full");
        let capture = tree.row("Captures and their interfaces", |cells| cells[1].contains("not taken by the bus"));
        loss.is_some_and(|cells| number(&cells[2]) == lost) && capture.is_some_and(|cells| number(&cells[2]) == lost)
    });
    services.stop().unwrap();
}

#[test]
fn many_sources_and_destinations_are_readable() {
    let Some(site) = console_site() else { return };
    let all: Vec<String> = (0..64).map(|index| format!("udp://{}:{}", collector(0), 20_000 + index)).collect();
    let destinations = all.join(" ");
    let sinks: Vec<_> = (0..64).map(|index| at(collector(0), 20_000 + index)).collect();
    let _sink = site.sink(&sinks, Options::counts());
    let environment = [("SEKIWAKE_SYSLOG_DESTINATIONS", destinations.as_str())];
    let services = site.start(&[CAPTURE, PROXY, SYSLOG, CONSOLE], &environment);
    let mut browser = Browser::start(&site.host).unwrap();
    browser.show_on(WIDE).unwrap();
    browser.open(&format!("{URL}/console/sources")).unwrap();
    let sources = "--from 198.18.0.0/16 --sources 10000 --protocol rfc3164 --size 120";
    let sender = site.start_sender(&format!("--to {MIRRORED} {sources} --rate 1000 --duration 100s"));
    wait_for_page(&mut browser, "10,000 sources", |tree| {
        tree.texts("status").iter().any(|text| text.contains("10,000 sources")) && tree.table("Top").len() == 50
    });
    let open = |browser: &mut Browser, view: &str| {
        browser.open(&format!("{URL}{view}")).unwrap();
        let too_wide = browser.evaluate("document.documentElement.scrollWidth - innerWidth").unwrap();
        assert!(too_wide.as_i64() <= Some(0), "{view}: {too_wide} pixels too wide");
    };
    open(&mut browser, "/console/destinations");
    wait_for_page(&mut browser, "all destinations", |tree| all.iter().all(|uri| destination(tree, uri).is_some()));
    open(&mut browser, "/");
    // The drawing says how many it leaves out.
    let text = browser.text().unwrap();
    assert!(text.contains("Destinations (14 of 64)"), "{text}");
    sender.terminate().unwrap();
    services.stop().unwrap();
}

const SENT: &str = "sekiwake_forward_sent_datagrams_total";

/// Markup in every form that might escape into the page.
const INJECTIONS: [&str; 6] = [
    "<script>window.injected = 1</script>",
    "\"><img src=x onerror=\"window.injected = 1\">",
    "'><svg onload='window.injected = 1'>",
    "</td></tr></table><h1>injected</h1>",
    "<a href=\"javascript:window.injected = 1\">x</a>",
    "&lt;script&gt;<!--]]>",
];

/// An SNMPv2c trap with this community and this string as a variable (RFC 3416 §3).
fn trap(text: &str) -> Vec<u8> {
    fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
        let length = u8::try_from(content.len()).unwrap();
        let mut head = vec![tag];
        if length >= 0x80 {
            head.push(0x81);
        }
        head.push(length);
        [head, content.to_vec()].concat()
    }
    let binding = |oid: &[u8], value: Vec<u8>| tlv(0x30, &[tlv(0x06, oid), value].concat());
    let trap_oid = tlv(0x06, &[0x2b, 6, 1, 6, 3, 1, 1, 5, 3]);
    let bindings = [
        binding(&[0x2b, 6, 1, 2, 1, 1, 3, 0], tlv(0x43, &[1])),
        binding(&[0x2b, 6, 1, 6, 3, 1, 1, 4, 1, 0], trap_oid),
        // sysDescr.0
        binding(&[0x2b, 6, 1, 2, 1, 1, 1, 0], tlv(0x04, text.as_bytes())),
    ];
    let pdu = [tlv(2, &[1]), tlv(2, &[0]), tlv(2, &[0]), tlv(0x30, &bindings.concat())].concat();
    tlv(0x30, &[tlv(2, &[1]), tlv(4, text.as_bytes()), tlv(0xa7, &pdu)].concat())
}

/// An IPFIX message (RFC 7011 §3) with a template and one record: an interface name of variable
/// length, and a source address.
fn ipfix(text: &str) -> Vec<u8> {
    let numbers = |numbers: &[u16]| numbers.iter().flat_map(|number| number.to_be_bytes()).collect::<Vec<u8>>();
    let set = |id: u16, content: &[u8]| {
        let length = u16::try_from(4 + content.len()).unwrap();
        [&numbers(&[id, length]), content].concat()
    };
    // interfaceName (82), of variable length, and sourceIPv4Address (8).
    let template = set(2, &numbers(&[256, 2, 82, u16::MAX, 8, 4]));
    let record = [&[u8::try_from(text.len()).unwrap()], text.as_bytes(), &[198, 51, 100, 9]].concat();
    let sets = [template, set(256, &record)].concat();
    let length = u16::try_from(16 + sets.len()).unwrap();
    // Export time, sequence number and observation domain.
    [numbers(&[10, length, 0, 1, 0, 0, 0, 1]), sets].concat()
}

#[test]
fn markup_in_payloads_is_text() {
    let Some(site) = console_site() else { return };
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().display().to_string();
    let environment = [("SEKIWAKE_STORE_DIR", store.as_str()), ("SEKIWAKE_CONSOLE_STORERS", "localhost:9605")];
    let services = site.start(&[CAPTURE, PROXY, STORER, CONSOLE], &environment);
    let mut browser = Browser::start(&site.host).unwrap();
    browser.show_on(WIDE).unwrap();
    browser.open(&format!("{URL}/console/tail?kind=all")).unwrap();
    let send = |kind: &str| {
        for injection in INJECTIONS {
            let (port, payload) = match kind {
                "syslog" => (514, format!("<13>1 - {injection} - - - {injection}").into_bytes()),
                "xflow" => (2055, ipfix(injection)),
                _ => (162, trap(injection)),
            };
            site.send_payloads(at(FIRST_DEVICE, 0), at(MIRRORED, port), &[payload]);
        }
    };
    for kind in ["syslog", "xflow", "snmptrap"] {
        wait_for(&format!("rows of {kind}"), LONG, || {
            send(kind);
            let text = browser.text().unwrap();
            INJECTIONS.iter().all(|injection| {
                // The tail escapes control characters and quotation marks as the tap does.
                text.replace('\\', "").contains(injection)
            })
        })
        .unwrap_or_else(|late| panic!("{late}: {}", browser.text().unwrap()));
    }
    let shown = |browser: &mut Browser| {
        let injected = "window.injected === 1 || document.querySelectorAll('main h1').length > 1 \
            || document.querySelector('main img, main script, main a[href^=javascript], main [onload]') !== null";
        browser.evaluate(injected).unwrap()
    };
    assert_eq!(shown(&mut browser), Value::Bool(false));
    // The same from the store, and in the form.
    wait_for("the stored messages", LONG, || {
        browser.open(&format!("{URL}/console/search?text=%3Cscript%3E")).unwrap();
        browser.text().unwrap().contains(INJECTIONS[0])
    })
    .unwrap();
    assert_eq!(shown(&mut browser), Value::Bool(false));
    let value = browser.evaluate("document.querySelector('input[name=text]').value").unwrap();
    assert_eq!(value, "<script>");
    assert_eq!(browser.complaints(), &[] as &[String]);
    services.stop().unwrap();
}

/// Where `deploy/packages test` unpacks it.
const AXE: &str = "target/unpacked/axe-playwright-python/axe_playwright_python/axe.min.js";

#[test]
fn page_is_accessible_in_both_schemes_and_narrow() {
    let Some(site) = console_site() else { return };
    let axe = fs::read_to_string(document(AXE));
    if !met_or_skipped(axe.as_ref().map(drop).map_err(|error| format!("{AXE}: {error}"))) {
        return;
    }
    let axe = axe.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    fs::write(&token, "0123456789abcdef0123\n").unwrap();
    let destinations = format!("{} tls://{}:6514", syslog_to(0), collector(1));
    let store = folder.path().join("store");
    let environment = [
        ("SEKIWAKE_SYSLOG_DESTINATIONS", destinations.as_str()),
        ("SEKIWAKE_STORE_DIR", store.to_str().unwrap()),
        ("SEKIWAKE_ANOMALY_INTERVAL", "1s"),
        ("SEKIWAKE_CONSOLE_TOKEN_FILE", token.to_str().unwrap()),
        ("SEKIWAKE_CONSOLE_STORERS", "127.0.0.1:9605"),
    ];
    let mut services = site.start(&[CAPTURE, PROXY, SYSLOG, STORER, DETECTOR, CONSOLE], &environment);
    let sender = site.start_sender(&format!("--to {MIRRORED} --protocol rfc5424 --rate 100 --duration 100s"));
    let mut browser = Browser::start(&site.host).unwrap();

    // By keyboard alone: the token, then the second view.
    browser.show_on(WIDE).unwrap();
    browser.open(URL).unwrap();
    check_axe(&mut browser, &axe, "the form");
    for key in "0123456789abcdef0123".chars() {
        browser.press(&key.to_string(), key.to_ascii_uppercase().into()).unwrap();
    }
    browser.press("Enter", 13).unwrap();
    wait_for_page(&mut browser, "the page", |tree| !tree.table("Services and their processes").is_empty());
    let cookie = browser.evaluate("document.cookie").unwrap();
    assert_eq!(cookie, "", "scripts can read the cookie");
    let mut reached = false;
    for _ in 0..10 {
        browser.press("Tab", 9).unwrap();
        reached |= browser.evaluate("document.activeElement.textContent").unwrap() == "Destinations";
        if reached {
            break;
        }
    }
    assert!(reached, "the view cannot be reached by keyboard");
    browser.press("Enter", 13).unwrap();
    wait_for_page(&mut browser, "the destinations", |tree| {
        !tree.table("Destinations, those in trouble first").is_empty()
    });

    let views = [
        "/",
        "/console/destinations",
        "/console/sources",
        "/console/tail",
        "/console/search?text=a",
        "/console/anomalies",
    ];
    for screen in [WIDE, Screen { is_dark: true, ..WIDE }, NARROW, Screen { is_dark: true, ..NARROW }] {
        browser.show_on(screen).unwrap();
        for view in views {
            browser.open(&format!("{URL}{view}")).unwrap();
            check_axe(&mut browser, &axe, &format!("{view} {screen:?}"));
            let too_wide = browser.evaluate("document.documentElement.scrollWidth - innerWidth").unwrap();
            assert!(too_wide.as_i64() <= Some(0), "{view} {screen:?}: {too_wide} pixels too wide");
        }
    }
    browser.show_on(Screen { is_dark: true, height: 480, ..WIDE }).unwrap();
    browser.open(&format!("{URL}/console/tail")).unwrap();
    wait_for_page(&mut browser, "rows of the tail", |tree| tree.table("Records, the newest first").len() > 20);
    picture(&mut browser, "console-tail");
    sender.terminate().unwrap();

    // Times are those of the browser's zone, 5:30 h before UTC, with UTC beside them.
    let time = browser.evaluate("document.querySelector('.asof time, p time').textContent").unwrap();
    assert!(time.as_str().unwrap().contains(" UTC)"), "{time}");
    // Without the proxy the figures are old, and the page says so.
    browser.open(URL).unwrap();
    services.take(PROXY).kill().unwrap();
    wait_for_page(&mut browser, "the lost bus", |tree| {
        tree.texts("status").iter().any(|text| text.contains("No status has arrived since"))
    });
    drop(services);
}

/// Runs the accessibility check on the present page.
fn check_axe(browser: &mut Browser, axe: &str, what: &str) {
    browser.evaluate(&format!("{axe}; 0")).unwrap();
    let run = "axe.run(document, { resultTypes: ['violations'] }).then((found) => found.violations.map((one) => \
        `${one.id}: ${one.help}: ${one.nodes.map((node) => node.html.slice(0, 200)).join(' | ')}`))";
    let violations = browser.evaluate(run).unwrap();
    assert_eq!(violations, Value::Array(Vec::new()), "{what}");
}

#[test]
fn page_without_token_says_how_to_enable_it() {
    let Some(site) = console_site() else { return };
    let environment = [("SEKIWAKE_ADMIN", "198.51.100.1:9608")];
    let mut console = site.start_one(CONSOLE, &environment);
    wait_for("the admin server", LONG, || console.is_alive()).unwrap();
    let mut browser = Browser::start(&site.host).unwrap();
    browser.open("http://198.51.100.1:9608/").unwrap();
    assert!(browser.text().unwrap().contains("SEKIWAKE_CONSOLE_TOKEN_FILE"));
    console.stop().unwrap();
}

/// The pictures of the page are small, and each is used.
#[test]
fn pictures_are_small_and_used() {
    let page = fs::read_to_string(document("docs/console.md")).unwrap();
    for entry in fs::read_dir(document("docs/images")).unwrap() {
        let path = entry.unwrap().path();
        let name = Path::new(path.file_name().unwrap()).display().to_string();
        assert!(page.contains(&format!("images/{name}")), "{name} is not in docs/console.md");
        assert!(fs::metadata(&path).unwrap().len() <= MAX_PICTURE as u64, "{name} is too large");
    }
}
