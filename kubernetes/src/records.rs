//! Pods, service accounts and nodes, trimmed to what a decision about identity needs.
//!
//! Each record is decoded straight from the API's JSON: what is not kept is skipped by the parser
//! and never allocated (`managedFields`, `status.conditions`, volumes, environments, …). Nothing
//! here comes from `status`, the kubelet's word, except the phase.

use std::fmt;
use std::sync::Arc;

use serde::Deserialize;

use crate::intern::Interner;
use crate::raw;

/// A pod.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "raw::Pod")]
pub struct PodRecord {
    /// `metadata.uid`: one life of a pod; a pod made again under its name has another.
    pub uid: Arc<str>,
    /// `metadata.name`
    pub name: Arc<str>,
    /// `metadata.namespace`
    pub namespace: Arc<str>,
    /// `spec.serviceAccountName`; empty for a mirror pod, which may name none.
    pub account: Arc<str>,
    /// `spec.nodeName`, once scheduled.
    pub node: Option<Arc<str>>,
    /// `status.phase`
    pub phase: Phase,
    /// `metadata.labels`
    pub labels: Labels,
    /// The containers of `spec`: init containers, containers, ephemeral containers, in this order.
    pub containers: Arc<[Container]>,
    /// The annotation `kubernetes.io/config.mirror`: the pod is the API's image of a static pod,
    /// and this is the static pod's configuration hash, which its cgroup carries in the place of
    /// a UID. Any kubelet can make one on its own node, with any labels. Empty where the value
    /// is no such hash.
    pub mirror: Option<Arc<str>>,
}

impl PodRecord {
    /// Its containers have ended for good: the object remains, the identity does not.
    pub fn is_finished(&self) -> bool {
        self.phase.is_final()
    }

    /// The API's image of a static pod.
    pub fn is_mirror(&self) -> bool {
        self.mirror.is_some()
    }
}

/// A container as `spec` names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Container {
    /// Its name, unique in its pod.
    pub name: Arc<str>,
    /// The image as written in `spec`, which need not be a digest.
    pub image: Arc<str>,
}

/// A service account.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "raw::Named")]
pub struct AccountRecord {
    /// `metadata.uid`: an account deleted and made again under its name has another.
    pub uid: Arc<str>,
    /// `metadata.name`
    pub name: Arc<str>,
    /// `metadata.namespace`
    pub namespace: Arc<str>,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "raw::Named")]
pub struct NodeRecord {
    /// `metadata.uid`: a Node object deleted and made again under its name has another.
    pub uid: Arc<str>,
    /// `metadata.name`
    pub name: Arc<str>,
}

/// A pod's phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Phase {
    /// Accepted, not all containers running. What an object without a status counts as.
    #[default]
    Pending,
    /// Bound to a node, containers started.
    Running,
    /// All containers ended with success and will not restart.
    Succeeded,
    /// All containers ended, one at least with failure, and will not restart.
    Failed,
    /// The node does not report, or a phase that this version does not know.
    Unknown,
}

impl Phase {
    /// `Succeeded` and `Failed`: there is no way back.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }
}

/// Labels in the order of their keys.
///
/// Pods of one workload share one allocation.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Labels(pub(crate) Arc<[(Arc<str>, Arc<str>)]>);

impl Labels {
    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&str> {
        let at = self.0.binary_search_by(|(k, _)| (**k).cmp(key)).ok()?;
        self.0.get(at).map(|(_, value)| &**value)
    }

    /// Keys and values, by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (&**key, &**value))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Default for Labels {
    fn default() -> Self {
        Self(Arc::from([]))
    }
}

impl fmt::Debug for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

/// A key that occurs twice keeps its last value.
impl<K: Into<Arc<str>>, V: Into<Arc<str>>> FromIterator<(K, V)> for Labels {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        let mut pairs: Vec<(Arc<str>, Arc<str>)> = pairs
            .into_iter()
            .map(|(key, value)| (key.into(), value.into()))
            .collect();
        pairs.reverse();
        pairs.sort_by(|(a, _), (b, _)| a.cmp(b));
        pairs.dedup_by(|(later, _), (kept, _)| later == kept);
        Self(pairs.into())
    }
}

// === what the inventory needs of a record ===

/// A record that the inventory can hold.
pub(crate) trait Record: PartialEq + Send + Sync + 'static {
    fn uid(&self) -> &Arc<str>;

    /// The object exists but its life is over.
    fn is_over(&self) -> bool {
        false
    }

    /// Replaces strings that other records hold too by the shared ones.
    fn intern(&mut self, interner: &mut Interner);
}

impl Record for PodRecord {
    fn uid(&self) -> &Arc<str> {
        &self.uid
    }

    fn is_over(&self) -> bool {
        self.is_finished()
    }

    fn intern(&mut self, interner: &mut Interner) {
        interner.share(&mut self.namespace);
        interner.share(&mut self.account);
        if let Some(node) = &mut self.node {
            interner.share(node);
        }
        interner.share_labels(&mut self.labels);
        interner.share_containers(&mut self.containers);
    }
}

impl Record for AccountRecord {
    fn uid(&self) -> &Arc<str> {
        &self.uid
    }

    fn intern(&mut self, interner: &mut Interner) {
        interner.share(&mut self.name);
        interner.share(&mut self.namespace);
    }
}

impl Record for NodeRecord {
    fn uid(&self) -> &Arc<str> {
        &self.uid
    }

    fn intern(&mut self, _: &mut Interner) {}
}

#[cfg(test)]
mod tests;
