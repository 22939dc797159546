//! Durations as the original's daemon read them: `5s`, `1m30s`, `1.5h`, `300ms`.

use std::time::Duration;

/// A text that is no duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("time: invalid duration {0}")]
pub struct InvalidDuration(String);

/// Numbers with units from `ns` to `h`, one after the other, or 0. Nothing negative.
pub fn duration(text: &str) -> Result<Duration, InvalidDuration> {
    parse(text).ok_or_else(|| InvalidDuration(text.to_owned()))
}

fn parse(text: &str) -> Option<Duration> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    let mut sum = 0;
    while !rest.is_empty() || sum == 0 {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(digits);
        let unit = tail
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        let nanoseconds = match unit {
            "ns" => 1.0,
            "us" | "µs" | "μs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            _ => return None,
        };
        let part = number.parse::<f64>().ok()? * nanoseconds;
        sum = (part.round() as u64).checked_add(sum)?;
        if tail.is_empty() {
            break;
        }
        rest = tail;
    }
    // As long as Go's are: 292 years.
    i64::try_from(sum).ok()?;
    Some(Duration::from_nanos(sum))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_go_writes_them() {
        for (text, milliseconds) in [
            ("5s", 5000),
            ("1m30s", 90_000),
            ("1.5h", 5_400_000),
            ("300ms", 300),
            ("0.25s", 250),
            ("2000us", 2),
            ("2000µs", 2),
            ("3000000ns", 3),
            ("0", 0),
            ("0s", 0),
            ("0h0m1s", 1000),
            ("+2s", 2000),
            (".5s", 500),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for bad in [
            "",
            "5",
            "s",
            "-5s",
            "5d",
            "5 s",
            "5s3",
            "1..5s",
            ".s",
            "9999999999h",
            "1e3s",
            "nan s",
        ] {
            let error = duration(bad).err().map(|e| e.to_string());
            assert_eq!(error, Some(format!("time: invalid duration {bad}")), "{bad}");
        }
    }
}
