use std::{
    io::Write,
    process::{Command, Stdio},
};

use sekiwake_runtime::{Ending, Metrics};

use crate::toys::{both, get, in_background, on_start, start};

#[test]
fn same_name_gives_the_same_family() {
    let metrics = Metrics::new("toy");
    let labels = [("kind", "syslog"), ("reason", "late")];
    metrics.counter("sekiwake_toys_total", "Toys.", &labels).inc();
    metrics.counter("sekiwake_toys_total", "Toys.", &[labels[1], labels[0]]).inc();
    metrics
        .counter_vec("sekiwake_toys_total", "Toys.", &["kind", "reason"])
        .with_label_values(&["xflow", "late"])
        .inc();
    let text = metrics.text();
    assert!(text.contains("sekiwake_toys_total{kind=\"syslog\",reason=\"late\",service=\"toy\"} 2\n"), "{text}");
    assert!(text.contains("sekiwake_toys_total{kind=\"xflow\",reason=\"late\",service=\"toy\"} 1\n"), "{text}");
}

#[test]
#[should_panic(expected = "metric sekiwake_toys has another type")]
fn name_cannot_have_two_types() {
    let metrics = Metrics::new("toy");
    metrics.gauge("sekiwake_toys", "Toys.", &[]);
    metrics.counter("sekiwake_toys", "Toys.", &[]);
}

/// The page of a process of two roles that use the same names.
fn page() -> String {
    for (service, count) in [("first", 2), ("second", 3)] {
        on_start(service, move |scope| {
            let metrics = scope.metrics();
            metrics.counter("sekiwake_toys_total", "Toys.", &[("kind", "wo\"od\n")]).inc_by(count);
            metrics.float_gauge("sekiwake_toys_retained_seconds", "Age.", &[]).set(0.5);
            metrics.histogram("sekiwake_toy_seconds", "Time.", &[0.001, 0.01], &[]).observe(0.005);
            Ok(scope.idle()?)
        });
    }
    let (address, stop, ended) = in_background(start(both(), &[]));
    let (status, page) = get(address, "/metrics");
    assert_eq!(status, 200);
    stop.stop("the test");
    assert_eq!(ended.join().unwrap(), Ending::Done);
    page
}

#[test]
fn families_of_several_roles_are_merged() {
    let page = page();
    let expected = "# HELP sekiwake_toys_total Toys.\n# TYPE sekiwake_toys_total counter\n\
        sekiwake_toys_total{kind=\"wo\\\"od\\n\",service=\"first\"} 2\n\
        sekiwake_toys_total{kind=\"wo\\\"od\\n\",service=\"second\"} 3\n";
    assert!(page.contains(expected), "{page}");
    let version = env!("CARGO_PKG_VERSION");
    for service in ["first", "second"] {
        let line = format!("sekiwake_build_info{{service=\"{service}\",version=\"{version}\"}} 1\n");
        assert!(page.contains(&line), "{page}");
    }
    assert_eq!(page.matches("\nprocess_cpu_seconds_total ").count(), 1, "{page}");
}

#[test]
fn promtool_accepts_the_page() {
    let promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut promtool) = promtool else {
        eprintln!("SKIPPED: promtool is not installed (Debian package prometheus)");
        return;
    };
    promtool.stdin.take().unwrap().write_all(page().as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}");
}
