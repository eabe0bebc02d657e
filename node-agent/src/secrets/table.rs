//! The secrets of the node and when each is due. Time is passed in.

use std::{collections::HashMap, sync::Arc, time::Duration};

use rand::Rng;
use tokio::{sync::watch, time::Instant};

use super::{
    key::{SecretKey, Wanted},
    manager::State,
    svid::Svid,
    timing,
};

/// A second refusal this much later makes the first one final: a CA that has just
/// started, or was wrong for a moment, takes no certificate away.
const CONFIRM_DENIAL: Duration = Duration::from_secs(2);

/// How many refusals in a row end an identity that is held.
const DENIALS_THAT_END: u32 = 2;

/// The pauses between questions about a pod that the CA refuses.
const POD_DENIED: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(1));

/// The same for an entry that does not match: its selectors or the pod's labels change
/// seldom, and a change of entries asks again by itself.
const ENTRY_DENIED: (Duration, Duration) = (Duration::from_mins(1), Duration::from_mins(5));

/// A token that was refused stays so. (Never asked again; forgotten when nobody waits.)
const NEVER: Duration = Duration::from_hours(24 * 365);

/// How an attempt failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// The CA is away, slow or wrong: what is held stays.
    Trouble {
        reason: String,
        retry_after: Option<Duration>,
    },
    /// The CA says no, and that a retry is useless.
    Denied { reason: String },
}

pub(super) struct Entry {
    pub wanted: Wanted,
    pub state: watch::Sender<State>,
    pub held: Option<Arc<Svid>>,
    /// The pod that the CA named when it took the relayed token.
    pub proven_pod: Option<String>,
    due: Instant,
    asking: bool,
    failures: u32,
    denials: u32,
    denied_at: Option<Instant>,
    created: Instant,
    idle_since: Option<Instant>,
    /// Drawn once for a certificate.
    pub jitter: f64,
}

/// What to ask the CA for.
pub(super) struct Ask {
    pub wanted: Wanted,
    pub proven_pod: Option<String>,
    pub previous_serial: String,
    /// For the plan of the certificate that comes.
    pub jitter: f64,
}

#[derive(Default)]
pub(super) struct Table {
    entries: HashMap<SecretKey, Entry>,
}

impl Table {
    pub(super) fn values(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    /// Someone wants a secret: the one that is there, or a new one, due at once.
    /// `None` if there would be more than `limit`.
    pub(super) fn subscribe(
        &mut self,
        wanted: Wanted,
        now: Instant,
        limit: usize,
    ) -> Option<watch::Receiver<State>> {
        if let Some(entry) = self.entries.get_mut(&wanted.key) {
            entry.idle_since = None;
            entry.ask_again_for_newcomer(now);
            return Some(entry.state.subscribe());
        }
        if self.entries.len() >= limit {
            return None;
        }
        let (state, receiver) = watch::channel(State::Waiting { trouble: None });
        let entry = Entry {
            state,
            held: None,
            proven_pod: None,
            due: now,
            asking: false,
            failures: 0,
            denials: 0,
            denied_at: None,
            created: now,
            idle_since: None,
            jitter: rand::rng().random(),
            wanted,
        };
        self.entries.insert(entry.wanted.key.clone(), entry);
        Some(receiver)
    }

    /// Takes what is due, the most urgent first: at most `count` items of `bytes` in
    /// all, where `size` is an item's.
    pub(super) fn take_due(
        &mut self,
        now: Instant,
        count: usize,
        bytes: usize,
        size: impl Fn(&Wanted) -> usize,
    ) -> Vec<Ask> {
        let mut due: Vec<&mut Entry> = self
            .entries
            .values_mut()
            .filter(|e| !e.asking && e.due <= now)
            .collect();
        due.sort_by_key(|entry| entry.urgency());
        let mut room = bytes;
        let mut asks = Vec::new();
        for entry in due.into_iter().take(count) {
            let Some(left) = room.checked_sub(size(&entry.wanted)) else {
                break;
            };
            room = left;
            entry.asking = true;
            asks.push(Ask {
                wanted: entry.wanted.clone(),
                proven_pod: entry.proven_pod.clone(),
                previous_serial: entry
                    .held
                    .as_ref()
                    .map(|held| held.serial.clone())
                    .unwrap_or_default(),
                jitter: entry.jitter,
            });
        }
        asks
    }

    /// When something is due next, of what nobody is asking for already.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.entries
            .values()
            .filter(|e| !e.asking)
            .map(|e| e.due)
            .min()
    }

