//! The one request by name for a UID that no watch has shown.
//!
//! A token can be younger than the watch's last word. One GET tells: the object of that name is
//! absent or has another UID, and then that UID is gone for good; or it is the one. Requests are
//! single for each key and limited over all, so that made-up UIDs can't be turned against the API
//! server.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::BoxFuture;

use crate::api::{ApiError, ClusterApi};
use crate::inventory::{Inventory, Lookup};
use crate::records::{AccountRecord, NodeRecord, PodRecord};
use crate::singleflight::SingleFlight;

/// What is known of a UID after asking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolved<T> {
    /// It is alive.
    Live(T),
    /// Final: there is no such object, or it has finished or gone.
    Absent,
    /// Final: the object of that name is another one.
    OtherUid,
    /// Not asked: too many requests at the moment. Says nothing.
    RateLimited,
    /// No answer, or none that can be used. Says nothing.
    Unreachable,
}

/// Limits of the resolver.
#[derive(Debug, Clone, Copy)]
pub struct ResolverPolicy {
    /// Requests a second in the long run, over all kinds.
    pub per_second: u32,
    /// Requests at once after a quiet time.
    pub burst: u32,
    /// How long a final answer is repeated without asking again.
    pub remember: Duration,
    /// At most so many final answers of each kind are kept.
    pub remember_count: usize,
}

impl Default for ResolverPolicy {
    fn default() -> Self {
        Self {
            per_second: 50,
            burst: 100,
            remember: Duration::from_mins(10),
            remember_count: 10_000,
        }
    }
}

/// Asks the API server about UIDs that the inventory does not know.
pub struct UnknownUidResolver {
    api: Arc<dyn ClusterApi>,
    inventory: Arc<Inventory>,
    bucket: Mutex<TokenBucket>,
    pods: Desk<PodRecord>,
    accounts: Desk<AccountRecord>,
    nodes: Desk<NodeRecord>,
}

impl UnknownUidResolver {
    /// A resolver whose live answers go into `inventory`.
    pub fn new(
        api: Arc<dyn ClusterApi>,
        inventory: Arc<Inventory>,
        policy: ResolverPolicy,
    ) -> Self {
        Self {
            api,
            inventory,
            bucket: Mutex::new(TokenBucket::new(policy, now())),
            pods: Desk::new(policy),
            accounts: Desk::new(policy),
            nodes: Desk::new(policy),
        }
    }

    /// The pod `namespace`/`name` with that UID. Answers from the inventory where it knows.
    pub async fn resolve_pod(
        &self,
        namespace: &str,
        name: &str,
        uid: &str,
    ) -> Resolved<Arc<PodRecord>> {
        let inventory = self.inventory.clone();
        let key = Key::new(namespace, name, Some(uid));
        self.pods
            .resolve(&self.bucket, key, self.inventory.pod(uid), |key| {
                let api = self.api.clone();
                async move {
                    let found = api.get_pod(&key.namespace, &key.name).await;
                    settle(
                        &key,
                        found,
                        |pod| &pod.uid,
                        |pod| inventory.insert_fetched_pod(pod, now()),
                    )
                }
                .boxed()
            })
            .await
    }

    /// The service account `namespace`/`name` with that UID.
    pub async fn resolve_account(
        &self,
        namespace: &str,
        name: &str,
        uid: &str,
    ) -> Resolved<Arc<AccountRecord>> {
        let key = Key::new(namespace, name, Some(uid));
        self.ask_for_account(key, self.inventory.account_by_uid(uid))
            .await
    }

    async fn ask_for_account(
        &self,
        key: Key,
        known: Lookup<Arc<AccountRecord>>,
    ) -> Resolved<Arc<AccountRecord>> {
        let inventory = self.inventory.clone();
        self.accounts
            .resolve(&self.bucket, key, known, |key| {
                let api = self.api.clone();
                async move {
                    let found = api.get_account(&key.namespace, &key.name).await;
                    settle(
                        &key,
                        found,
                        |a| &a.uid,
                        |a| inventory.insert_fetched_account(a, now()),
                    )
                }
                .boxed()
            })
            .await
    }

    /// The service account of that name, whatever its UID: a pod names its account so.
    pub async fn resolve_account_name(
        &self,
        namespace: &str,
        name: &str,
    ) -> Resolved<Arc<AccountRecord>> {
        let known = self.inventory.account(namespace, name);
        let known = known.map_or(Lookup::Unknown, Lookup::Live);
        let key = Key::new(namespace, name, None);
        self.ask_for_account(key, known).await
    }

