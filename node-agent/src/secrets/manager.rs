//! The SecretManager: hands out subscriptions and keeps every secret renewed.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use citadel_identity::{TrustDomain, bundle::BundleSet, verify::ProvenIssuers};
use citadel_runtime::ShutdownSignal;
use time::OffsetDateTime;
use tokio::{
    sync::{Notify, OwnedRwLockWriteGuard, RwLock, Semaphore, watch},
    task::JoinSet,
    time::Instant,
};

use super::{
    key::Wanted,
    renewal::{self, Asker},
    svid::Svid,
    table::{Lane, Table},
};
use crate::{ca_client::Ca, clock::Clock, metrics::Metrics};

/// How often what nobody wants is looked for, and the wall clock is compared.
const SWEEP_EVERY: Duration = Duration::from_secs(5);

/// A wall clock that went this much further than the monotonic one has been set.
const JUMP: Duration = Duration::from_mins(1);

/// A secret as its subscribers see it.
#[derive(Debug, Clone)]
pub enum State {
    /// Nothing to serve yet.
    Waiting {
        /// What went wrong with the last attempt, if one was made.
        trouble: Option<Arc<str>>,
    },
    /// The newest certificate. It stays through any outage.
    Ready(Arc<Svid>),
    /// The CA refuses it. The last state of a subscription: who still wants the secret
    /// subscribes again.
    Denied(Arc<str>),
}

/// A watch on one secret; while it is held, the secret is renewed.
pub type Subscription = watch::Receiver<State>;

/// A secret as administrators see it.
#[derive(Debug, Clone)]
pub struct Held {
    /// What it is held for.
    pub subject: String,
    /// The certificate; none while the first one is awaited.
    pub svid: Option<Arc<Svid>>,
    /// When the CA is asked next.
    pub due_in: Duration,
    /// Failures in a row.
    pub failures: u32,
}

/// Why there is no subscription now. Later there may be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotNow {
    /// The node holds as many identities as it may.
    #[error("the agent holds as many identities as it may")]
    Full,
    /// The CA has not answered yet what the same caller asked for.
    #[error("the CA has not answered yet what this caller wants beside it")]
    Waiting,
    /// The CA refused it, a moment ago.
    #[error("{0}")]
    Refused(Arc<str>),
}

/// What can be set.
#[derive(Debug, Clone)]
pub struct ManagerOptions {
    /// How long a secret is kept that nobody subscribes to: a proxy that restarts finds
    /// it, a pod that has gone leaves nothing behind.
    pub linger: Duration,
    /// How long the first that is due waits for others, to share a batch.
    pub gather: Duration,
    /// The most batches in flight, beside one of tokens that nobody has verified.
    pub batches_in_flight: usize,
    /// The most identities held.
    pub identities: usize,
}

impl Default for ManagerOptions {
    fn default() -> Self {
        Self {
            linger: Duration::from_secs(30),
            gather: Duration::from_millis(5),
            batches_in_flight: 4,
            identities: 16_384,
        }
    }
}

/// Holds and renews the secrets of the node. Clones share one state.
#[derive(Clone)]
pub struct SecretManager {
    pub(super) shared: Arc<Shared>,
}

pub(super) struct Shared {
    table: Mutex<Table>,
    wake: Notify,
    /// Read by each batch in flight; held back for writing while nothing may change.
    asking: Arc<RwLock<()>>,
    pub ca: Arc<dyn Ca>,
    pub clock: Arc<dyn Clock>,
    pub trust_domain: TrustDomain,
    pub bundles: watch::Receiver<Option<Arc<BundleSet>>>,
    pub issuers: ProvenIssuers,
    pub metrics: Metrics,
    options: ManagerOptions,
}

