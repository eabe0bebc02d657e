//! What goes on beside the requests: keys are kept fresh, and readiness says which part is not
//! ready.

use std::{sync::Arc, time::Duration};

use citadel_identity::{
    TrustDomain,
    bundle::{Bundle, BundleSet},
};
use citadel_runtime::{
    ShutdownSignal,
    admin::{PartHandle, Readiness},
};
use futures::future::join_all;
use time::OffsetDateTime;
use tokio::{sync::watch, time::Instant};

use crate::{
    admission::Admission,
    clusters::{ClusterHandle, Clusters, Mode, SharedKey},
    holders::Holders,
    metrics::Metrics,
    store::{Store, StoreHealth},
};

/// Between two looks at every part.
const INTERVAL: Duration = Duration::from_secs(1);
/// The same while a part is not ready: who waits for this server is told soon.
const SOON: Duration = Duration::from_millis(100);
/// How long a start waits for the first keys; without them it goes on, not ready.
const FIRST_KEYS: Duration = Duration::from_secs(5);

/// How long a server that has just started waits for all of its clusters before it says that it
/// is ready for some: with a new version or new settings it is seen soon which one is wrong.
const ALL_CLUSTERS: Duration = Duration::from_secs(10);

/// What the monitor looks at.
pub(crate) struct Monitor {
    pub(crate) clusters: Arc<Clusters>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) admission: Arc<Admission>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) readiness: Readiness,
    pub(crate) holders: Arc<Holders>,
    pub(crate) trust_domain: TrustDomain,
    /// The bundle changes with rotation.
    pub(crate) bundle_sender: watch::Sender<Arc<BundleSet>>,
    pub(crate) shutdown: ShutdownSignal,
}

/// A cluster, as the readiness shows it.
struct ClusterPart<'c> {
    cluster: &'c ClusterHandle,
    part: PartHandle,
    /// It was ready once.
    reached: bool,
}

/// Runs until shutdown.
pub(crate) async fn run(monitor: Monitor) {
    tokio::join!(monitor.watch_parts(), monitor.refresh_keys());
}

/// Fetches keys and issuers once, before the first request. One cluster's keys must not be
/// another's, so that those of clusters with TokenReview are looked at as well, if there are more.
pub(crate) async fn first_keys(clusters: &Clusters) {
    let several = clusters.sole().is_none();
    let fetches = clusters
        .iter()
        .filter(|c| several || c.mode() == Mode::Local)
        .map(ClusterHandle::refresh_keys);
    let _ = tokio::time::timeout(FIRST_KEYS, join_all(fetches)).await;
}

impl Monitor {
    async fn watch_parts(&self) {
        let store = self.readiness.part("store");
        let mut clusters: Vec<ClusterPart<'_>> = self
            .clusters
            .iter()
            // Part names live as long as the process; there are as many as clusters.
            .map(|cluster| {
                let name: &'static str =
                    Box::leak(format!("cluster {}", cluster.name()).into_boxed_str());
                ClusterPart {
                    cluster,
                    part: self.readiness.part(name),
                    reached: false,
                }
            })
            .collect();
        let mut known = Vec::new();
        let begun = Instant::now();
        loop {
            let shared = self.clusters.shared_keys();
            if shared != known {
                for one in &shared {
                    tracing::error!("{one}; tokens of that key are refused for both");
                }
                known.clone_from(&shared);
            }
            match self.store.health() {
                StoreHealth::Ready => store.set_ready(),
                StoreHealth::NotReady(error) => store.set_not_ready(error.to_string()),
            }
            self.judge(&mut clusters, &shared, begun.elapsed() < ALL_CLUSTERS);
            self.metrics.waiting(self.admission.waiting());
            let bundles = self.bundle_sender.borrow().clone();
            let current = bundles
                .get(&self.trust_domain)
                .map(Bundle::authorities_sha256);
            let now = OffsetDateTime::now_utc();
            self.metrics
                .holders(self.holders.sums(&current.unwrap_or_default(), now));
            let wait = if self.readiness.is_ready() {
                INTERVAL
            } else {
                SOON
            };
            tokio::select! {
                () = self.shutdown.wait() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// One cluster that is away must not take the identities of all others.
    fn judge(&self, clusters: &mut [ClusterPart<'_>], shared: &[SharedKey], starts: bool) {
        let problems: Vec<Option<String>> = clusters
            .iter()
            .map(|of| Self::problem(of.cluster, shared))
            .collect();
        let any = problems.iter().any(Option::is_none);
        for (of, problem) in clusters.iter_mut().zip(problems) {
            let name = of.cluster.name();
            if let Some(skew) = of.cluster.api().clock_skew() {
                self.metrics.clock_skew(name, skew);
            }
            self.metrics.cluster_ready(name, problem.is_none());
            of.reached |= problem.is_none();
            match problem {
                None => of.part.set_ready(),
                Some(problem) if any && (of.reached || !starts) => of.part.set_degraded(problem),
                Some(problem) => of.part.set_not_ready(problem),
            }
        }
    }

    fn problem(cluster: &ClusterHandle, shared: &[SharedKey]) -> Option<String> {
        if let Some(shared) = shared.iter().find(|shared| shared.concerns(cluster.name())) {
            return Some(shared.to_string());
        }
        if let Err(stale) = cluster.check_fresh() {
            return Some(stale.to_string());
        }
        if cluster.mode() == Mode::TokenReview {
            return None;
        }
        if !cluster.knows_issuer() {
            return Some("the issuer of its tokens is not known yet".into());
        }
        match cluster.keys() {
            Some(Ok(_)) => None,
            Some(Err(reason)) => Some(reason),
            None => Some("its JWKS was never fetched, or too long ago".into()),
        }
    }

    async fn refresh_keys(&self) {
        let local = self.clusters.iter().filter(|c| c.mode() == Mode::Local);
        join_all(local.map(|cluster| async {
            while !cluster.knows_issuer() {
                cluster.refresh_keys().await;
                tokio::select! {
                    () = self.shutdown.wait() => return,
                    () = tokio::time::sleep(INTERVAL) => {}
                }
            }
            cluster.jwks().run(self.shutdown.wait_owned()).await;
        }))
        .await;
    }
}
