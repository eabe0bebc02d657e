//! Ahead of need: the account's identity of a pod that is bound to this node is asked for
//! before its containers start, so that it is there when the first of them asks.

use std::{collections::HashSet, path::Path, sync::Arc};

use citadel_kubernetes::NodePod;
use tokio::time::Instant;

use super::config::{PodsSettings, PrepareFor};
use crate::secrets::{SecretKey, SecretManager, Wanted};

/// Asks once for each pod.
pub(super) struct Preparer {
    settings: PodsSettings,
    manager: SecretManager,
    own: Option<String>,
    /// The pods that were looked at and are still there.
    seen: HashSet<Arc<str>>,
}

impl Preparer {
    /// `own` is the agent's own pod, which asks for nothing.
    pub(super) fn new(settings: PodsSettings, own: Option<String>, manager: SecretManager) -> Self {
        Self {
            settings,
            manager,
            own,
            seen: HashSet::new(),
        }
    }

    /// Prepares those of the node's pods that are new.
    pub(super) fn look_at(&mut self, pods: &[Arc<NodePod>]) {
        let now: HashSet<Arc<str>> = pods.iter().map(|p| Arc::clone(&p.record.uid)).collect();
        self.seen.retain(|uid| now.contains(uid));
        for pod in pods {
            if !self.seen.contains(&pod.record.uid) && self.is_for(pod) {
                let until = Instant::now() + self.settings.keep;
                let wanted = wanted(pod, self.settings.ttl_seconds);
                // Where there is no room, the pod asks for itself: no loss but of time.
                self.manager.prepare(wanted, until, self.settings.limit);
            }
            self.seen.insert(Arc::clone(&pod.record.uid));
        }
    }

    fn is_for(&self, pod: &NodePod) -> bool {
        // A static pod has no account.
        let has_account = !pod.record.is_mirror() && !pod.record.account.is_empty();
        let reaches_the_socket = || {
            let mounted = |path: &Arc<str>| self.settings.folder.starts_with(Path::new(&**path));
            pod.host_paths.iter().any(mounted)
        };
        let is_own = self.own.as_deref() == Some(&*pod.record.uid);
        has_account
            && !is_own
            && match self.settings.prepare {
                PrepareFor::All => true,
                PrepareFor::Mounted => reaches_the_socket(),
                PrepareFor::Nobody => false,
            }
    }
}

/// What a process of the pod will want: it has to be the same secret.
fn wanted(pod: &NodePod, ttl_seconds: i64) -> Wanted {
    let uid = pod.record.uid.to_string();
    Wanted {
        principal: format!("pod {uid}").into(),
        key: SecretKey::Pod { uid },
        revision: 0,
        spiffe_id: None,
        ttl_seconds,
        token: None,
    }
}
