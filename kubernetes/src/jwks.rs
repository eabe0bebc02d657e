//! The keys that sign a cluster's service-account tokens.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use futures::FutureExt;
use serde::Deserialize;
use tokio::sync::watch;

use crate::api::{ApiError, ClusterApi};
use crate::singleflight::SingleFlight;

/// A key set as the API server sent it.
#[derive(Debug, PartialEq, Eq)]
pub struct JwksSnapshot {
    /// The JSON Web Key Set. It has been checked to be an object with at least one key, no more.
    pub json: String,
    /// When the request for it was made (monotonic).
    pub fetched: Instant,
}

/// What came of a wish for a newer key set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefetchOutcome {
    /// [`JwksSource::current`] was fetched just now: a key that it lacks does not exist.
    Fresh,
    /// The last request was too short a time ago, so nothing is known about newer keys.
    RateLimited,
    /// The API server did not answer, or with no key set. The last good one stays.
    Failed,
}

/// How often the key set is fetched.
#[derive(Debug, Clone, Copy)]
pub struct JwksPolicy {
    /// Between two requests, whoever asks for them and whatever came of the first.
    pub min_interval: Duration,
    /// Between two requests when nobody asks.
    pub refresh: Duration,
}

impl JwksPolicy {
    /// For a server that trusts a key set of at most the age `max_staleness`: refreshed several
    /// times within it, so that the API server can be away for most of that time.
    pub fn for_staleness(max_staleness: Duration) -> Self {
        let default = Self::default();
        let refresh = (max_staleness / 10).clamp(default.min_interval, default.refresh);
        Self { refresh, ..default }
    }
}

impl Default for JwksPolicy {
    fn default() -> Self {
        Self {
            min_interval: Duration::from_secs(10),
            refresh: Duration::from_mins(5),
        }
    }
}

/// The last good key set of one cluster, and the only way to a newer one.
pub struct JwksSource {
    inner: Arc<Inner>,
    flights: SingleFlight<(), RefetchOutcome>,
}

struct Inner {
    api: Arc<dyn ClusterApi>,
    policy: JwksPolicy,
    current: RwLock<Option<Arc<JwksSnapshot>>>,
    last_attempt: Mutex<Option<Instant>>,
    updates: watch::Sender<u64>,
}

impl JwksSource {
    /// A source without a key set; [`Self::run`] or [`Self::refetch`] fetch the first.
    pub fn new(api: Arc<dyn ClusterApi>, policy: JwksPolicy) -> Self {
        Self {
            inner: Arc::new(Inner {
                api,
                policy,
                current: RwLock::new(None),
                last_attempt: Mutex::new(None),
                updates: watch::Sender::new(0),
            }),
            flights: SingleFlight::new(),
        }
    }

    /// The last good key set.
    pub fn current(&self) -> Option<Arc<JwksSnapshot>> {
        self.inner.current()
    }

    /// The time since the last good key set was fetched, `None` if there is none.
    pub fn age(&self, now: Instant) -> Option<Duration> {
        self.current()
            .map(|snapshot| now.saturating_duration_since(snapshot.fetched))
    }

    /// Changes whenever the content of the key set has changed.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.inner.updates.subscribe()
    }

    /// Fetches the key set anew, at most once in [`JwksPolicy::min_interval`] over all callers. Who
    /// asks while a request is under way gets that one's outcome.
    pub async fn refetch(&self) -> RefetchOutcome {
        let flight = self.flights.join((), || {
            let now = now();
            let mut last = self
                .inner
                .last_attempt
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            if last.is_some_and(|at| {
                now.saturating_duration_since(at) < self.inner.policy.min_interval
            }) {
                return Err(RefetchOutcome::RateLimited);
            }
            *last = Some(now);
            Ok(self.inner.clone().fetch(now).boxed())
        });
        match flight {
            Ok(flight) => flight.await,
            Err(refused) => refused,
        }
    }

    /// Keeps the key set fresh until `shutdown`.
    pub async fn run(&self, shutdown: impl Future<Output = ()> + Send) {
        let refresh = async {
            loop {
                let wait = match self.refetch().await {
                    RefetchOutcome::Fresh => self.inner.policy.refresh,
                    // The others ask, too: try again when it is allowed.
                    RefetchOutcome::RateLimited | RefetchOutcome::Failed => {
                        self.inner.policy.min_interval
                    }
                };
                tokio::time::sleep(wait).await;
            }
        };
        tokio::select! {
            () = shutdown => {}
            () = refresh => {}
        }
    }
}

impl Inner {
    fn current(&self) -> Option<Arc<JwksSnapshot>> {
        self.current
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    async fn fetch(self: Arc<Self>, started: Instant) -> RefetchOutcome {
        let fetched = match self.api.fetch_jwks().await {
            Ok(json) => check(&json).map(|()| json),
            Err(error) => Err(error),
        };
        let json = match fetched {
            Ok(json) => json,
            Err(error) => {
                tracing::warn!(%error, "the API server's token keys can't be fetched");
                return RefetchOutcome::Failed;
            }
        };
        let changed = self.current().is_none_or(|known| known.json != json);
        let snapshot = Arc::new(JwksSnapshot {
            json,
            fetched: started,
        });
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Some(snapshot);
        if changed {
            tracing::info!("the API server's token keys are new");
            self.updates.send_modify(|n| *n += 1);
        }
        RefetchOutcome::Fresh
    }
}

/// An answer without keys would have every token rejected for good: it is taken for a failure.
fn check(json: &str) -> Result<(), ApiError> {
    #[derive(Deserialize)]
    struct KeySet {
        keys: Vec<serde::de::IgnoredAny>,
    }

    let set: KeySet = serde_json::from_str(json)
        .map_err(|_| ApiError::Malformed("the key set is no JSON Web Key Set".into()))?;
    if set.keys.is_empty() {
        return Err(ApiError::Malformed("the key set has no keys".into()));
    }
    Ok(())
}

/// Tokio's clock, which tests can hold.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

#[cfg(test)]
mod tests;
