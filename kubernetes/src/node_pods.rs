//! The pods of one node, as its agent sees them: what a [`PodRecord`] has, and beside it what the
//! kubelet says of the containers that run.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::watch;

use crate::intern::Interner;
use crate::inventory::table::{Index, Table};
use crate::inventory::{Event, Lookup, Remember};
use crate::raw;
use crate::records::{PodRecord, Record};

/// A pod of the node. Both of its own additions come from whom the agent believes anyway: the
/// kubelet of its node says which container has which ID.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Box<RawValue>")]
pub struct NodePod {
    /// What a decision about identity needs.
    pub record: PodRecord,
    /// The containers that the kubelet has started, of every kind, in no order.
    pub running: Arc<[RunningContainer]>,
    /// The node's folders that the pod mounts (`hostPath`).
    pub host_paths: Arc<[Arc<str>]>,
}

/// A container as the kubelet's status names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningContainer {
    /// The runtime's ID without its scheme: 64 hex digits.
    pub id: Arc<str>,
    /// The name in `spec`.
    pub name: Arc<str>,
}

impl NodePod {
    /// The name of the container with that ID, once the kubelet's status has it.
    pub fn container(&self, id: &str) -> Option<&str> {
        let found = self.running.iter().find(|container| *container.id == *id);
        found.map(|container| &*container.name)
    }
}

impl TryFrom<Box<RawValue>> for NodePod {
    type Error = serde_json::Error;

    fn try_from(object: Box<RawValue>) -> Result<Self, serde_json::Error> {
        let record = serde_json::from_str(object.get())?;
        let raw::OnNode { spec, status } = serde_json::from_str(object.get())?;
        Ok(Self {
            record,
            running: status.running().collect(),
            host_paths: spec.host_paths().collect(),
        })
    }
}

impl Record for NodePod {
    fn uid(&self) -> &Arc<str> {
        &self.record.uid
    }

    fn is_over(&self) -> bool {
        self.record.is_finished()
    }

    fn intern(&mut self, interner: &mut Interner) {
        self.record.intern(interner);
    }
}

/// A node has so few pods that a static pod is looked for among all of them.
#[derive(Default)]
struct NoIndex;

impl Index<NodePod> for NoIndex {
    fn insert(&mut self, _: &Arc<NodePod>) {}

    fn remove(&mut self, _: &NodePod) {}
}

/// The live pods of one node.
pub struct NodePods {
    table: RwLock<Table<NodePod, NoIndex>>,
    revision: watch::Sender<u64>,
}

impl Default for NodePods {
    fn default() -> Self {
        // A UID is asked about as long as a process of it can live on, and a node has few pods.
        Self::new(Remember {
            duration: Duration::from_hours(24),
            count: 10_000,
        })
    }
}

impl NodePods {
    /// Without a memory of what went, for a source that lists less than there is: what it does not
    /// show is unknown, and never gone.
    pub fn forgetful() -> Self {
        Self::new(Remember {
            duration: Duration::ZERO,
            count: 0,
        })
    }

    fn new(remember: Remember) -> Self {
        Self {
            table: RwLock::new(Table::new(remember)),
            revision: watch::Sender::new(0),
        }
    }

    /// Takes in what was reported at `now`.
    pub fn apply(&self, event: Event<NodePod>, now: Instant) {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let was_listed = table.staleness(now) < Duration::MAX;
        let changed = table.apply(event, now);
        let is_listed = table.staleness(now) < Duration::MAX;
        drop(table);
        if changed || was_listed != is_listed {
            self.revision.send_modify(|revision| *revision += 1);
        }
    }

    /// The pod with that UID. It is live until its object is gone or its phase is `Succeeded` or
    /// `Failed`.
    pub fn pod(&self, uid: &str) -> Lookup<Arc<NodePod>> {
        self.read(|table| table.lookup(uid))
    }

    /// The live pod of a static pod's configuration hash: its mirror in the API server, or the
    /// static pod itself, whose UID the hash is for its kubelet.
    pub fn of_hash(&self, config_hash: &str) -> Option<Arc<NodePod>> {
        if config_hash.is_empty() {
            return None;
        }
        let is_it = |pod: &&Arc<NodePod>| pod.record.mirror.as_deref() == Some(config_hash);
        self.read(|table| {
            table
                .live()
                .find(is_it)
                .cloned()
                .or_else(|| table.lookup(config_hash).live())
        })
    }

    /// All live pods, in no order.
    pub fn all(&self) -> Vec<Arc<NodePod>> {
        self.read(|table| table.live().cloned().collect())
    }

    /// How many pods are live.
    pub fn count(&self) -> usize {
        self.read(Table::len)
    }

    /// The age of this knowledge; [`Duration::MAX`] until the first complete list.
    pub fn staleness(&self, now: Instant) -> Duration {
        self.read(|table| table.staleness(now))
    }

    /// A number that grows with each change that a lookup can see, and with the first list.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    fn read<R>(&self, look: impl FnOnce(&Table<NodePod, NoIndex>) -> R) -> R {
        look(&self.table.read().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
#[path = "node_pods/tests.rs"]
mod tests;
