//! The HTTP interface: report, status texts, metrics, and the control routes (control.md 3).

pub mod backend;
pub mod calendar;
#[cfg(test)]
pub(crate) mod double;
mod fastdp_report;
#[cfg(test)]
pub(crate) mod golden;
pub mod health_report;
pub mod http;
pub mod metrics;
pub mod report;
pub mod sleeve_report;
pub mod status;
pub mod template;
pub mod traffic_report;
pub mod units;
pub mod views;
