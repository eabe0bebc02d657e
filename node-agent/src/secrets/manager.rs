//! The SecretManager: hands out subscriptions and keeps every secret renewed.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use citadel_identity::{TrustDomain, bundle::BundleSet};
use citadel_runtime::ShutdownSignal;
use time::OffsetDateTime;
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
    time::Instant,
};

use super::{
    key::Wanted,
    renewal::{self, Asker},
    svid::Svid,
    table::Table,
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
    /// The CA refuses it.
    Denied(Arc<str>),
}

/// A watch on one secret; while it is held, the secret is renewed.
pub type Subscription = watch::Receiver<State>;

/// The node holds as many identities as it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the agent holds as many identities as it may")]
pub struct Full;

/// What can be set.
#[derive(Debug, Clone)]
pub struct ManagerOptions {
    /// How long a secret is kept that nobody subscribes to: a proxy that restarts finds
    /// it, a pod that has gone leaves nothing behind.
    pub linger: Duration,
    /// How long the first that is due waits for others, to share a batch.
    pub gather: Duration,
    /// The most batches in flight.
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
    shared: Arc<Shared>,
}

pub(super) struct Shared {
    table: Mutex<Table>,
    wake: Notify,
    pub ca: Arc<dyn Ca>,
    pub clock: Arc<dyn Clock>,
    pub trust_domain: TrustDomain,
    pub bundles: watch::Receiver<Option<Arc<BundleSet>>>,
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
            table: Mutex::default(),
            wake: Notify::new(),
            ca,
            clock,
            trust_domain,
            bundles,
            metrics,
            options,
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Subscribes to a secret, and has it fetched if nobody wanted it before.
    pub fn subscribe(&self, wanted: Wanted) -> Result<Subscription, Full> {
        let limit = self.shared.options.identities;
        let receiver = self.shared.table().subscribe(wanted, Instant::now(), limit);
        self.shared.wake.notify_one();
        receiver.ok_or(Full)
    }

    /// The CA's entries changed: those that were refused are asked for anew.
    pub fn entries_changed(&self) {
        self.shared.table().entries_changed(Instant::now());
        self.shared.wake.notify_one();
    }

    /// Renews until the shutdown. One task, started once.
    pub async fn run(self, shutdown: ShutdownSignal) {
        let shared = self.shared;
        let mut batches = JoinSet::new();
        let mut clocks = Clocks::new(&*shared.clock);
        loop {
            let now = Instant::now();
            let sweep = now + SWEEP_EVERY;
            let wake = shared
                .table()
                .next_due()
                .map_or(sweep, |due| due.min(sweep));
            // With every slot taken, what is due waits for a batch to end.
            let free = batches.len() < shared.options.batches_in_flight;
            let wake = if free { wake } else { sweep };
            tokio::select! {
                () = shutdown.wait() => break,
                () = shared.wake.notified() => {}
                () = tokio::time::sleep_until(wake) => {}
                Some(_) = batches.join_next() => {}
            }
            let now = Instant::now();
            if let Some(jump) = clocks.jump(&*shared.clock) {
                tracing::warn!(
                    seconds = jump.whole_seconds(),
                    "the machine's clock was set: the renewal schedule is rebuilt"
                );
                shared.table().rebuild(now, shared.clock.now());
            }
            shared.table().sweep(now, shared.options.linger);
            shared.report();
            if shared.table().next_due().is_none_or(|due| due > now) {
                continue;
            }
            tokio::time::sleep(shared.options.gather).await;
            while batches.len() < shared.options.batches_in_flight {
                let asks = renewal::take_batch(&mut shared.table(), Instant::now());
                if asks.is_empty() {
                    break;
                }
                batches.spawn(
                    Asker {
                        shared: Arc::clone(&shared),
                    }
                    .ask(asks),
                );
            }
        }
        batches.shutdown().await;
    }
}

impl Shared {
    pub(super) fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn report(&self) {
        let table = self.table();
        let held = table.values().filter_map(|entry| entry.held.as_ref());
        let ends: Vec<i64> = held.map(|svid| svid.not_after.unix_timestamp()).collect();
        drop(table);
        self.metrics.holding(ends.len(), ends.iter().min().copied());
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
