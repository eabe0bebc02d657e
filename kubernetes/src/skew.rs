//! The API server's clock against ours, by the `Date` of its answers. Two clocks that differ
//! make fresh tokens not valid yet, or let expired ones live on.

use std::sync::{Mutex, PoisonError};

use http::HeaderMap;
use http::header::DATE;
use time::format_description::well_known::Rfc2822;
use time::{Duration, OffsetDateTime};

/// A skew above this is warned of.
const WARN_ABOVE: Duration = Duration::seconds(30);
/// `Date` has whole seconds: the answer was made within the one that it names.
const RESOLUTION: Duration = Duration::seconds(1);

/// What the answers of one API server have shown of its clock.
pub(crate) struct ClockSkew {
    cluster: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    latest: Option<Duration>,
    is_large: bool,
}

/// The skew has become large, or small again.
#[derive(Debug, PartialEq, Eq)]
enum Crossing {
    Large,
    Small,
}

impl ClockSkew {
    /// Nothing is known yet. The log names `cluster`.
    pub(crate) fn new(cluster: &str) -> Self {
        Self {
            cluster: cluster.to_owned(),
            state: Mutex::default(),
        }
    }

    /// The API server's clock minus ours, `None` before its first answer with a date.
    pub(crate) fn latest(&self) -> Option<Duration> {
        self.lock().latest
    }

    /// Notes the head of an answer to a request that was sent at `asked` and answered at
    /// `answered`, both by this machine's clock.
    pub(crate) fn note(
        &self,
        headers: &HeaderMap,
        asked: OffsetDateTime,
        answered: OffsetDateTime,
    ) {
        let Some(skew) = date(headers).and_then(|date| skew(date, asked, answered)) else {
            return;
        };
        let cluster = &self.cluster;
        match self.lock().note(skew) {
            Some(Crossing::Large) => tracing::warn!(
                %cluster,
                seconds = skew.as_seconds_f64(),
                "the API server's clock is {} this machine's: its tokens may be taken for not yet \
                 valid or expired; set up time synchronisation",
                if skew.is_positive() { "ahead of" } else { "behind" }
            ),
            Some(Crossing::Small) => {
                tracing::info!(%cluster, "the API server's clock agrees with this machine's again");
            }
            None => {}
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn note(&mut self, skew: Duration) -> Option<Crossing> {
        self.latest = Some(skew);
        let is_large = skew.abs() > WARN_ABOVE;
        let was_large = std::mem::replace(&mut self.is_large, is_large);
        match (was_large, is_large) {
            (false, true) => Some(Crossing::Large),
            (true, false) => Some(Crossing::Small),
            _ => None,
        }
    }
}

/// `Date` (RFC 9110, 6.6.1). The obsolete forms of it are of no API server.
fn date(headers: &HeaderMap) -> Option<OffsetDateTime> {
    let text = headers.get(DATE)?.to_str().ok()?;
    OffsetDateTime::parse(text, &Rfc2822).ok()
}

/// The API server's clock minus ours. The round trip counts as no skew at all: the answer was
/// made somewhere within it. `None` where our own clock was set back meanwhile.
fn skew(date: OffsetDateTime, asked: OffsetDateTime, answered: OffsetDateTime) -> Option<Duration> {
    if answered < asked {
        return None;
    }
    let latest = date.checked_add(RESOLUTION)?;
    Some(if date > answered {
        date - answered
    } else if latest < asked {
        latest - asked
    } else {
        Duration::ZERO
    })
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    fn with_date(text: &str) -> HeaderMap {
        HeaderMap::from_iter([(DATE, text.parse().unwrap())])
    }

    #[test]
    fn the_date_is_read_as_http_has_it() {
        assert_eq!(
            date(&with_date("Fri, 20 Nov 2026 12:00:00 GMT")),
            Some(datetime!(2026-11-20 12:00:00 UTC))
        );
        for odd in ["", "now", "1795176000", "Fri, 20 Nov 99999 12:00:00 GMT"] {
            assert_eq!(date(&with_date(odd)), None, "{odd:?}");
        }
        assert_eq!(date(&HeaderMap::new()), None);
    }

    #[test]
    fn the_round_trip_is_no_skew() {
        let asked = datetime!(2026-11-20 12:00:00.5 UTC);
        let answered = datetime!(2026-11-20 12:00:04 UTC);
        for (date, wanted) in [
            // Within this second the request was sent.
            (datetime!(2026-11-20 12:00:00 UTC), Duration::ZERO),
            (datetime!(2026-11-20 12:00:04 UTC), Duration::ZERO),
            (
                datetime!(2026-11-20 11:59:00 UTC),
                Duration::milliseconds(-59_500),
            ),
            (datetime!(2026-11-20 12:01:04 UTC), Duration::seconds(60)),
        ] {
            assert_eq!(skew(date, asked, answered), Some(wanted), "{date}");
        }
        assert_eq!(skew(asked, answered, asked), None, "our clock went back");
        let last = time::PrimitiveDateTime::MAX.assume_utc();
        assert_eq!(skew(last, asked, answered), None);
    }

    #[test]
    fn each_crossing_is_told_once_and_the_latest_counts() {
        let at = |seconds| Duration::seconds(seconds);
        let mut state = State::default();
        assert_eq!(state.note(at(30)), None, "the limit itself is no crossing");
        assert_eq!(state.note(at(31)), Some(Crossing::Large));
        assert_eq!(state.note(at(90)), None);
        assert_eq!(state.note(at(-31)), None, "large on the other side");
        assert_eq!(state.note(at(0)), Some(Crossing::Small));
        assert_eq!(state.note(at(1)), None);
        assert_eq!(state.note(at(-31)), Some(Crossing::Large));
        assert_eq!(state.latest, Some(at(-31)));
    }
}
