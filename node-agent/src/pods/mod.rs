//! The pods of this node, as Kubernetes has them: which have gone, which containers they
//! have, and which are about to start.
//!
//! Without a source the agent knows of pods what processes' cgroups say, and the CA decides
//! the rest. With one, an outage of the source takes nothing: what was known stays known.

pub mod choice;
pub mod config;
mod prepare;
pub(crate) mod source;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use citadel_kubernetes::{Lookup, NodePod, NodePods};
use citadel_runtime::ShutdownSignal;
use tokio::{sync::watch, time::Instant};

pub use self::source::Source;
use self::{config::PodsSettings, prepare::Preparer};
use crate::{attest::cgroup::PodUid, metrics::Metrics, secrets::SecretManager};

/// How often it is reported how old the knowledge is.
const REPORT_EVERY: Duration = Duration::from_secs(10);

/// Why a pod's secrets end.
pub const GONE: &str = "the pod is gone";

/// What is known of a pod.
#[derive(Debug, Clone)]
pub enum PodState {
    /// The source has not shown it, or not yet.
    Unknown,
    /// It is there.
    Live(Arc<NodePod>),
    /// Its object was deleted, or its containers have ended for good.
    Gone,
}

/// The pods of this node. Clones share what is known.
#[derive(Clone, Default)]
pub struct Pods(Option<Arc<Known>>);

struct Known {
    pods: Arc<NodePods>,
    /// Those that somebody follows.
    followed: Mutex<HashMap<PodUid, watch::Sender<PodState>>>,
}

impl PodState {
    /// The pod, if it is there.
    pub fn live(&self) -> Option<&Arc<NodePod>> {
        match self {
            Self::Live(pod) => Some(pod),
            Self::Unknown | Self::Gone => None,
        }
    }

    /// True where looking at the pod can show no difference.
    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Unknown, Self::Unknown) | (Self::Gone, Self::Gone) => true,
            (Self::Live(a), Self::Live(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}

impl Pods {
    /// With a source, which feeds `pods`.
    pub fn of(pods: Arc<NodePods>) -> Self {
        Self(Some(Arc::new(Known {
            pods,
            followed: Mutex::default(),
        })))
    }

    /// Whether there is a source.
    pub fn is_watched(&self) -> bool {
        self.0.is_some()
    }

    /// What is known of a pod, now and after each change; none without a source.
    pub fn follow(&self, uid: &PodUid) -> Option<watch::Receiver<PodState>> {
        let known = self.0.as_ref()?;
        let mut followed = known.followed();
        let sender = followed
            .entry(uid.clone())
            // Under the lock, so that no change falls between the look and the entry.
            .or_insert_with(|| watch::Sender::new(known.state(uid)));
        Some(sender.subscribe())
    }

    /// Passes each change on until the shutdown: to who follows the pod, and to the secrets,
    /// which are freed when their pod is gone, and made ready before it starts. `own` is the UID
    /// of the agent's own pod.
    pub async fn run(
        self,
        settings: PodsSettings,
        own: Option<String>,
        manager: SecretManager,
        metrics: Metrics,
        shutdown: ShutdownSignal,
    ) {
        let Some(known) = self.0 else { return };
        let mut revision = known.pods.subscribe();
        let mut preparer = Preparer::new(settings, own, manager.clone());
        loop {
            revision.mark_unchanged();
            known.pass_on();
            manager.end_pods(|uid| matches!(known.pods.pod(uid), Lookup::Gone));
            preparer.look_at(&known.pods.all());
            let now = Instant::now().into_std();
            metrics.pods(known.pods.count(), known.pods.staleness(now));
            tokio::select! {
                () = shutdown.wait() => return,
                // So that the age is one.
                () = tokio::time::sleep(REPORT_EVERY) => {}
                // The sender is in `known`.
                _ = revision.changed() => {}
            }
        }
    }
}

impl Known {
    fn state(&self, uid: &PodUid) -> PodState {
        match uid {
            PodUid::Api(uid) => match self.pods.pod(uid) {
                Lookup::Live(pod) => PodState::Live(pod),
                Lookup::Gone => PodState::Gone,
                Lookup::Unknown => PodState::Unknown,
            },
            // The kubelet makes a mirror again that somebody deletes: its absence says
            // nothing of the static pod.
            PodUid::Static(hash) => match self.pods.of_hash(hash) {
                Some(pod) => PodState::Live(pod),
                None => PodState::Unknown,
            },
        }
    }

    fn pass_on(&self) {
        self.followed().retain(|uid, sender| {
            if sender.receiver_count() == 0 {
                return false;
            }
            let now = self.state(uid);
            sender.send_if_modified(|state| {
                let changed = !state.is(&now);
                *state = now;
                changed
            });
            true
        });
    }

    fn followed(&self) -> MutexGuard<'_, HashMap<PodUid, watch::Sender<PodState>>> {
        self.followed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