    /// The CA gave a certificate.
    pub(super) fn succeeded(&mut self, key: &SecretKey, svid: Svid, now: Instant) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        entry.asking = false;
        entry.failures = 0;
        entry.denials = 0;
        entry.denied_at = None;
        entry.due = now + svid.plan.renew_in;
        entry.jitter = rand::rng().random();
        if matches!(key, SecretKey::Relayed { .. }) && svid.pod_uid.is_some() {
            entry.proven_pod.clone_from(&svid.pod_uid);
            entry.wanted.token = None;
        }
        let svid = Arc::new(svid);
        entry.held = Some(Arc::clone(&svid));
        entry.state.send_replace(State::Ready(svid));
    }

    /// The attempt failed. Returns whether the identity ended by it.
    pub(super) fn failed(&mut self, key: &SecretKey, failure: Failure, now: Instant) -> bool {
        let Some(entry) = self.entries.get_mut(key) else {
            return false;
        };
        entry.asking = false;
        match failure {
            Failure::Trouble {
                reason,
                retry_after,
            } => {
                entry.failures = entry.failures.saturating_add(1);
                let jitter = rand::rng().random();
                let plan = entry.held.as_ref().map(|held| &held.plan);
                let pause = timing::pause(entry.failures, plan, jitter);
                entry.due = now
                    + match retry_after {
                        Some(told) => timing::pause_as_told(told, jitter).max(pause),
                        None => pause,
                    };
                // A refusal stands until the CA says otherwise; a certificate stays.
                entry.state.send_if_modified(|state| match state {
                    State::Waiting { trouble } => {
                        *trouble = Some(reason.into());
                        true
                    }
                    State::Ready(_) | State::Denied(_) => false,
                });
                false
            }
            Failure::Denied { reason } => entry.denied(reason, now),
        }
    }

    /// The set of entries changed: refusals of entries may not hold any more.
    pub(super) fn entries_changed(&mut self, now: Instant) {
        for entry in self.entries.values_mut() {
            let is_entry = matches!(entry.wanted.key, SecretKey::Entry { .. });
            if is_entry && entry.denied_at.is_some() {
                entry.due = entry.due.min(now);
            }
        }
    }

    /// Forgets what nobody has wanted for `linger`. The keys wipe themselves.
    pub(super) fn sweep(&mut self, now: Instant, linger: Duration) {
        self.entries.retain(|_, entry| {
            if entry.state.receiver_count() > 0 {
                entry.idle_since = None;
                return true;
            }
            let since = *entry.idle_since.get_or_insert(now);
            entry.asking || now.saturating_duration_since(since) < linger
        });
    }

    /// Wall time jumped: what should have been renewed by it is due soon, spread a
    /// little. Nothing is put off.
    pub(super) fn rebuild(&mut self, now: Instant, wall: time::OffsetDateTime) {
        for entry in self.entries.values_mut() {
            let Some(held) = &entry.held else { continue };
            let age = Duration::try_from(wall - held.received_at).unwrap_or_default();
            let left = held.plan.renew_in.saturating_sub(age);
            let spread = Duration::from_secs(2).mul_f64(entry.jitter);
            entry.due = entry.due.min(now + left.max(spread));
        }
    }
}

impl Entry {
    /// The soonest to end comes first; who has nothing yet has waited since it came.
    fn urgency(&self) -> Instant {
        self.held
            .as_ref()
            .map_or(self.created, |held| held.expires())
    }

