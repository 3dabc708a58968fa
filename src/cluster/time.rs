//! Times as the API server has them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

/// RFC 3339, in whole seconds.
pub(super) fn rfc3339(at: SystemTime) -> Time {
    // Only times before the year -9999 or after 9999 fail.
    Time(Timestamp::try_from(at).unwrap_or_default())
}

/// The time without what [`rfc3339`] leaves out.
pub(super) fn whole_seconds(at: SystemTime) -> SystemTime {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    UNIX_EPOCH + Duration::from_secs(since.as_secs())
}

/// The time that was written so.
pub(super) fn parse(text: &str) -> Option<SystemTime> {
    let time: Timestamp = text.parse().ok()?;
    Some(time.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let at = UNIX_EPOCH + Duration::from_millis(1_800_000_000_750);
        let text = serde_json::to_value(rfc3339(at)).unwrap();
        assert_eq!(text, "2027-01-15T08:00:00Z");
        assert_eq!(parse(text.as_str().unwrap()), Some(whole_seconds(at)));
        for bad in ["", "yesterday", "2027-13-01T00:00:00Z", "2027-01-15"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
