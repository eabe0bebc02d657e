//! What the CA refused, and how soon it is asked again. A refusal takes no place among
//! the secrets.

use std::{collections::HashMap, sync::Arc, time::Duration};

use rand::Rng;
use tokio::time::Instant;

use super::key::{SecretKey, Wanted};

/// The first and the longest pause before a refused pod is asked for again. It may have
/// been refused only because it was younger than the CA's knowledge of it.
const POD: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(1));

/// The same for a token that the CA took for nobody's, and whatever token the same
/// caller comes with next: anyone can write tokens.
const TOKEN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(1));

/// The same for an entry that does not match: its selectors or the pod's labels change
/// seldom, and a change of entries asks again by itself.
const ENTRY: (Duration, Duration) = (Duration::from_mins(1), Duration::from_mins(5));

/// The most refusals that are remembered: of hundreds of pods, each not being what
/// hundreds of entries are for. One more is asked again when its caller looks again.
const REMEMBERED: usize = 65_536;

/// The refusals that still stand, and those that make the next pause longer.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    of: HashMap<Asked, Refusal>,
}

#[derive(Debug, PartialEq, Eq, Hash)]
enum Asked {
    For(SecretKey),
    /// By a token of this principal, whatever its text.
    ByToken(Arc<str>),
}

#[derive(Debug)]
struct Refusal {
    reason: Arc<str>,
    revision: u64,
    times: u32,
    stands_until: Instant,
    known_until: Instant,
}

impl Refusals {
    /// Why the CA is not asked now, if it is not.
    pub(super) fn standing(&self, wanted: &Wanted, now: Instant) -> Option<&Arc<str>> {
        let refusal = self.of.get(&Asked::of(wanted))?;
        let stands = refusal.revision == wanted.revision && now < refusal.stands_until;
        stands.then_some(&refusal.reason)
    }

    /// The CA said no.
    pub(super) fn note(&mut self, wanted: &Wanted, reason: Arc<str>, now: Instant) {
        let asked = Asked::of(wanted);
        let known = self.of.get(&asked);
        if known.is_none() && self.of.len() >= REMEMBERED {
            return;
        }
        // What was asked together counts once.
        let times = known.map_or(1, |refusal| {
            let apart = u32::from(now >= refusal.stands_until);
            refusal.times.saturating_add(apart)
        });
        let (first, longest) = match &wanted.key {
            SecretKey::Pod { .. } => POD,
            SecretKey::Relayed { .. } => TOKEN,
            SecretKey::Entry { .. } => ENTRY,
        };
        let pause = first
            .saturating_mul(1 << (times - 1).min(16))
            .min(longest)
            .mul_f64(0.8 + 0.2 * rand::rng().random::<f64>());
        let refusal = Refusal {
            reason,
            revision: wanted.revision,
            times,
            stands_until: now + pause,
            known_until: now + pause + longest,
        };
        self.of.insert(asked, refusal);
    }

    /// The CA said yes.
    pub(super) fn forget(&mut self, wanted: &Wanted) {
        self.of.remove(&Asked::of(wanted));
    }

    pub(super) fn sweep(&mut self, now: Instant) {
        self.of.retain(|_, refusal| now < refusal.known_until);
    }
}

impl Asked {
    fn of(wanted: &Wanted) -> Self {
        match &wanted.key {
            SecretKey::Relayed { .. } => Self::ByToken(Arc::clone(&wanted.principal)),
            key => Self::For(key.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    fn wanted(key: SecretKey) -> Wanted {
        Wanted {
            key,
            principal: "pod a".into(),
            revision: 7,
            spiffe_id: None,
            ttl_seconds: 0,
            token: None,
        }
    }

    fn entry(number: usize) -> Wanted {
        wanted(SecretKey::Entry {
            entry_id: number.to_string(),
            pod_uid: None,
        })
    }

    /// The pauses after so many refusals in a row.
    fn pauses(wanted: &Wanted, count: usize) -> Vec<Duration> {
        let mut refusals = Refusals::default();
        let mut now = Instant::now();
        let mut pauses = Vec::new();
        for _ in 0..count {
            refusals.note(wanted, "no".into(), now);
            let began = now;
            while refusals.standing(wanted, now).is_some() {
                now += Duration::from_millis(100);
            }
            refusals.sweep(now);
            pauses.push(now - began);
        }
        pauses
    }

    #[test]
    fn pauses_grow_to_a_bound_by_the_kind_of_question() {
        let token = wanted(SecretKey::Relayed {
            token: [1; 32],
            pod_uid: None,
        });
        let pod = wanted(SecretKey::Pod { uid: "a".into() });
        for (wanted, (first, longest)) in [(token, TOKEN), (pod, POD), (entry(1), ENTRY)] {
            let pauses = pauses(&wanted, 10);
            assert!(pauses[0] >= first.mul_f64(0.8) && pauses[0] <= first + first / 10);
            assert!(pauses[9] >= longest.mul_f64(0.8) && pauses[9] <= longest + longest / 10);
        }
    }

    #[test]
    fn a_refused_token_stands_for_the_callers_next_one_and_for_nobody_elses() {
        let token = |number, principal: &str| Wanted {
            principal: principal.into(),
            ..wanted(SecretKey::Relayed {
                token: [number; 32],
                pod_uid: None,
            })
        };
        let now = Instant::now();
        let mut refusals = Refusals::default();
        refusals.note(&token(1, "pod a"), "no".into(), now);
        assert!(refusals.standing(&token(2, "pod a"), now).is_some());
        assert!(refusals.standing(&token(1, "pod b"), now).is_none());
        refusals.forget(&token(3, "pod a"));
        assert!(refusals.standing(&token(2, "pod a"), now).is_none());
    }

    #[test]
    fn other_entries_ask_anew_and_memory_is_bounded() {
        let now = Instant::now();
        let mut refusals = Refusals::default();
        for number in 0..REMEMBERED + 10 {
            refusals.note(&entry(number), "no".into(), now);
        }
        assert_eq!(refusals.of.len(), REMEMBERED);
        let same = entry(0);
        assert!(refusals.standing(&same, now).is_some());
        let changed = Wanted {
            revision: 8,
            ..same
        };
        assert!(refusals.standing(&changed, now).is_none());
        refusals.sweep(now + 2 * ENTRY.1);
        assert!(refusals.of.is_empty());
    }
}
