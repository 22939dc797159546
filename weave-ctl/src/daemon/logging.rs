//! Log lines as the original writes them: `INFO: 2026/01/31 12:00:00.000000 message` (cli.md 5).

use std::fmt;
use std::io;
use std::time::SystemTime;

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::api::calendar;

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
pub fn init(level: LevelFilter) {
    let subscriber = tracing_subscriber::fmt()
        .event_format(Lines)
        .with_writer(io::stderr)
        .with_max_level(level)
        .finish();
    // A second daemon in one process (tests) keeps the first one's.
    let _ = tracing::subscriber::set_global_default(subscriber);
}
