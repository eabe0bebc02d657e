//! When to renew and when to try again. Pure.

use std::time::Duration;

/// The first pause after a failure.
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// The longest pause while a certificate is held.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The longest pause while a workload waits for its first certificate.
const LONGEST_FIRST_PAUSE: Duration = Duration::from_secs(5);

/// The soonest renewal: whatever a CA says, it is not asked in a loop.
const SOONEST: Duration = Duration::from_millis(500);

/// Tries at a renewal, a moment apart, before it is put off: enough for a CA that restarts.
const QUICK_TRIES: u32 = 5;

/// A certificate with less than this left is tried for at short pauses, whatever happens.
const PRESSING: Duration = Duration::from_mins(5);

/// The longest wait that a CA may ask for.
const LONGEST_RETRY_AFTER: Duration = Duration::from_mins(5);

/// What to do with a certificate, counted from the moment it was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// When to ask for the next one.
    pub renew_in: Duration,
    /// When it ends.
    pub expires_in: Duration,
}

/// What of the CA's answer a plan was made of: a successor of this process makes the same
/// one of it. See [`Plan::new`].
#[derive(Debug, Clone, Copy)]
pub struct PlannedBy {
    /// The CA's time, milliseconds since the epoch.
    pub server_ms: i64,
    /// The CA's slot, seconds since the epoch; 0 for none.
    pub renew_at: i64,
    /// From 0 to 1.
    pub jitter: f64,
}

impl PlannedBy {
    /// For a certificate that ends at `not_after`, seconds since the epoch.
    pub fn plan(&self, not_after: i64) -> Plan {
        Plan::new(self.server_ms, not_after, self.renew_at, self.jitter)
    }
}

impl Plan {
    /// Plans by the CA's own clock, so that this machine's being wrong does not matter.
    ///
    /// * `server_ms`: the CA's time when it answered, milliseconds since the epoch.
    /// * `not_after`, `renew_at`: seconds since the epoch. `renew_at` is the slot that
    ///   the CA assigned; without a usable one it is half of the lifetime, give or take
    ///   a tenth of it by `jitter` (0 to 1), which is drawn once for a certificate.
    pub fn new(server_ms: i64, not_after: i64, renew_at: i64, jitter: f64) -> Self {
        let from_now = |seconds: i64| {
            let ms = seconds.saturating_mul(1000).saturating_sub(server_ms);
            Duration::from_millis(u64::try_from(ms).unwrap_or(0))
        };
        let expires_in = from_now(not_after);
        let slot = from_now(renew_at);
        let renew_in = if slot.is_zero() || slot >= expires_in {
            expires_in.mul_f64(0.4 + 0.2 * jitter.clamp(0.0, 1.0))
        } else {
            slot
        };
        Self {
            renew_in: renew_in.max(SOONEST),
            expires_in,
        }
    }

    /// The longest pause between tries at renewing: a tenth of the lifetime, so that a
    /// short outage costs a short-lived certificate little.
    fn longest_pause(&self) -> Duration {
        (self.expires_in / 10).clamp(FIRST_PAUSE, LONGEST_PAUSE)
    }
}

/// The pause after the `failures`th failure in a row (from 1). `held` is the plan of the
/// certificate that is held meanwhile; `jitter` (0 to 1) is drawn anew each time.
pub fn pause(failures: u32, held: Option<&Plan>, jitter: f64) -> Duration {
    let longest = held.map_or(LONGEST_FIRST_PAUSE, Plan::longest_pause);
    let doubled = FIRST_PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(16));
    doubled
        .min(longest)
        .mul_f64(0.5 + 0.5 * jitter.clamp(0.0, 1.0))
}

/// As [`pause`], for the renewal of a workload's certificate that has `left` to live.
///
/// Where there is time, the next try is somewhere between a tenth and three quarters of what
/// is left. Whatever became due while the CA was away would else come to it at once when it
/// is back; spread like this, an outage of a fifth of a lifetime is followed by less than
/// twice the usual load (`herd_tests.rs`), and each certificate has many more tries before
/// its end.
pub fn renewal_pause(failures: u32, held: &Plan, left: Duration, jitter: f64) -> Duration {
    if failures <= QUICK_TRIES || left < PRESSING {
        return pause(failures, Some(held), jitter);
    }
    left.mul_f64(0.1 + 0.65 * jitter.clamp(0.0, 1.0))
}

