//! The secrets of the node and when each is due. Time is passed in.

use std::{collections::HashMap, sync::Arc, time::Duration};

use rand::Rng;
use tokio::{sync::watch, time::Instant};

use super::{
    key::{SecretKey, Wanted},
    manager::{Held, NotNow, State},
    quota::{Place, Quota},
    refusals::Refusals,
    svid::Svid,
    timing,
};

/// A second refusal this much later makes the first one final: a CA that has just
/// started, or was wrong for a moment, takes no certificate away.
const CONFIRM_DENIAL: Duration = Duration::from_secs(2);

/// How many refusals in a row end an identity that is held.
const DENIALS_THAT_END: u32 = 2;

/// A certificate with less than this part of its life left is renewed before anything
/// else is asked for.
const PRESSING: u32 = 4;

/// The most secrets that one caller waits for at once: its account's, and entries that
/// the CA has not said yes or no to.
const WAITING: usize = 32;

/// The most of them that rest on tokens which nobody has verified, of one caller and in
/// all.
const TOKENS: (usize, usize) = (4, 1024);

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
    created: Instant,
    idle_since: Option<Instant>,
    /// Drawn once for a certificate.
    pub jitter: f64,
    /// Among what its caller waits for, until the CA first says yes.
    place: Option<Place>,
    /// Kept until then though nobody has asked for it yet.
    prepared_until: Option<Instant>,
}

/// What waits together for the CA. A batch is as slow as its slowest item, and what
/// stands in a forged token decides how long the CA looks at it: no renewal waits beside
/// one, or behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    /// What the agent's own authority is enough for.
    Own,
    /// Tokens that nobody has verified.
    Tokens,
}

/// What to ask the CA for.
pub(super) struct Ask {
    pub wanted: Wanted,
    pub proven_pod: Option<String>,
    pub previous_serial: String,
    /// For the plan of the certificate that comes.
    pub jitter: f64,
}

/// A secret that another process held before.
pub(super) struct Restored {
    pub wanted: Wanted,
    pub svid: Svid,
    pub proven_pod: Option<String>,
    pub due_in: Duration,
    pub failures: u32,
    /// How long it is kept though nobody has asked for it yet.
    pub prepared_for: Option<Duration>,
}

pub(super) struct Table {
    entries: HashMap<SecretKey, Entry>,
    limit: usize,
    refusals: Refusals,
    waiting: Quota,
    tokens: Quota,
    prepared: Prepared,
    /// How many were prepared and not asked for yet.
    unused: usize,
}

/// What became of secrets that were made ready ahead of need.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Prepared {
    /// Asked for before anybody wanted them.
    pub made: u64,
    /// Asked for by their pod in time.
    pub used: u64,
    /// Ended or given up unused.
    pub dropped: u64,
}

