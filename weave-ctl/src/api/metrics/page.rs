//! The text format of Prometheus (0.0.4).
//!
//! Written by hand: the usual libraries produce OpenMetrics, where a counter's family has no
//! `_total`, so `# TYPE weave_connection_terminations_total` of the original could not be kept.

use std::fmt::{Display, Write as _};

/// The text while it is written.
#[derive(Default)]
pub struct Page {
    pub text: String,
}

impl Page {
    /// Begins a family of metrics: its samples must follow.
    pub fn family(&mut self, name: &str, help: &str, kind: &str) {
        let _ = write!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    /// One sample of the family that was begun last.
    pub fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.text.push_str(name);
        for (i, (label, text)) in labels.iter().enumerate() {
            let text = text
                .replace('\\', r"\\")
                .replace('"', r#"\""#)
                .replace('\n', r"\n");
            let open = if i == 0 { '{' } else { ',' };
            let _ = write!(self.text, "{open}{label}=\"{text}\"");
        }
        let close = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.text, "{close} {value}");
    }

    /// A family of one sample.
    pub fn single(&mut self, name: &str, help: &str, kind: &str, value: impl Display) {
        self.family(name, help, kind);
        self.sample(name, &[], value);
    }

    /// A family whose samples are those of a map, labelled by their keys; nothing without any.
    pub fn labelled<'a>(
        &mut self,
        (name, help, kind): (&str, &str, &str),
        label: &'a str,
        samples: impl IntoIterator<Item = (&'a str, u64)>,
    ) {
        let samples: Vec<_> = samples
            .into_iter()
            .map(|(key, n)| (vec![(label, key)], n))
            .collect();
        self.samples((name, help, kind), samples);
    }

    /// A family of any number of samples; nothing without any.
    pub fn samples<'a, V: Display>(
        &mut self,
        (name, help, kind): (&str, &str, &str),
        samples: impl IntoIterator<Item = (Vec<(&'a str, &'a str)>, V)>,
    ) {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_some() {
            self.family(name, help, kind);
        }
        for (labels, value) in samples {
            self.sample(name, &labels, value);
        }
    }

    /// A family of one gauge.
    pub fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.single(name, help, "gauge", value);
    }
}