/// The pause where the CA said how long to wait: at least that long, a little spread.
pub fn pause_as_told(retry_after: Duration, jitter: f64) -> Duration {
    retry_after
        .min(LONGEST_RETRY_AFTER)
        .mul_f64(1.0 + 0.1 * jitter.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use proptest::prelude::*;

    use super::*;

    const NOW: i64 = 1_800_000_000;

    #[test]
    fn the_slot_of_the_ca_is_taken_as_it_is() {
        for jitter in [0.0, 0.7] {
            let plan = Plan::new(NOW * 1000 + 250, NOW + 60, NOW + 30, jitter);
            assert_eq!(plan.renew_in, Duration::from_millis(29_750));
            assert_eq!(plan.expires_in, Duration::from_millis(59_750));
        }
    }

    #[test]
    fn without_a_usable_slot_it_is_about_half() {
        for renew_at in [0, NOW - 1, NOW, NOW + 100, NOW + 200] {
            let early = Plan::new(NOW * 1000, NOW + 100, renew_at, 0.0);
            let late = Plan::new(NOW * 1000, NOW + 100, renew_at, 1.0);
            assert_eq!(early.renew_in, Duration::from_secs(40), "{renew_at}");
            assert_eq!(late.renew_in, Duration::from_secs(60), "{renew_at}");
        }
    }

    #[test]
    fn short_certificates_are_tried_often() {
        let plan = Plan::new(NOW * 1000, NOW + 15, NOW + 7, 0.0);
        let mut waited = Duration::ZERO;
        for failures in 1..=6 {
            let pause = pause(failures, Some(&plan), 1.0);
            assert!(pause <= Duration::from_millis(1500), "{pause:?}");
            waited += pause;
        }
        // An outage of 4 s that begins at the renewal leaves several tries before the end.
        assert!(waited < Duration::from_secs(8), "{waited:?}");
        let day = Plan::new(NOW * 1000, NOW + 86_400, 0, 0.0);
        assert_eq!(pause(30, Some(&day), 1.0), LONGEST_PAUSE);
        assert_eq!(pause(1, Some(&day), 1.0), FIRST_PAUSE);
        assert_eq!(pause(30, None, 1.0), LONGEST_FIRST_PAUSE);
    }

    #[test]
    fn what_the_ca_asks_for_is_honoured_within_reason() {
        let asked = Duration::from_secs(20);
        assert_eq!(pause_as_told(asked, 0.0), asked);
        assert_eq!(pause_as_told(asked, 1.0), Duration::from_secs(22));
        assert_eq!(pause_as_told(Duration::MAX, 0.0), LONGEST_RETRY_AFTER);
    }

    #[test]
    fn a_renewal_that_has_time_is_put_off_by_a_part_of_what_is_left() {
        let plan = Plan::new(NOW * 1000, NOW + 3_600, 0, 0.0);
        let half_an_hour = Duration::from_mins(30);
        let at = |failures, left, jitter| renewal_pause(failures, &plan, left, jitter);
        assert!(at(QUICK_TRIES, half_an_hour, 1.0) <= Duration::from_secs(4));
        assert_eq!(at(QUICK_TRIES + 1, half_an_hour, 0.0), half_an_hour / 10);
        assert_eq!(
            at(QUICK_TRIES + 1, half_an_hour, 1.0),
            half_an_hour.mul_f64(0.75)
        );
        // Never beyond its end; and at the end it is tried often.
        assert!(at(1_000, PRESSING, 1.0) < PRESSING);
        assert!(at(1_000, PRESSING / 2, 1.0) <= LONGEST_PAUSE);
    }

    proptest! {
        #[test]
        fn no_answer_of_a_ca_makes_a_loop_or_a_panic(
            server_ms in any::<i64>(), not_after in any::<i64>(), renew_at in any::<i64>(),
            jitter in any::<f64>(), failures in any::<u32>(),
        ) {
            let plan = Plan::new(server_ms, not_after, renew_at, jitter);
            prop_assert!(plan.renew_in >= SOONEST);
            let pause = pause(failures, Some(&plan), jitter);
            prop_assert!(pause >= FIRST_PAUSE / 2 && pause <= LONGEST_PAUSE);
        }
    }
}