impl Table {
    /// Of at most `limit` secrets.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            entries: HashMap::new(),
            limit,
            refusals: Refusals::default(),
            waiting: Quota::new(WAITING, usize::MAX),
            tokens: Quota::new(TOKENS.0, TOKENS.1),
            prepared: Prepared::default(),
            unused: 0,
        }
    }

    /// How many secrets there are, with those that are awaited.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    /// What is held or awaited, and when the CA is asked for it next.
    pub(super) fn held(&self, now: Instant) -> impl Iterator<Item = Held> + '_ {
        self.entries.iter().map(move |(key, entry)| Held {
            subject: key.to_string(),
            svid: entry.held.clone(),
            due_in: entry.due.saturating_duration_since(now),
            failures: entry.failures,
        })
    }

    /// Someone wants a secret: the one that is there, or a new one, due at once.
    pub(super) fn subscribe(
        &mut self,
        wanted: Wanted,
        now: Instant,
    ) -> Result<watch::Receiver<State>, NotNow> {
        if let Some(entry) = self.entries.get_mut(&wanted.key) {
            entry.idle_since = None;
            if entry.prepared_until.take().is_some() {
                self.prepared.used += 1;
                self.unused -= 1;
            }
            return Ok(entry.state.subscribe());
        }
        self.make(wanted, now)
    }

    /// Makes a secret ready that nobody has asked for yet, and keeps it until then or
    /// `until`; of at most `limit` such. Whether it does.
    pub(super) fn prepare(
        &mut self,
        wanted: Wanted,
        until: Instant,
        limit: usize,
        now: Instant,
    ) -> bool {
        let key = wanted.key.clone();
        if self.entries.contains_key(&key) || self.unused >= limit {
            return false;
        }
        if self.make(wanted, now).is_err() {
            return false;
        }
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.prepared_until = Some(until);
            self.prepared.made += 1;
            self.unused += 1;
        }
        true
    }

    /// How many were prepared and not asked for yet.
    pub(super) fn waiting_for_use(&self) -> usize {
        self.unused
    }

    /// What became of those that were prepared, since the last call.
    pub(super) fn take_prepared(&mut self) -> Prepared {
        std::mem::take(&mut self.prepared)
    }

    /// Ends what is for a pod that is gone, at once. How many secrets those were.
    pub(super) fn end_pods(&mut self, gone: impl Fn(&str) -> bool, now: Instant) -> usize {
        let over = self.entries.iter().filter(|(key, entry)| {
            let pods = [key.pod_uid(), entry.proven_pod.as_deref()];
            pods.into_iter().flatten().any(&gone)
        });
        let over: Vec<SecretKey> = over.map(|(key, _)| key.clone()).collect();
        for key in &over {
            self.end(key, crate::pods::GONE.into(), now);
        }
        over.len()
    }

    /// Everything that is held, with when it is due.
    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values().filter(|entry| entry.held.is_some())
    }

    /// Holds what the process before this one held. `false` without room, or where
    /// something is there already.
    pub(super) fn restore(&mut self, restored: Restored, now: Instant) -> bool {
        let key = restored.wanted.key.clone();
        if self.entries.len() >= self.limit || self.entries.contains_key(&key) {
            return false;
        }
        let svid = Arc::new(restored.svid);
        self.unused += usize::from(restored.prepared_for.is_some());
        let entry = Entry {
            state: watch::Sender::new(State::Ready(Arc::clone(&svid))),
            due: now + restored.due_in.min(svid.plan.expires_in),
            held: Some(svid),
            proven_pod: restored.proven_pod,
            asking: false,
            failures: restored.failures,
            denials: 0,
            created: now,
            idle_since: None,
            jitter: rand::rng().random(),
            place: None,
            prepared_until: restored.prepared_for.map(|left| now + left),
            wanted: restored.wanted,
        };
        self.entries.insert(key, entry);
        true
    }

    fn make(&mut self, wanted: Wanted, now: Instant) -> Result<watch::Receiver<State>, NotNow> {
        if let Some(reason) = self.refusals.standing(&wanted, now) {
            return Err(NotNow::Refused(Arc::clone(reason)));
        }
        if self.entries.len() >= self.limit {
            return Err(NotNow::Full);
        }
        let quota = match &wanted.key {
            SecretKey::Relayed { .. } => &mut self.tokens,
            SecretKey::Pod { .. } | SecretKey::Entry { .. } => &mut self.waiting,
        };
        let place = quota.take(&wanted.principal).ok_or(NotNow::Waiting)?;
        let (state, receiver) = watch::channel(State::Waiting { trouble: None });
        let entry = Entry {
            state,
            held: None,
            proven_pod: None,
            due: now,
            asking: false,
            failures: 0,
            denials: 0,
            created: now,
            idle_since: None,
            jitter: rand::rng().random(),
            place: Some(place),
            prepared_until: None,
            wanted,
        };
        self.entries.insert(entry.wanted.key.clone(), entry);
        Ok(receiver)
    }

    /// Takes what is due of a lane, the most urgent first: at most `count` items of
    /// `bytes` in all, where `size` is an item's. Renewals that press come before all;
    /// the rest by turns, one of each caller after the other.
    pub(super) fn take_due(
        &mut self,
        lane: Lane,
        now: Instant,
        count: usize,
        bytes: usize,
        size: impl Fn(&Wanted) -> usize,
    ) -> Vec<Ask> {
        let mut due: Vec<&mut Entry> = self
            .entries
            .values_mut()
            .filter(|e| !e.asking && e.due <= now && e.lane() == lane)
            .collect();
        due.sort_by_key(|entry| entry.urgency());
        let mut turns: HashMap<Arc<str>, usize> = HashMap::new();
        let mut order: Vec<(usize, &mut Entry)> = due
            .into_iter()
            .map(|entry| {
                if entry.presses(now) {
                    return (0, entry);
                }
                let turn = turns
                    .entry(Arc::clone(&entry.wanted.principal))
                    .or_default();
                *turn += 1;
                (*turn, entry)
            })
            .collect();
        // Stable: of one turn the most urgent first.
        order.sort_by_key(|(turn, _)| *turn);
        let mut room = bytes;
        let mut asks = Vec::new();
        for (_, entry) in order.into_iter().take(count) {
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

    /// When something of a lane is due next, of what nobody is asking for already.
    pub(super) fn next_due(&self, lane: Lane) -> Option<Instant> {
        self.entries
            .values()
            .filter(|e| !e.asking && e.lane() == lane)
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
        entry.place = None;
        self.refusals.forget(&entry.wanted);
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
                let pause = match &entry.held {
                    Some(held) => {
                        let left = held.expires().saturating_duration_since(now);
                        timing::renewal_pause(entry.failures, &held.plan, left, jitter)
                    }
                    None => timing::pause(entry.failures, None, jitter),
                };
                entry.due = now
                    + match retry_after {
                        Some(told) => timing::pause_as_told(told, jitter).max(pause),
                        None => pause,
                    };
                // A certificate stays.
                entry.state.send_if_modified(|state| match state {
                    State::Waiting { trouble } => {
                        *trouble = Some(reason.into());
                        true
                    }
                    State::Ready(_) | State::Denied(_) => false,
                });
                false
            }
            Failure::Denied { reason } => {
                entry.denials = entry.denials.saturating_add(1);
                if entry.held.is_some() && entry.denials < DENIALS_THAT_END {
                    entry.due = now + CONFIRM_DENIAL;
                    return false;
                }
                self.end(key, reason.into(), now)
            }
        }
    }

    /// A refusal ends the secret, so that it takes no place among those that live. Who
    /// still wants it subscribes again.
    fn end(&mut self, key: &SecretKey, reason: Arc<str>, now: Instant) -> bool {
        let Some(entry) = self.entries.remove(key) else {
            return false;
        };
        if entry.prepared_until.is_some() {
            self.prepared.dropped += 1;
            self.unused -= 1;
        }
        self.refusals.note(&entry.wanted, Arc::clone(&reason), now);
        entry.state.send_replace(State::Denied(reason));
        entry.held.is_some()
    }

    /// Forgets what nobody has wanted for `linger`. The keys wipe themselves.
    pub(super) fn sweep(&mut self, now: Instant, linger: Duration) {
        let mut dropped = 0;
        self.entries.retain(|_, entry| {
            if entry.state.receiver_count() > 0 {
                entry.idle_since = None;
                return true;
            }
            if let Some(until) = entry.prepared_until {
                let keep = now < until || entry.asking;
                dropped += usize::from(!keep);
                return keep;
            }
            let since = *entry.idle_since.get_or_insert(now);
            entry.asking || now.saturating_duration_since(since) < linger
        });
        self.prepared.dropped += dropped as u64;
        self.unused -= dropped;
        self.refusals.sweep(now);
        self.waiting.sweep();
        self.tokens.sweep();
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

    /// Little of its life is left.
    fn presses(&self, now: Instant) -> bool {
        self.held.as_ref().is_some_and(|held| {
            held.expires().saturating_duration_since(now) < held.plan.expires_in / PRESSING
        })
    }

    /// What is left until the CA is asked again, and of the time for which it is kept
    /// without anybody having asked for it.
    pub(super) fn time_left(&self, now: Instant) -> (Duration, Option<Duration>) {
        let prepared = self.prepared_until;
        (
            self.due.saturating_duration_since(now),
            prepared.map(|until| until.saturating_duration_since(now)),
        )
    }

    /// Failures in a row.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    fn lane(&self) -> Lane {
        match &self.wanted.key {
            SecretKey::Relayed { .. } if self.proven_pod.is_none() => Lane::Tokens,
            _ => Lane::Own,
        }
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
