//! Times as the API server has them: RFC 3339 in UTC, which is all that it writes.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::de::{Deserialize, Deserializer, Error};

const DAY: i64 = 24 * 60 * 60;
/// 400 years, after which the calendar repeats itself.
const ERA: i64 = 146_097;
/// From March 1 of the year 0 to January 1, 1970, in days.
const EPOCH: i64 = 719_468;
/// The last second of the year 9999: a later year has no four digits.
const LAST: i64 = 253_402_300_799;

/// RFC 3339, in whole seconds. What cannot be written so is the beginning of 1970.
#[must_use]
pub fn rfc3339(at: SystemTime) -> String {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let since = i64::try_from(since).ok().filter(|since| *since <= LAST);
    let since = since.unwrap_or_default();
    let (year, month, day) = date(since / DAY);
    let second = since % DAY;
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// The time without what [`rfc3339`] leaves out.
pub(super) fn whole_seconds(at: SystemTime) -> SystemTime {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    UNIX_EPOCH + Duration::from_secs(since.as_secs())
}

/// The time that was written so, with or without parts of a second.
#[must_use]
pub fn parse(text: &str) -> Option<SystemTime> {
    let (date, clock) = text.strip_suffix('Z')?.split_once('T')?;
    let (clock, fraction) = match clock.split_once('.') {
        Some((clock, fraction)) => (clock, nanoseconds(fraction)?),
        None => (clock, 0),
    };
    let [year, month, day] = numbers(date, '-', [4, 2, 2])?;
    let [hour, minute, second] = numbers(clock, ':', [2, 2, 2])?;
    let known = (1..=12).contains(&month)
        && (1..=days_of(year, month)).contains(&day)
        && (hour < 24 && minute < 60 && second < 60);
    if !known {
        return None;
    }
    let seconds = days_until(year, month, day) * DAY + hour * 3600 + minute * 60 + second;
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let start = if seconds < 0 {
        UNIX_EPOCH.checked_sub(whole)
    } else {
        UNIX_EPOCH.checked_add(whole)
    };
    start?.checked_add(Duration::from_nanos(fraction))
}

/// A field that may be missing.
pub(super) fn optional<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<SystemTime>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    let time = |text: String| parse(&text).ok_or_else(|| D::Error::custom("not a time in UTC"));
    text.map(time).transpose()
}

/// Numbers of so many digits each, and nothing else.
fn numbers(text: &str, between: char, digits: [usize; 3]) -> Option<[i64; 3]> {
    let mut parts = text.split(between);
    let mut numbers = [0; 3];
    for (number, digits) in numbers.iter_mut().zip(digits) {
        let part = parts.next().filter(|part| part.len() == digits)?;
        *number = all_digits(part)?.parse().ok()?;
    }
    parts.next().is_none().then_some(numbers)
}

fn nanoseconds(fraction: &str) -> Option<u64> {
    let mut digits = all_digits(fraction)?.to_owned();
    digits.truncate(9);
    format!("{digits:0<9}").parse().ok()
}

/// `parse` would take a sign too.
fn all_digits(text: &str) -> Option<&str> {
    let all = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    all.then_some(text)
}

fn days_of(year: i64, month: i64) -> i64 {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    match month {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970 on; before it, less than none. The year is taken to begin in
/// March, so that the day that comes and goes is its last.
fn days_until(year: i64, month: i64, day: i64) -> i64 {
    let year = if month < 3 { year - 1 } else { year };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * ERA + of_era * 365 + of_era / 4 - of_era / 100 + of_year - EPOCH
}

/// The year, month and day that begin so many days after those of 1970.
fn date(days: i64) -> (i64, i64, i64) {
    let days = days + EPOCH;
    let (era, of_era) = (days / ERA, days % ERA);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / (ERA - 1)) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let from_march = (5 * of_year + 2) / 153;
    let month = (from_march + 2) % 12 + 1;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    (era * 400 + year + i64::from(month < 3), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds.unsigned_abs())
    }

    #[test]
    fn what_is_written_is_read() {
        let time = UNIX_EPOCH + Duration::from_millis(1_800_000_000_750);
        let text = rfc3339(time);
        assert_eq!(text, "2027-01-15T08:00:00Z");
        assert_eq!(parse(&text), Some(whole_seconds(time)));
    }

    #[test]
    fn days_that_come_and_go() {
        // By the program date: `date -u -d TEXT +%s`.
        for (text, seconds) in [
            ("1970-01-01T00:00:00Z", 0),
            ("1972-02-29T23:59:59Z", 68_255_999),
            ("1972-03-01T00:00:00Z", 68_256_000),
            ("2000-02-29T12:00:00Z", 951_825_600),
            ("2000-12-31T23:59:59Z", 978_307_199),
            ("2023-02-28T23:59:59Z", 1_677_628_799),
            ("2024-02-29T00:00:00Z", 1_709_164_800),
            ("2024-12-31T00:00:00Z", 1_735_603_200),
            ("2100-02-28T23:59:59Z", 4_107_542_399),
            ("2100-03-01T00:00:00Z", 4_107_542_400),
            ("9999-12-31T23:59:59Z", LAST),
        ] {
            assert_eq!(rfc3339(at(seconds)), text);
            assert_eq!(parse(text), Some(at(seconds)), "{text}");
        }
    }

    #[test]
    fn every_day_of_a_calendar_round_has_its_name() {
        let (mut year, mut month, mut day) = (1970, 1, 1);
        for number in 0..=ERA {
            assert_eq!(date(number), (year, month, day));
            assert_eq!(days_until(year, month, day), number);
            day += 1;
            if day > days_of(year, month) {
                (month, day) = (month + 1, 1);
            }
            if month > 12 {
                (year, month) = (year + 1, 1);
            }
        }
    }

    #[test]
    fn parts_of_a_second_are_read() {
        let read = |text: &str| parse(text).map(|time| time.duration_since(UNIX_EPOCH).unwrap());
        let half = Some(Duration::from_millis(1500));
        assert_eq!(read("1970-01-01T00:00:01.5Z"), half);
        assert_eq!(read("1970-01-01T00:00:01.500000Z"), half);
        let digits = Some(Duration::new(0, 123_456_789));
        assert_eq!(read("1970-01-01T00:00:00.1234567891Z"), digits);
    }

    #[test]
    fn times_before_1970_are_times() {
        let second = Duration::from_secs(1);
        assert_eq!(parse("1969-12-31T23:59:59Z"), Some(UNIX_EPOCH - second));
        assert!(parse("0001-01-01T00:00:00Z").is_some(), "Go's zero");
        assert_eq!(rfc3339(UNIX_EPOCH - second), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(at(LAST + 1)), "1970-01-01T00:00:00Z");
    }

    #[test]
    fn anything_else_is_no_time() {
        for bad in [
            "",
            "yesterday",
            "2027-01-15",
            "2027-01-15T08:00:00",
            "2027-01-15T08:00:00+00:00",
            "2027-00-01T00:00:00Z",
            "2027-13-01T00:00:00Z",
            "2027-01-00T00:00:00Z",
            "2027-04-31T00:00:00Z",
            "2027-02-29T00:00:00Z",
            "2100-02-29T00:00:00Z",
            "2027-01-15T24:00:00Z",
            "2027-01-15T08:60:00Z",
            "2027-01-15T08:00:60Z",
            "2027-01-15T08:00:00.Z",
            "2027-01-15T08:00:00.-1Z",
            "+027-01-15T08:00:00Z",
            "2027-1-15T08:00:00Z",
            "2027-01-15-01T08:00:00Z",
            "2027-01-15T08:00Z",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
