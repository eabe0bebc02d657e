//! Durations as people write them: `15s`, `10m`, `1h30m`, `7d`.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A duration that reads and prints as `15s`, `10m`, `1h30m`, `7d`.
///
/// Units are `d`, `h`, `m`, `s` and `ms`, largest first, each at most once. The longest is
/// [`HumanDuration::MAX`]; whether zero makes sense is the business of whoever uses it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct HumanDuration(Duration);

/// Why a text is no duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// Nothing was written.
    #[error("is empty; write a duration such as 15s, 10m, 1h30m or 7d")]
    Empty,
    /// A number without a unit.
    #[error("`{0}` has no unit; write {0}s, {0}m, {0}h or {0}d")]
    NoUnit(String),
    /// A unit without a number, or a sign.
    #[error("`{0}` is not a duration; write a whole number and a unit, such as 15s or 1h30m")]
    NoNumber(String),
    /// A fraction.
    #[error("`{0}` has a fraction; write whole numbers, such as 1h30m for one and a half hours")]
    Fraction(String),
    /// A unit that is not one of ours.
    #[error("`{unit}` in `{text}` is not a unit; the units are d, h, m, s and ms")]
    UnknownUnit {
        /// The unit as written.
        unit: String,
        /// The whole text.
        text: String,
    },
    /// Units repeated or from small to large.
    #[error("`{0}` has its units out of order; write the largest first and each once (1h30m)")]
    Order(String),
    /// Longer than [`HumanDuration::MAX`].
    #[error("`{0}` is too long; the longest duration is {max}", max = HumanDuration::MAX)]
    TooLong(String),
}

/// Name and length in milliseconds, largest first.
const UNITS: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1_000),
    ("ms", 1),
];

/// Longer texts than this hold no duration; it bounds what an error repeats.
const LONGEST_TEXT: usize = 64;

impl HumanDuration {
    /// A hundred years of 365 days. Far beyond any certificate, and far from where adding it
    /// to a date could overflow.
    pub const MAX: Self = Self(Duration::from_hours(36_500 * 24));

    /// `millis` thousandths of a second.
    pub const fn from_millis(millis: u64) -> Self {
        Self(Duration::from_millis(millis))
    }

    /// `seconds` seconds.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// `minutes` minutes.
    pub const fn from_mins(minutes: u64) -> Self {
        Self::from_secs(minutes * 60)
    }

    /// `hours` hours.
    pub const fn from_hours(hours: u64) -> Self {
        Self::from_secs(hours * 3_600)
    }

    /// `days` days of 24 hours.
    pub const fn from_days(days: u64) -> Self {
        Self::from_secs(days * 86_400)
    }

    /// The duration itself.
    pub const fn get(self) -> Duration {
        self.0
    }
}

// === impl HumanDuration ===

impl FromStr for HumanDuration {
    type Err = DurationError;

    fn from_str(text: &str) -> Result<Self, DurationError> {
        if text.is_empty() {
            return Err(DurationError::Empty);
        }
        if text.len() > LONGEST_TEXT {
            let start: String = text.chars().take(LONGEST_TEXT).collect();
            return Err(DurationError::NoNumber(start));
        }
        let mut total_ms: u64 = 0;
        let mut units_left = UNITS.as_slice();
        let mut rest = text;
        while !rest.is_empty() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let (number, tail) = rest.split_at(digits);
            if tail.starts_with(['.', ',']) {
                return Err(DurationError::Fraction(text.to_owned()));
            }
            if number.is_empty() {
                return Err(DurationError::NoNumber(text.to_owned()));
            }
            let unit_length = tail
                .find(|c: char| c.is_ascii_digit() || c == '.')
                .unwrap_or(tail.len());
            let (unit, tail) = tail.split_at(unit_length);
            if unit.is_empty() {
                return Err(DurationError::NoUnit(text.to_owned()));
            }
            let Some(position) = units_left.iter().position(|(name, _)| *name == unit) else {
                return Err(if UNITS.iter().any(|(name, _)| *name == unit) {
                    DurationError::Order(text.to_owned())
                } else {
                    DurationError::UnknownUnit {
                        unit: unit.to_owned(),
                        text: text.to_owned(),
                    }
                });
            };
            let unit_ms = units_left[position].1;
            units_left = &units_left[position + 1..];
            total_ms = number
                .parse::<u64>()
                .ok()
                .and_then(|n| n.checked_mul(unit_ms))
                .and_then(|ms| ms.checked_add(total_ms))
                .ok_or_else(|| DurationError::TooLong(text.to_owned()))?;
            rest = tail;
        }
        let duration = Self(Duration::from_millis(total_ms));
        if duration > Self::MAX {
            return Err(DurationError::TooLong(text.to_owned()));
        }
        Ok(duration)
    }
}

impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut left = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        if left == 0 {
            return f.write_str("0s");
        }
        for (unit, unit_ms) in UNITS {
            let count = left / unit_ms;
            left %= unit_ms;
            if count > 0 {
                write!(f, "{count}{unit}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl From<HumanDuration> for Duration {
    fn from(duration: HumanDuration) -> Self {
        duration.0
    }
}

impl<'de> Deserialize<'de> for HumanDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = HumanDuration;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration such as 15s, 10m, 1h30m or 7d")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<HumanDuration, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Visitor)
    }
}

impl Serialize for HumanDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn seconds(text: &str) -> u64 {
        text.parse::<HumanDuration>().unwrap().get().as_secs()
    }

    #[test]
    fn reads_what_people_write() {
        assert_eq!(seconds("15s"), 15);
        assert_eq!(seconds("10m"), 600);
        assert_eq!(seconds("1h"), 3_600);
        assert_eq!(seconds("1h30m"), 5_400);
        assert_eq!(seconds("7d"), 604_800);
        assert_eq!(seconds("0s"), 0);
        assert_eq!(
            "1500ms".parse::<HumanDuration>().unwrap().get(),
            Duration::from_millis(1_500)
        );
    }

    #[test]
    fn refuses_the_rest_and_says_how_to_write_it() {
        for (text, says) in [
            ("", "is empty"),
            ("15", "write 15s"),
            ("1h30", "no unit"),
            ("1.5h", "1h30m for one and a half"),
            ("-1h", "not a duration"),
            ("h", "not a duration"),
            (" 1h", "not a duration"),
            ("1h ", "`h ` in"),
            ("1w", "the units are"),
            ("30m1h", "out of order"),
            ("1h1h", "out of order"),
            ("36501d", "too long"),
            ("99999999999999999999s", "too long"),
            ("18446744073709551615d", "too long"),
        ] {
            let error = text.parse::<HumanDuration>().unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn prints_the_shortest_form() {
        assert_eq!(HumanDuration::from_mins(90).to_string(), "1h30m");
        assert_eq!(HumanDuration::from_hours(24).to_string(), "1d");
        assert_eq!(format!("{:?}", HumanDuration::default()), "0s");
    }

    proptest! {
        #[test]
        fn reading_never_panics_and_errors_are_short(text in "\\PC{0,200}") {
            if let Err(error) = text.parse::<HumanDuration>() {
                prop_assert!(error.to_string().len() < 700);
            }
        }

        #[test]
        fn what_is_printed_reads_back(ms in 0u64..=36_500 * 86_400_000) {
            let duration = HumanDuration(Duration::from_millis(ms));
            prop_assert_eq!(duration.to_string().parse::<HumanDuration>().unwrap(), duration);
        }
    }
}
