//! Medians, ratios of the same round, the table.

use serde::Serialize;
use serde_json::{Value, json};

use super::measure::Sample;

/// All rounds of one path.
#[derive(Debug, Serialize)]
pub struct Series {
    /// Its name.
    pub path: &'static str,
    /// One sample a round.
    pub rounds: Vec<Sample>,
}

/// A column of the table.
struct Figure {
    name: &'static str,
    of: fn(&Sample) -> f64,
    scale: f64,
}

const FIGURES: [Figure; 6] = [
    Figure {
        name: "TCP 1 stream, Gb/s",
        of: |s| s.tcp1,
        scale: 1.0,
    },
    Figure {
        name: "TCP 4 streams, Gb/s",
        of: |s| s.tcp4,
        scale: 1.0,
    },
    Figure {
        name: "round trip p50, us",
        of: |s| s.p50,
        scale: 1.0,
    },
    Figure {
        name: "round trip p99, us",
        of: |s| s.p99,
        scale: 1.0,
    },
    Figure {
        name: "UDP 64 B, kpps",
        of: |s| s.udp,
        scale: 1e-3,
    },
    Figure {
        name: "CPU, ms per Gb",
        of: |s| s.cpu,
        scale: 1.0,
    },
];

/// Median, lowest and highest.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// The middle value, or the mean of the middle two.
    pub median: f64,
    /// The lowest.
    pub min: f64,
    /// The highest.
    pub max: f64,
}

/// Of no values it is zero.
pub fn spread(values: impl IntoIterator<Item = f64>) -> Spread {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let at = |index: usize| values.get(index).copied().unwrap_or(0.0);
    let last = values.len().saturating_sub(1);
    Spread {
        median: f64::midpoint(at(last / 2), at(values.len() / 2)),
        min: at(0),
        max: at(last),
    }
}

/// Ratios of `path` to `base`, round by round.
fn ratios(path: &Series, base: &Series, of: fn(&Sample) -> f64) -> Spread {
    spread(
        path.rounds
            .iter()
            .zip(&base.rounds)
            .map(|(sample, base)| of(sample) / of(base)),
    )
}

/// Each cell: the median, then the median and spread of the ratios to the first path.
pub fn table(series: &[Series]) -> String {
    let names: String = FIGURES
        .iter()
        .map(|figure| format!(" {} |", figure.name))
        .collect();
    let mut text = format!("| path |{names}\n|---|{}", "---|".repeat(FIGURES.len()));
    let Some(base) = series.first() else { return text };
    for path in series {
        let cells = FIGURES.iter().map(|figure| {
            let median = short(spread(path.rounds.iter().map(figure.of)).median * figure.scale);
            if path.path == base.path {
                return format!(" {median} |");
            }
            let ratio = ratios(path, base, figure.of);
            format!(
                " {median} = **{:.2}** [{:.2}, {:.2}] |",
                ratio.median, ratio.min, ratio.max
            )
        });
        text.push_str(&format!("\n| {} |{}", path.path, cells.collect::<String>()));
    }
    text
}

/// The same, and every sample, for programs.
pub fn json(series: &[Series]) -> Value {
    let Some(base) = series.first() else {
        return Value::Null;
    };
    let paths = series.iter().map(|path| {
        let figures = FIGURES.iter().map(|figure| {
            let absolute = spread(path.rounds.iter().map(figure.of));
            (figure.name.to_owned(), json!({ "value": absolute, "ratio": ratios(path, base, figure.of) }))
        });
        json!({ "path": path.path, "figures": figures.collect::<serde_json::Map<_, _>>(), "rounds": path.rounds })
    });
    json!({ "base": base.path, "paths": paths.collect::<Vec<_>>() })
}

/// The ratio of single-stream TCP between two paths, round by round.
pub fn tcp_ratio(path: &Series, base: &Series) -> Spread {
    ratios(path, base, |sample| sample.tcp1)
}

/// Three digits that matter.
fn short(value: f64) -> String {
    match value {
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(path: &'static str, tcp1: &[f64]) -> Series {
        let sample = |tcp1: &f64| Sample {
            tcp1: *tcp1,
            tcp4: 40.0,
            p50: 5.0,
            p99: 9.0,
            udp: 4e5,
            cpu: 30.0,
        };
        Series {
            path,
            rounds: tcp1.iter().map(sample).collect(),
        }
    }

    #[test]
    fn medians() {
        assert_eq!(
            spread([3.0, 1.0, 2.0]),
            Spread {
                median: 2.0,
                min: 1.0,
                max: 3.0
            }
        );
        assert_eq!(
            spread([4.0, 1.0, 2.0, 3.0]),
            Spread {
                median: 2.5,
                min: 1.0,
                max: 4.0
            }
        );
        assert_eq!(
            spread([]),
            Spread {
                median: 0.0,
                min: 0.0,
                max: 0.0
            }
        );
    }

    #[test]
    fn ratios_are_of_the_same_round() {
        // The median of the ratios, 0.5, is not the ratio of the medians, 10/20 to 40/40.
        let (base, ours) = (
            series("native", &[10.0, 40.0, 40.0]),
            series("weave", &[10.0, 20.0, 10.0]),
        );
        assert_eq!(
            tcp_ratio(&ours, &base),
            Spread {
                median: 0.5,
                min: 0.25,
                max: 1.0
            }
        );
        let table = table(&[base, ours]);
        assert!(
            table.contains("\n| native | 40.0 | 40.0 | 5.00 | 9.00 | 400 | 30.0 |\n"),
            "{table}"
        );
        assert!(
            table.contains("\n| weave | 10.0 = **0.50** [0.25, 1.00] | 40.0 = **1.00** [1.00, 1.00] |"),
            "{table}"
        );
    }
}
