//! Templates of `weave report -f`: the part of Go's `text/template` that reports need (control.md 3.3).
//!
//! Text, comments, trim markers, field chains, variables, literals, pipelines, parentheses, `if`,
//! `range`, `with`, `break`, `continue`, and the functions of [`func`]. No `define`, no methods.
//! Work and output are bounded, since whoever can reach the status port may send a template.

mod exec;
mod func;
mod lex;
mod parse;
#[cfg(test)]
mod tests;
mod value;

use super::report::Report;
use value::Value;

/// A template that has been read.
#[derive(Debug)]
pub struct Template(Vec<parse::Node>);

/// A template that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("template: format:{line}: {text}")]
pub struct ParseError {
    /// From 1.
    pub line: usize,
    /// What is wrong.
    pub text: String,
}

/// A template that does not fit the report, or asks for too much.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ExecError(String);

/// How errors end that name what only the original's templates can do.
const UNSUPPORTED: &str = "is not supported in report formats";

impl ExecError {
    /// Is it our fault, not the template's?
    #[must_use]
    pub fn is_unsupported(&self) -> bool {
        self.0.ends_with(UNSUPPORTED)
    }
}

impl Template {
    /// Reads a template.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        parse::parse(text).map(Self)
    }

    /// Renders the template with the report as `.`.
    pub fn render(&self, report: &Report) -> Result<String, ExecError> {
        let json = report.to_json().map_err(|e| ExecError(e.to_string()))?;
        self.render_json(&json, exec::BUDGET)
    }

    /// Renders the template with a report in its JSON form.
    fn render_json(&self, json: &str, budget: usize) -> Result<String, ExecError> {
        let data: Value = serde_json::from_str(json).map_err(|e| ExecError(e.to_string()))?;
        exec::run(&self.0, &data, budget)
    }
}
