//! The table of the control plane's figures.

use std::fmt::Write as _;

use serde::Serialize;

/// One figure.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    what: String,
    ours: f64,
    original: Option<f64>,
    /// Above 1: better than the original.
    times_better: Option<f64>,
}

impl Row {
    /// The more the better.
    pub fn more(what: &str, ours: f64, original: Option<f64>) -> Self {
        Self::new(what, ours, original, original.map(|o| ours / o))
    }

    /// The less the better.
    pub fn less(what: &str, ours: f64, original: Option<f64>) -> Self {
        Self::new(what, ours, original, original.map(|o| o / ours))
    }

    /// Without anything to compare it with.
    pub fn fact(what: &str, ours: f64) -> Self {
        Self::new(what, ours, None, None)
    }

    fn new(what: &str, ours: f64, original: Option<f64>, times_better: Option<f64>) -> Self {
        Self {
            what: what.to_owned(),
            ours,
            original,
            times_better: times_better.filter(|t| t.is_finite()),
        }
    }
}

/// As Markdown.
pub fn render(rows: &[Row]) -> String {
    let mut text = String::from("| | weave | original | times better |\n|---|---|---|---|\n");
    for row in rows {
        let original = row.original.map(figure).unwrap_or_default();
        let times = row
            .times_better
            .map(|t| format!("**{t:.1}**"))
            .unwrap_or_default();
        let _ = writeln!(
            text,
            "| {} | {} | {original} | {times} |",
            row.what,
            figure(row.ours)
        );
    }
    text.trim_end().to_owned()
}

/// Three digits that count, as far as the number has them.
fn figure(number: f64) -> String {
    match number.abs() {
        n if n >= 100.0 => format!("{number:.0}"),
        n if n >= 10.0 => format!("{number:.1}"),
        n if n >= 0.1 => format!("{number:.2}"),
        _ => format!("{number:.4}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_say_how_much_better() {
        let rows = [
            Row::more("rate, /s", 14_700.0, Some(1470.0)),
            Row::less("time, s", 0.07, Some(0.28)),
            Row::fact("disk, us", 91.26),
        ];
        let text = render(&rows);
        assert!(text.contains("| rate, /s | 14700 | 1470 | **10.0** |"), "{text}");
        assert!(text.contains("| time, s | 0.0700 | 0.28 | **4.0** |"), "{text}");
        assert!(text.ends_with("| disk, us | 91.3 |  |  |"), "{text}");
    }
}