    fn denied(&mut self, reason: String, now: Instant) -> bool {
        self.denials = self.denials.saturating_add(1);
        self.denied_at = Some(now);
        if self.held.is_some() && self.denials < DENIALS_THAT_END {
            self.due = now + CONFIRM_DENIAL;
            return false;
        }
        let ended = self.held.take().is_some();
        let (first, longest) = match (&self.wanted.key, &self.proven_pod) {
            (SecretKey::Entry { .. }, _) => ENTRY_DENIED,
            (SecretKey::Relayed { .. }, None) => (NEVER, NEVER),
            (SecretKey::Pod { .. } | SecretKey::Relayed { .. }, _) => POD_DENIED,
        };
        let doubled = first.saturating_mul(1 << self.denials.saturating_sub(1).min(16));
        self.due = now
            + doubled
                .min(longest)
                .mul_f64(0.8 + 0.2 * rand::rng().random::<f64>());
        self.wanted.token = None;
        self.state.send_replace(State::Denied(reason.into()));
        ended
    }

    /// A pod may have been refused only because it was younger than the CA's knowledge
    /// of it: whoever comes back gets a new answer, at most one question a second.
    fn ask_again_for_newcomer(&mut self, now: Instant) {
        let is_pod = matches!(self.wanted.key, SecretKey::Pod { .. });
        let long_ago = self
            .denied_at
            .is_some_and(|at| now.saturating_duration_since(at) >= POD_DENIED.0);
        if is_pod && long_ago && self.held.is_none() && !self.asking {
            self.due = now;
            self.state.send_replace(State::Waiting { trouble: None });
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use citadel_identity::{SpiffeId, key::WorkloadKey};
    use time::OffsetDateTime;

    use super::*;
    use crate::secrets::timing::Plan;

    fn pod(uid: &str) -> Wanted {
        Wanted {
            key: SecretKey::Pod {
                uid: uid.to_owned(),
            },
            spiffe_id: None,
            ttl_seconds: 0,
            token: None,
        }
    }

    fn svid(now: Instant, renew_in: u64, expires_in: u64) -> Svid {
        Svid {
            id: SpiffeId::new("spiffe://example.org/a").unwrap(),
            chain: Vec::new(),
            key: WorkloadKey::generate().unwrap(),
            serial: "01".into(),
            not_after: OffsetDateTime::UNIX_EPOCH,
            hint: String::new(),
            pod_uid: None,
            plan: Plan {
                renew_in: Duration::from_secs(renew_in),
                expires_in: Duration::from_secs(expires_in),
            },
            received: now,
            received_at: OffsetDateTime::UNIX_EPOCH,
        }
    }

    fn taken(table: &mut Table, now: Instant, count: usize, bytes: usize) -> Vec<String> {
        let asks = table.take_due(now, count, bytes, |_| 10);
        asks.into_iter()
            .map(|ask| match ask.wanted.key {
                SecretKey::Pod { uid } => uid,
                other => panic!("{other}"),
            })
            .collect()
    }

    #[tokio::test(start_paused = true)]
    async fn the_most_urgent_come_first_and_a_batch_is_bounded() {
        let now = Instant::now();
        let mut table = Table::default();
        // The later it ends, the earlier its slot: slots say when, not who is first.
        for (uid, renew_in, expires_in) in [
            ("c", 10, 90),
            ("a", 30, 40),
            ("e", 5, 400),
            ("b", 20, 60),
            ("d", 6, 100),
        ] {
            table.subscribe(pod(uid), now, 10).unwrap();
            assert_eq!(taken(&mut table, now, 10, 1000), [uid]);
            table.succeeded(&pod(uid).key, svid(now, renew_in, expires_in), now);
        }
        assert!(taken(&mut table, now, 10, 1000).is_empty());
        assert_eq!(table.next_due(), Some(now + Duration::from_secs(5)));
        let later = now + Duration::from_secs(31);
        table.subscribe(pod("new"), later, 10).unwrap();
        // By number and by size; what is being asked for is not taken twice.
        assert_eq!(taken(&mut table, later, 2, 1000), ["new", "a"]);
        assert_eq!(taken(&mut table, later, 10, 25), ["b", "c"]);
        assert_eq!(taken(&mut table, later, 10, 1000), ["d", "e"]);
        assert!(taken(&mut table, later, 10, 1000).is_empty());
        assert_eq!(table.next_due(), None);
    }
}
