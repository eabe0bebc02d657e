//! The CA's clock against this machine's.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use time::{Duration, OffsetDateTime};

use crate::metrics::Metrics;

/// A skew above this is warned of.
const WARN_ABOVE: Duration = Duration::seconds(30);

/// Watches the skew. Clones share one state.
#[derive(Clone)]
pub(super) struct Skew {
    metrics: Metrics,
    warned: Arc<AtomicBool>,
}

impl Skew {
    pub(super) fn new(metrics: Metrics) -> Self {
        Self {
            metrics,
            warned: Arc::default(),
        }
    }

    /// Notes the CA's time in an answer to a question that was asked at `asked` and
    /// answered at `answered`, both by this machine's clock.
    pub(super) fn note(&self, server_ms: i64, asked: OffsetDateTime, answered: OffsetDateTime) {
        let Some(skew) = skew(server_ms, asked, answered) else {
            return;
        };
        self.metrics.clock_skew(skew.as_seconds_f64());
        let large = skew.abs() > WARN_ABOVE;
        if large && !self.warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                seconds = skew.as_seconds_f64(),
                "this machine's clock is {} the CA's: peers may take fresh certificates for not \
                 yet valid or expired; set up time synchronisation",
                if skew.is_positive() {
                    "ahead of"
                } else {
                    "behind"
                }
            );
        } else if !large && self.warned.swap(false, Ordering::Relaxed) {
            tracing::info!("this machine's clock agrees with the CA's again");
        }
    }
}

/// This machine's clock minus the CA's. The round trip counts as no skew at all: the
/// answer was made somewhere within it.
fn skew(server_ms: i64, asked: OffsetDateTime, answered: OffsetDateTime) -> Option<Duration> {
    let server =
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(server_ms) * 1_000_000).ok()?;
    if server_ms == 0 {
        return None;
    }
    Some(if server < asked {
        asked - server
    } else if server > answered {
        answered - server
    } else {
        Duration::ZERO
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use time::macros::datetime;

    use super::*;

    #[test]
    fn the_round_trip_is_no_skew() {
        let asked = datetime!(2026-11-20 12:00:00 UTC);
        let answered = datetime!(2026-11-20 12:00:04 UTC);
        let at = |server: OffsetDateTime| {
            let ms = i64::try_from(server.unix_timestamp_nanos() / 1_000_000).unwrap();
            skew(ms, asked, answered).unwrap().whole_seconds()
        };
        assert_eq!(at(datetime!(2026-11-20 12:00:02 UTC)), 0);
        assert_eq!(at(datetime!(2026-11-20 11:59:00 UTC)), 60);
        assert_eq!(at(datetime!(2026-11-20 12:01:04 UTC)), -60);
        assert_eq!(skew(0, asked, answered), None);
        let _ = skew(i64::MAX, asked, answered);
        let _ = skew(i64::MIN, asked, answered);
    }

    #[test]
    fn a_large_skew_is_a_metric() {
        let metrics = Metrics::default();
        let skew = Skew::new(metrics.clone());
        let now = datetime!(2026-11-20 12:00:00 UTC);
        skew.note(
            datetime!(2026-11-20 11:59:00 UTC).unix_timestamp() * 1000,
            now,
            now,
        );
        assert!(skew.warned.load(Ordering::Relaxed));
        skew.note(now.unix_timestamp() * 1000, now, now);
        assert!(!skew.warned.load(Ordering::Relaxed));
    }
}
