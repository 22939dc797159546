//! The HTTP interface: report, status texts, metrics, and the control routes (control.md 3).

pub mod backend;
pub mod calendar;
mod fastdp_report;
#[cfg(test)]
mod golden;
pub mod report;
pub mod status;
