//! Outputs of real original peers, for tests (`tests/fixtures/golden`).

#![allow(clippy::expect_used)]

/// `SCENARIO.HOST` of all report files.
pub const SCENARIOS: [&str; 11] = [
    "01-single-idle.h1",
    "04-three-dns.h1",
    "04-three-dns.h2",
    "06-connect-unreachable.h1",
    "06a-connecting-unreachable.h1",
    "08-h3-gone.h1",
    "09-after-rmpeer.h1",
    "11-h4-range-mismatch.h4",
    "12-encrypted-seed-observer.h1",
    "13-trusted.h2",
    "15-consensus-wait.h1",
];

/// Contents of one file.
pub fn text(name: &str) -> String {
    let path = format!("{}/tests/fixtures/golden/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(path).expect("fixture")
}

/// The report of a scenario.
pub fn report(scenario: &str) -> super::report::Report {
    serde_json::from_str(&text(&format!("{scenario}.report.json"))).expect("report")
}
