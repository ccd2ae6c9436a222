//! The bands against numbers that were computed independently (`tests/reference/make.py`).

use sekiwake_anomaly_detector::detect::{BandSettings, Verdict, Window};
use serde_json::Value;

fn assert_close(got: f64, expected: &Value, scale: f64, at: &str) {
    let expected = expected.as_f64().unwrap();
    assert!((got - expected).abs() <= 1e-9 * scale.max(expected.abs()), "{at}: {got} is not {expected}");
}

#[test]
fn every_interval_matches_the_reference() {
    let cases: Vec<Value> = serde_json::from_str(include_str!("../reference/series.json")).unwrap();
    let mut evaluated = 0;
    let mut high = 0;
    let mut low = 0;
    for case in &cases {
        let number = |name: &str| case["settings"][name].as_f64().unwrap();
        let settings = BandSettings {
            window: case["settings"]["window"].as_u64().unwrap() as usize,
            sigma: number("sigma"),
            min_width: number("min_width"),
            min_width_percent: number("min_width_percent"),
        };
        let mut window = Window::default();
        let counts = case["counts"].as_array().unwrap();
        let expected = case["expected"].as_array().unwrap();
        assert_eq!(counts.len(), expected.len());
        for (index, (count, expected)) in counts.iter().zip(expected).enumerate() {
            let at = format!("{} with a window of {}, interval {index}", case["name"], settings.window);
            let Some(count) = count.as_u64() else {
                assert_eq!(expected[0], "unknown", "{at}");
                continue;
            };
            let (bands, verdict) = window.evaluate(&settings, count);
            let name = match verdict {
                Verdict::WarmUp { .. } => "warm_up",
                Verdict::Normal => "normal",
                Verdict::High => "high",
                Verdict::Low => "low",
                Verdict::Unknown => "unknown",
            };
            assert_eq!(name, expected[0], "{at}");
            if let Some(bands) = bands {
                assert_close(bands.average, &expected[1], 0.0, &at);
                // A lower band near zero is the difference of two large numbers.
                assert_close(bands.lower, &expected[2], bands.average, &at);
                assert_close(bands.upper, &expected[3], 0.0, &at);
                evaluated += 1;
            }
            high += i32::from(verdict == Verdict::High);
            low += i32::from(verdict == Verdict::Low);
            window.push(&settings, count);
        }
    }
    assert!(
        cases.len() >= 40 && evaluated > 3_000 && high > 50 && low > 50,
        "{evaluated} evaluated, {high} high, {low} low"
    );
}
