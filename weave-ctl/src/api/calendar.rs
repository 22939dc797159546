//! Times as the original writes them, always in UTC.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Years beyond this are shown as this one, so that a broken clock cannot make the text longer.
const LAST_SECOND: u64 = 253_402_300_799;

/// RFC 3339 with as many decimals as needed (`2026-11-21T19:40:42.19Z`): `LastSeen`, `NextCheckAt`.
#[must_use]
pub fn rfc3339(time: SystemTime) -> String {
    let (date, clock, nanos) = parts(time);
    format!("{date}T{clock}{}Z", decimals(nanos))
}

/// The form in a connection's `retry:` (`2015-08-06 18:55:38.246910357 +0000 UTC`).
#[must_use]
pub fn with_zone(time: SystemTime) -> String {
    let (date, clock, nanos) = parts(time);
    format!("{date} {clock}{} +0000 UTC", decimals(nanos))
}

/// The form in log lines (`2015/08/06 18:55:38.246910`).
#[must_use]
pub fn log_time(time: SystemTime) -> String {
    let (date, clock, nanos) = parts(time);
    format!("{} {clock}.{:06}", date.replace('-', "/"), nanos / 1000)
}

fn parts(time: SystemTime) -> (String, String, u32) {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let seconds = since.as_secs().min(LAST_SECOND);
    let (year, month, day) = date(seconds / 86_400);
    let of_day = seconds % 86_400;
    (
        format!("{year:04}-{month:02}-{day:02}"),
        format!("{:02}:{:02}:{:02}", of_day / 3600, of_day / 60 % 60, of_day % 60),
        since.subsec_nanos(),
    )
}

fn decimals(nanos: u32) -> String {
    if nanos == 0 {
        return String::new();
    }
    format!(".{nanos:09}").trim_end_matches('0').to_owned()
}

/// Gregorian date of a day counted from 1970-01-01.
fn date(mut day: u64) -> (u64, usize, u64) {
    let leap = |y: u64| y.is_multiple_of(4) && !y.is_multiple_of(100) || y.is_multiple_of(400);
    let mut year = 1970;
    while day >= 365 + u64::from(leap(year)) {
        day -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if day < length {
            break;
        }
        day -= length;
        month += 1;
    }
    (year, month, day + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts() {
        for (seconds, nanos, shown) in [
            (0, 0, "1970-01-01T00:00:00Z"),
            (1_438_887_338, 246_910_357, "2015-08-06T18:55:38.246910357Z"),
            (951_782_400, 190_000_000, "2000-02-29T00:00:00.19Z"),
            (4_107_542_399, 0, "2100-02-28T23:59:59Z"),
            (4_107_542_400, 0, "2100-03-01T00:00:00Z"),
            (1_798_761_599, 1, "2026-12-31T23:59:59.000000001Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::new(seconds, nanos)), shown);
        }
        let time = UNIX_EPOCH + Duration::new(1_438_887_338, 246_910_357);
        assert_eq!(with_zone(time), "2015-08-06 18:55:38.246910357 +0000 UTC");
        assert_eq!(log_time(time), "2015/08/06 18:55:38.246910");
        assert!(
            rfc3339(UNIX_EPOCH + Duration::from_secs(LAST_SECOND * 2)).starts_with("9999-12-31T23:59:59")
        );
    }
}
