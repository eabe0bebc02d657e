//! Durations and instants on the command line.

use std::time::Duration;

use citadel_runtime::duration::HumanDuration;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Reads what the configuration files take (`15s`, `1h30m`, `7d`), and plain seconds.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse::<u32>() {
        return Ok(Duration::from_secs(seconds.into()));
    }
    let human: HumanDuration = text.parse().map_err(|error| format!("{error}"))?;
    Ok(human.into())
}

/// Reads an instant: RFC 3339 or seconds since the epoch.
pub(crate) fn parse_instant(text: &str) -> Result<OffsetDateTime, String> {
    if let Ok(seconds) = text.parse::<i64>() {
        return OffsetDateTime::from_unix_timestamp(seconds).map_err(|error| error.to_string());
    }
    OffsetDateTime::parse(text, &Rfc3339).map_err(|_| {
        "that is no instant; write 2026-01-31T12:00:00Z or seconds since the epoch".to_owned()
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn durations_are_the_configuration_s_and_plain_seconds() {
        for (text, wanted) in [
            ("250ms", Duration::from_millis(250)),
            ("10", Duration::from_secs(10)),
            ("10s", Duration::from_secs(10)),
            ("1h30m", Duration::from_secs(5_400)),
            ("7d", Duration::from_secs(604_800)),
        ] {
            assert_eq!(parse_duration(text).unwrap(), wanted, "{text}");
        }
        for text in ["", "s", "-1s", "1.5s", "1w", "99999999999999999999s"] {
            parse_duration(text).unwrap_err();
        }
    }

    #[test]
    fn instants_are_rfc_3339_or_seconds() {
        let wanted = time::macros::datetime!(2026-01-31 12:00 UTC);
        assert_eq!(parse_instant("2026-01-31T12:00:00Z").unwrap(), wanted);
        assert_eq!(parse_instant("2026-01-31T13:00:00+01:00").unwrap(), wanted);
        assert_eq!(parse_instant("1769860800").unwrap(), wanted);
        parse_instant("yesterday").unwrap_err();
    }
}