    /// The node `name` with that UID.
    pub async fn resolve_node(&self, name: &str, uid: &str) -> Resolved<Arc<NodeRecord>> {
        let inventory = self.inventory.clone();
        let key = Key::new("", name, Some(uid));
        self.nodes
            .resolve(&self.bucket, key, self.inventory.node_by_uid(uid), |key| {
                let api = self.api.clone();
                async move {
                    let found = api.get_node(&key.name).await;
                    settle(
                        &key,
                        found,
                        |n| &n.uid,
                        |n| inventory.insert_fetched_node(n, now()),
                    )
                }
                .boxed()
            })
            .await
    }
}

/// Compares what the API server has with what was asked about.
fn settle<T>(
    key: &Key,
    found: Result<Option<T>, ApiError>,
    uid: impl Fn(&T) -> &Arc<str>,
    insert: impl FnOnce(T) -> Lookup<Arc<T>>,
) -> Resolved<Arc<T>> {
    match found {
        Ok(None) => Resolved::Absent,
        Ok(Some(record)) if key.uid.as_ref().is_some_and(|own| own != uid(&record)) => {
            Resolved::OtherUid
        }
        // The watch may have seen it go while the answer was on its way, or it has finished.
        Ok(Some(record)) => insert(record)
            .live()
            .map_or(Resolved::Absent, Resolved::Live),
        Err(error) => {
            tracing::warn!(%error, namespace = %key.namespace, name = %key.name, "can't look up an object that no watch has shown");
            Resolved::Unreachable
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    namespace: Arc<str>,
    name: Arc<str>,
    /// `None` where any will do.
    uid: Option<Arc<str>>,
}

impl Key {
    fn new(namespace: &str, name: &str, uid: Option<&str>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
            uid: uid.map(Into::into),
        }
    }
}

/// One kind of object: requests under way and final answers.
struct Desk<T> {
    flights: SingleFlight<Key, Resolved<Arc<T>>>,
    finals: Mutex<Finals<T>>,
}

impl<T: Send + Sync + 'static> Desk<T> {
    fn new(policy: ResolverPolicy) -> Self {
        Self {
            flights: SingleFlight::new(),
            finals: Mutex::new(Finals::new(policy)),
        }
    }

    async fn resolve(
        &self,
        bucket: &Mutex<TokenBucket>,
        key: Key,
        known: Lookup<Arc<T>>,
        ask: impl FnOnce(Key) -> BoxFuture<'static, Resolved<Arc<T>>>,
    ) -> Resolved<Arc<T>> {
        match known {
            Lookup::Live(record) => return Resolved::Live(record),
            Lookup::Gone => return Resolved::Absent,
            Lookup::Unknown => {}
        }
        if let Some(verdict) = lock(&self.finals).get(&key, now()) {
            return verdict;
        }
        let flight = self.flights.join(key.clone(), || {
            if lock(bucket).take(now()) {
                Ok(ask(key.clone()))
            } else {
                Err(())
            }
        });
        let Ok(flight) = flight else {
            return Resolved::RateLimited;
        };
        let verdict = flight.await;
        if matches!(verdict, Resolved::Absent | Resolved::OtherUid) {
            lock(&self.finals).put(key, verdict.clone(), now());
        }
        verdict
    }
}

/// Final answers, bounded by time and count.
struct Finals<T> {
    policy: ResolverPolicy,
    known: HashMap<Key, Resolved<Arc<T>>>,
    order: VecDeque<(Key, Instant)>,
}

impl<T> Finals<T> {
    fn new(policy: ResolverPolicy) -> Self {
        Self {
            policy,
            known: HashMap::new(),
            order: VecDeque::new(),
        }
    }

    fn get(&mut self, key: &Key, now: Instant) -> Option<Resolved<Arc<T>>> {
        while let Some((_, at)) = self.order.front()
            && now.saturating_duration_since(*at) > self.policy.remember
        {
            self.forget_first();
        }
        self.known.get(key).cloned()
    }

    fn put(&mut self, key: Key, verdict: Resolved<Arc<T>>, now: Instant) {
        if self.policy.remember_count == 0 || self.known.insert(key.clone(), verdict).is_some() {
            return;
        }
        if self.order.len() >= self.policy.remember_count {
            self.forget_first();
        }
        self.order.push_back((key, now));
    }

    fn forget_first(&mut self) {
        if let Some((key, _)) = self.order.pop_front() {
            self.known.remove(&key);
        }
    }
}

struct TokenBucket {
    policy: ResolverPolicy,
    tokens: f64,
    at: Instant,
}

impl TokenBucket {
    fn new(policy: ResolverPolicy, now: Instant) -> Self {
        Self {
            policy,
            tokens: f64::from(policy.burst),
            at: now,
        }
    }

    fn take(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = self.at.max(now);
        self.tokens = (self.tokens + passed * f64::from(self.policy.per_second))
            .min(f64::from(self.policy.burst));
        if self.tokens < 1.0 {
            return false;
        }
        self.tokens -= 1.0;
        true
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tokio's clock, which tests can hold.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

#[cfg(test)]
mod tests;
