//! Sizes and times in units that people read.

use std::time::Duration;

/// `512 B`, `1.5 KiB`, `23 MiB`.
#[must_use]
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    #[allow(clippy::cast_precision_loss)] // three digits are shown
    let mut size = n as f64 / 1024.0;
    let mut units = UNITS.iter();
    let mut unit = units.next();
    while size >= 1023.95
        && let Some(next) = units.next()
    {
        size /= 1024.0;
        unit = Some(next);
    }
    let unit = unit.copied().unwrap_or_default();
    if size < 9.95 {
        format!("{size:.1} {unit}")
    } else {
        format!("{size:.0} {unit}")
    }
}

/// `0.35 ms`, `12 ms`, `1.2 s`: for what is measured.
#[must_use]
pub fn latency(time: Duration) -> String {
    let ms = time.as_secs_f64() * 1e3;
    if ms < 9.995 {
        format!("{ms:.2} ms")
    } else if ms < 999.5 {
        format!("{ms:.0} ms")
    } else {
        format!("{:.1} s", time.as_secs_f64())
    }
}

/// `90s`, `30m`, `1h30m`: as it is written on the command line, nothing left out.
#[must_use]
pub fn duration(seconds: u64) -> String {
    let parts = [
        (seconds / 3600, 'h'),
        (seconds / 60 % 60, 'm'),
        (seconds % 60, 's'),
    ];
    let text: String = parts
        .into_iter()
        .filter(|(n, _)| *n > 0)
        .map(|(n, unit)| format!("{n}{unit}"))
        .collect();
    if text.is_empty() { "0s".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_people_read_them() {
        for (n, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (10_240, "10 KiB"),
            (1_048_575, "1.0 MiB"),
            (5_000_000_000, "4.7 GiB"),
            (u64::MAX, "16 EiB"),
        ] {
            assert_eq!(bytes(n), text);
        }
        for (micros, text) in [(350, "0.35 ms"), (12_345, "12 ms"), (1_234_567, "1.2 s")] {
            assert_eq!(latency(Duration::from_micros(micros)), text);
        }
        for (seconds, text) in [(0, "0s"), (90, "1m30s"), (3600, "1h"), (100_000, "27h46m40s")] {
            assert_eq!(duration(seconds), text);
        }
    }
}
