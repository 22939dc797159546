//! Findings for people and for scripts.

use serde::Serialize;

use super::{Finding, Severity};

/// Escape sequences, or nothing where the reader is no terminal.
#[derive(Debug, Clone, Copy)]
pub struct Colour(pub bool);

impl Colour {
    fn of(self, severity: Severity) -> &'static str {
        match severity {
            _ if !self.0 => "",
            Severity::Problem => "\x1b[1;31m",
            Severity::Warning => "\x1b[1;33m",
            Severity::Note => "\x1b[1m",
        }
    }

    fn end(self) -> &'static str {
        if self.0 { "\x1b[0m" } else { "" }
    }
}

/// How many there are of a severity.
fn count(findings: &[Finding], severity: Severity) -> usize {
    findings
        .iter()
        .filter(|finding| finding.severity == severity)
        .count()
}

/// Is there anything to be repaired?
#[must_use]
pub fn sound(findings: &[Finding]) -> bool {
    findings.iter().all(|finding| finding.severity == Severity::Note)
}

/// For people: grouped by severity, and a last line that sums up.
#[must_use]
pub fn for_people(findings: &[Finding], colour: Colour) -> String {
    let mut text = String::new();
    for severity in [Severity::Problem, Severity::Warning, Severity::Note] {
        let group: Vec<&Finding> = findings.iter().filter(|f| f.severity == severity).collect();
        if group.is_empty() {
            continue;
        }
        let title = match severity {
            Severity::Problem => "PROBLEMS",
            Severity::Warning => "WARNINGS",
            Severity::Note => "NOTES",
        };
        text.push_str(&format!("{}{title}{}\n", colour.of(severity), colour.end()));
        for finding in group {
            text.push_str(&format!("  {}: {}\n", finding.id, finding.what));
            if !finding.why.is_empty() {
                text.push_str(&format!("    why: {}\n", finding.why));
            }
            for step in &finding.run {
                text.push_str(&format!("    run: {step}\n"));
            }
        }
        text.push('\n');
    }
    text.push_str(&summary(findings));
    text.push('\n');
    text
}

fn summary(findings: &[Finding]) -> String {
    if sound(findings) {
        return "nothing to repair".to_owned();
    }
    let several = |count: usize, what: &str| match count {
        1 => format!("1 {what}"),
        _ => format!("{count} {what}s"),
    };
    let fixable = findings
        .iter()
        .filter(|finding| !finding.safe_fix.is_empty())
        .count();
    let mut text = format!(
        "{}, {}",
        several(count(findings, Severity::Problem), "problem"),
        several(count(findings, Severity::Warning), "warning")
    );
    if fixable > 0 {
        text.push_str(&format!(
            "; {fixable} can be mended with 'weave-ctl doctor --fix'"
        ));
    }
    text
}

/// For scripts: an object with the findings; its keys stay as they are, new ones may be added.
///
/// # Errors
/// None in practice: strings and numbers only.
pub fn for_scripts(findings: &[Finding], fixed: Option<&[String]>) -> Result<String, serde_json::Error> {
    #[derive(Serialize)]
    struct Whole<'a> {
        problems: usize,
        warnings: usize,
        notes: usize,
        findings: &'a [Finding],
        #[serde(skip_serializing_if = "Option::is_none")]
        fixed: Option<&'a [String]>,
    }
    let whole = Whole {
        problems: count(findings, Severity::Problem),
        warnings: count(findings, Severity::Warning),
        notes: count(findings, Severity::Note),
        findings,
        fixed,
    };
    serde_json::to_string_pretty(&whole).map(|text| text + "\n")
}
