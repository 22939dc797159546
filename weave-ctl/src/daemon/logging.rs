//! Log lines as the original writes them: `INFO: 2026/01/31 12:00:00.000000 message` (cli.md 5).

use std::fmt;
use std::io;
use std::str::FromStr;
use std::time::SystemTime;

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::api::calendar;

/// `--log-level`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Level(tracing::Level);

/// A text that is no level.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a valid logrus Level: \"{0}\"")]
pub struct UnknownLevel(String);

impl Default for Level {
    fn default() -> Self {
        Self(tracing::Level::INFO)
    }
}

impl FromStr for Level {
    type Err = UnknownLevel;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(match text.to_ascii_lowercase().as_str() {
            "debug" => tracing::Level::DEBUG,
            "info" => tracing::Level::INFO,
            "warn" | "warning" => tracing::Level::WARN,
            "error" | "fatal" | "panic" => tracing::Level::ERROR,
            _ => return Err(UnknownLevel(text.to_owned())),
        }))
    }
}

struct Lines;

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let level = match *event.metadata().level() {
            tracing::Level::ERROR => "ERRO",
            tracing::Level::WARN => "WARN",
            tracing::Level::INFO => "INFO",
            tracing::Level::DEBUG | tracing::Level::TRACE => "DEBU",
        };
        write!(writer, "{level}: {}", calendar::log_time(SystemTime::now()))?;
        let mut fields = Fields {
            message: String::new(),
            others: String::new(),
        };
        event.record(&mut fields);
        // One event is one line, whatever a peer put into a text.
        let line = format!(" {}{}", fields.message, fields.others).replace(['\n', '\r'], " | ");
        writeln!(writer, "{line}")
    }
}

struct Fields {
    message: String,
    others: String,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.message = format!("{value:?}");
        } else {
            self.others.push_str(&format!(" {}={value:?}", field.name()));
        }
    }
}

/// Begins to log on standard error.
pub fn init(level: Level) {
    let subscriber = tracing_subscriber::fmt()
        .event_format(Lines)
        .with_writer(io::stderr)
        .with_max_level(level.0)
        .finish();
    // A second daemon in one process (tests) keeps the first one's.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels() {
        assert_eq!("Warning".parse(), Ok(Level(tracing::Level::WARN)));
        assert!(
            "loud"
                .parse::<Level>()
                .is_err_and(|e| e.to_string() == "not a valid logrus Level: \"loud\"")
        );
    }
}
