//! When a certificate is to be renewed: slots that keep the renewals of a whole fleet spread
//! evenly, however it was started, and that every replica works out alike.

use time::{Duration, OffsetDateTime};

use crate::crypto;

/// The part of the interval that lies between an issuance and its slot at least. It absorbs a
/// renewal that came a little early, which would else be asked for twice.
const SOONEST: u8 = 16;

/// The slot of a certificate that is issued now, as a whole second.
///
/// Renewals are half of the lifetime apart. Each holder has a place of its own in that
/// interval, by a hash of what identifies it: so the first slot is uniform over it, later
/// ones follow at its length, and a fleet that was started within one minute, or came back
/// after an outage, is spread evenly again after one interval. A slot is at most 17/32 of the
/// lifetime away, and a second.
///
/// `holder` are the parts of what tells this holder from all others and stays the same from
/// renewal to renewal.
pub fn renewal_slot(
    holder: &[&str],
    now: OffsetDateTime,
    not_after: OffsetDateTime,
) -> OffsetDateTime {
    // Certificates count whole seconds: what is left of an hour is an hour, whenever in the
    // second it was asked for.
    let left = not_after - now;
    let lifetime = left.whole_seconds() + i64::from(left.subsec_nanoseconds() > 0);
    let interval = i128::from(lifetime.max(2)) * 500;
    let place = (i128::from(place_of(holder)) * interval) >> 64;
    let now_ms = now.unix_timestamp_nanos() / 1_000_000;
    let soonest = now_ms + interval / i128::from(SOONEST);
    let slot_ms = soonest + (place - soonest).rem_euclid(interval);
    let away = i64::try_from(slot_ms - now_ms).unwrap_or(0);
    // Rounded up: a slot that came early would be followed by the same one again.
    let slot = now + Duration::milliseconds(away) + Duration::milliseconds(999);
    slot.replace_nanosecond(0).unwrap_or(slot)
}

/// Uniform over all `u64`.
fn place_of(holder: &[&str]) -> u64 {
    let hash = crypto::sha256(holder.join("\0").as_bytes());
    hash.iter()
        .take(8)
        .fold(0, |place, byte| (place << 8) | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss
    )]
    use proptest::prelude::*;
    use time::macros::datetime;

    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-11-26 12:00:00.25 UTC);
    const HOUR: Duration = Duration::HOUR;

    fn issued(now: OffsetDateTime, lifetime: Duration) -> OffsetDateTime {
        now.replace_nanosecond(0).unwrap() + lifetime
    }

    #[test]
    fn the_first_slot_is_uniform_over_half_of_the_lifetime() {
        let mut tenths = [0_u32; 10];
        for holder in 0..10_000 {
            let slot = renewal_slot(&["web", &holder.to_string()], NOW, issued(NOW, HOUR));
            let since = (slot - NOW).as_seconds_f64() - 1_800.0 / 16.0;
            assert!((0.0..1_801.0).contains(&since), "{since}");
            tenths[(since / 180.1) as usize] += 1;
        }
        assert!(
            tenths.iter().all(|n| (850..1_150).contains(n)),
            "{tenths:?}"
        );
    }

    #[test]
    fn later_ones_follow_at_half_of_the_lifetime_also_after_one_that_was_late() {
        for (number, late) in [0, 1_500, 600_000, 1_600_000].into_iter().enumerate() {
            let holder = ["web", &number.to_string()];
            let first = renewal_slot(&holder, NOW, issued(NOW, HOUR));
            let asked = first + Duration::milliseconds(late);
            let next = renewal_slot(&holder, asked, issued(asked, HOUR));
            let apart = (next - first).whole_seconds();
            assert!((1_799..=1_801).contains(&apart), "{late}: {apart}");
        }
    }

    #[test]
    fn holders_are_told_apart_by_their_parts() {
        let slot = |holder: &[&str]| renewal_slot(holder, NOW, issued(NOW, Duration::DAY));
        assert_ne!(slot(&["a", "bc"]), slot(&["ab", "c"]));
    }

    proptest! {
        #[test]
        fn a_slot_leaves_almost_half_of_the_lifetime(
            holder in ".*", lifetime in 4..86_400_i64, ms in 0..1_000_i64,
        ) {
            let now = datetime!(2026-11-26 12:00 UTC) + Duration::milliseconds(ms);
            let slot = renewal_slot(&[&holder], now, issued(now, Duration::seconds(lifetime)));
            let away = (slot - now).as_seconds_f64();
            let lifetime = lifetime as f64;
            prop_assert!(away > 0.0);
            prop_assert!(away <= lifetime * 17.0 / 32.0 + 1.0, "{away} of {lifetime}");
        }

        #[test]
        fn no_time_makes_it_panic(now in any::<i32>(), left in any::<i32>()) {
            let now = OffsetDateTime::UNIX_EPOCH + Duration::seconds(now.into());
            let _ = renewal_slot(&[], now, now + Duration::seconds(left.into()));
        }
    }
}