impl SecretManager {
    /// Nothing is asked for before [`Self::run`].
    pub fn new(
        ca: Arc<dyn Ca>,
        clock: Arc<dyn Clock>,
        trust_domain: TrustDomain,
        bundles: watch::Receiver<Option<Arc<BundleSet>>>,
        metrics: Metrics,
        options: ManagerOptions,
    ) -> Self {
        let shared = Shared {
            table: Mutex::new(Table::new(options.identities)),
            wake: Notify::new(),
            asking: Arc::default(),
            ca,
            clock,
            trust_domain,
            bundles,
            issuers: ProvenIssuers::default(),
            metrics,
            options,
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Subscribes to a secret, and has it fetched if nobody wanted it before.
    pub fn subscribe(&self, wanted: Wanted) -> Result<Subscription, NotNow> {
        let mut table = self.shared.table();
        let before = table.len();
        let subscription = table.subscribe(wanted, Instant::now())?;
        // Only a new one is due: those who come for what is there cause no work.
        if table.len() > before {
            self.shared.wake.notify_one();
        }
        Ok(subscription)
    }

    /// Has a secret fetched that nobody wants yet, and keeps it until `until` for who will;
    /// of at most `limit` such. Without room for it nothing happens.
    pub fn prepare(&self, wanted: Wanted, until: Instant, limit: usize) {
        let now = Instant::now();
        if self.shared.table().prepare(wanted, until, limit, now) {
            self.shared.wake.notify_one();
        }
    }

    /// Ends at once what is for a pod that is gone. Keys wipe themselves, and who still
    /// holds a subscription is told.
    pub fn end_pods(&self, gone: impl Fn(&str) -> bool) {
        let ended = self.shared.table().end_pods(gone, Instant::now());
        if ended > 0 {
            tracing::debug!(ended, "secrets of pods that are gone were freed");
            self.shared.report();
        }
    }

    /// What is held or awaited, the next to be renewed first.
    pub fn held(&self) -> Vec<Held> {
        let mut held: Vec<Held> = self.shared.table().held(Instant::now()).collect();
        held.sort_by_key(|secret| secret.due_in);
        held
    }

    /// Asks the CA for nothing more until the answer is dropped, once the batches in flight
    /// have ended. `None` if they have not within `patience`: then nothing has changed.
    pub async fn hold_still(&self, patience: Duration) -> Option<Still> {
        let asking = Arc::clone(&self.shared.asking).write_owned();
        let Ok(guard) = tokio::time::timeout(patience, asking).await else {
            // What became due meanwhile was held back by the attempt.
            self.shared.wake.notify_one();
            return None;
        };
        Some(Still {
            guard: Some(guard),
            shared: Arc::clone(&self.shared),
        })
    }

    /// Renews until the shutdown. One task, started once.
    pub async fn run(self, shutdown: ShutdownSignal) {
        let shared = self.shared;
        let mut batches = JoinSet::new();
        let mut clocks = Clocks::new(&*shared.clock);
        let lanes = [
            (Lane::Own, shared.options.batches_in_flight),
            (Lane::Tokens, 1),
        ]
        .map(|(lane, slots)| (lane, Arc::new(Semaphore::new(slots))));
        let mut sweep = Instant::now();
        loop {
            // With every slot of a lane taken, what is due waits for a batch to end.
            let free = lanes
                .iter()
                .filter(|(_, slots)| slots.available_permits() > 0);
            let wake = {
                let table = shared.table();
                // Held still, what is due waits for that to end.
                let still = shared.asking.try_read().is_err();
                free.filter(|_| !still)
                    .filter_map(|(lane, _)| table.next_due(*lane))
                    .fold(sweep, Instant::min)
            };
            let mut batch_ended = false;
            tokio::select! {
                biased;
                () = shutdown.wait() => break,
                Some(_) = batches.join_next() => batch_ended = true,
                () = shared.wake.notified() => {}
                () = tokio::time::sleep_until(wake) => {}
            }
            let now = Instant::now();
            if let Some(jump) = clocks.jump(&*shared.clock) {
                tracing::warn!(
                    seconds = jump.whole_seconds(),
                    "the machine's clock was set: the renewal schedule is rebuilt"
                );
                shared.table().rebuild(now, shared.clock.now());
            }
            if now >= sweep {
                sweep = now + SWEEP_EVERY;
                shared.table().sweep(now, shared.options.linger);
                shared.report();
            } else if batch_ended {
                shared.report();
            }
            let due = |lane| shared.table().next_due(lane).is_some_and(|due| due <= now);
            if !due(Lane::Own) && !due(Lane::Tokens) {
                continue;
            }
            tokio::time::sleep(shared.options.gather).await;
            for (lane, slots) in &lanes {
                while let Ok(slot) = Arc::clone(slots).try_acquire_owned() {
                    let Ok(asking) = Arc::clone(&shared.asking).try_read_owned() else {
                        break;
                    };
                    let asks = renewal::take_batch(&mut shared.table(), *lane, Instant::now());
                    if asks.is_empty() {
                        break;
                    }
                    let asker = Asker {
                        shared: Arc::clone(&shared),
                    };
                    batches.spawn(async move {
                        asker.ask(asks).await;
                        drop((slot, asking));
                    });
                }
            }
        }
        batches.shutdown().await;
    }
}

/// While it is held, the CA is asked for nothing.
pub struct Still {
    guard: Option<OwnedRwLockWriteGuard<()>>,
    shared: Arc<Shared>,
}

impl Drop for Still {
    fn drop(&mut self) {
        drop(self.guard.take());
        self.shared.wake.notify_one();
    }
}

impl Shared {
    pub(super) fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn report(&self) {
        let mut table = self.table();
        let (waiting, prepared) = (table.waiting_for_use(), table.take_prepared());
        let held = table.values().filter_map(|entry| entry.held.as_ref());
        let ends: Vec<i64> = held.map(|svid| svid.not_after.unix_timestamp()).collect();
        let next = [Lane::Own, Lane::Tokens]
            .iter()
            .filter_map(|lane| table.next_due(*lane))
            .min();
        drop(table);
        self.metrics.prepared(waiting, prepared);
        let next = next.map(|due| {
            let in_seconds = due.saturating_duration_since(Instant::now()).as_secs();
            let in_seconds = i64::try_from(in_seconds).unwrap_or(i64::MAX);
            self.clock.now().unix_timestamp().saturating_add(in_seconds)
        });
        self.metrics
            .holding(ends.len(), ends.iter().min().copied(), next);
    }
}

/// Wall and monotonic time, compared from one look to the next.
struct Clocks {
    wall: OffsetDateTime,
    monotonic: Instant,
}

impl Clocks {
    fn new(clock: &dyn Clock) -> Self {
        Self {
            wall: clock.now(),
            monotonic: Instant::now(),
        }
    }

    /// How far wall time went on its own, if further than [`JUMP`].
    fn jump(&mut self, clock: &dyn Clock) -> Option<time::Duration> {
        let now = Self::new(clock);
        let passed = time::Duration::try_from(now.monotonic - self.monotonic).ok()?;
        let ahead = now.wall - self.wall - passed;
        *self = now;
        (ahead.unsigned_abs() > JUMP).then_some(ahead)
    }
}

#[cfg(test)]
#[path = "manager_tests.rs"]
mod tests;
