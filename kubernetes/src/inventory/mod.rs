//! What is alive in a cluster, by UID, and how old that knowledge is.
//!
//! The inventory has no clock and no connection: watches (or a test) feed it events together with
//! the time at which they came.

pub(crate) mod table;

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use self::table::{ByName, ByNode, Index, Table};
use crate::records::{AccountRecord, NodeRecord, PodRecord, Record};

/// The answer to "is this UID alive?".
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lookup<T> {
    /// It is.
    Live(T),
    /// It was, or it exists and has finished. There is no way back: a UID is used once.
    Gone,
    /// Never seen, or seen to go longer ago than is remembered.
    Unknown,
}

impl<T> Lookup<T> {
    /// The record, if it is alive.
    pub fn live(self) -> Option<T> {
        match self {
            Self::Live(record) => Some(record),
            Self::Gone | Self::Unknown => None,
        }
    }
}

/// What a watch reports.
#[derive(Debug, Clone)]
pub enum Event<T> {
    /// A list begins: what was known before and is in none of its pages is gone at its end.
    ListStarted,
    /// A part of a list.
    Page(Vec<T>),
    /// The list is complete.
    ListFinished,
    /// An object was made or changed.
    Applied(T),
    /// An object was deleted; its last state.
    Deleted(T),
    /// The watch is alive and there was nothing to say.
    Bookmark,
}

/// One of the three watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Pods
    Pods,
    /// Service accounts
    Accounts,
    /// Nodes
    Nodes,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Pods, Self::Accounts, Self::Nodes];

    /// The resource's name in paths, metrics and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pods => "pods",
            Self::Accounts => "serviceaccounts",
            Self::Nodes => "nodes",
        }
    }
}

/// How long and how many UIDs are remembered after they went.
#[derive(Debug, Clone, Copy)]
pub struct Remember {
    /// The longest lifetime of a token: until then a token of something gone may be shown.
    pub duration: Duration,
    /// At most so many of each kind; the oldest is forgotten first, and then costs one request by
    /// name when it is asked about.
    pub count: usize,
}

impl Default for Remember {
    fn default() -> Self {
        Self {
            duration: Duration::from_hours(24),
            count: 100_000,
        }
    }
}

/// The live pods, accounts and nodes of one cluster.
pub struct Inventory {
    pods: RwLock<Table<PodRecord, ByNode>>,
    accounts: RwLock<Table<AccountRecord, ByName<AccountRecord>>>,
    nodes: RwLock<Table<NodeRecord, ByName<NodeRecord>>>,
    revision: watch::Sender<u64>,
}

impl Inventory {
    /// An empty inventory, infinitely stale.
    pub fn new(remember: Remember) -> Self {
        Self {
            pods: RwLock::new(Table::new(remember)),
            accounts: RwLock::new(Table::new(remember)),
            nodes: RwLock::new(Table::new(remember)),
            revision: watch::Sender::new(0),
        }
    }

    /// Takes in what the watch of pods reported at `now`.
    pub fn apply_pod(&self, event: Event<PodRecord>, now: Instant) {
        let changed = write(&self.pods).apply(event, now);
        self.changed(changed);
    }

    /// Takes in what the watch of service accounts reported at `now`.
    pub fn apply_account(&self, event: Event<AccountRecord>, now: Instant) {
        let changed = write(&self.accounts).apply(event, now);
        self.changed(changed);
    }

    /// Takes in what the watch of nodes reported at `now`.
    pub fn apply_node(&self, event: Event<NodeRecord>, now: Instant) {
        let changed = write(&self.nodes).apply(event, now);
        self.changed(changed);
    }

    /// Takes in a pod that a request by name returned. It tells nothing about the age of the
    /// watch, and does not bring back what is known to be gone: what the inventory says of that
    /// UID afterwards is returned.
    pub fn insert_fetched_pod(&self, pod: PodRecord, now: Instant) -> Lookup<Arc<PodRecord>> {
        let (lookup, changed) = write(&self.pods).insert_fetched(pod, now);
        self.changed(changed);
        lookup
    }

    /// As [`Self::insert_fetched_pod`], for a service account.
    pub fn insert_fetched_account(
        &self,
        account: AccountRecord,
        now: Instant,
    ) -> Lookup<Arc<AccountRecord>> {
        let (lookup, changed) = write(&self.accounts).insert_fetched(account, now);
        self.changed(changed);
        lookup
    }

    /// As [`Self::insert_fetched_pod`], for a node.
    pub fn insert_fetched_node(&self, node: NodeRecord, now: Instant) -> Lookup<Arc<NodeRecord>> {
        let (lookup, changed) = write(&self.nodes).insert_fetched(node, now);
        self.changed(changed);
        lookup
    }

    /// The pod with that UID. It is live until its object is gone or its phase is `Succeeded` or
    /// `Failed`; a deletion timestamp alone takes nothing.
    pub fn pod(&self, uid: &str) -> Lookup<Arc<PodRecord>> {
        read(&self.pods).lookup(uid)
    }

    /// The live pods whose `spec.nodeName` is `node`, in no order.
    pub fn pods_on_node(&self, node: &str) -> Vec<Arc<PodRecord>> {
        read(&self.pods).index().on_node(node)
    }

    /// The live mirror pod on `node` of the static pod with that configuration hash.
    pub fn mirror_on_node(&self, node: &str, config_hash: &str) -> Option<Arc<PodRecord>> {
        if config_hash.is_empty() {
            return None;
        }
        let is_it = |pod: &PodRecord| pod.mirror.as_deref() == Some(config_hash);
        read(&self.pods).index().find_on_node(node, is_it)
    }

    /// The service account with that UID.
    pub fn account_by_uid(&self, uid: &str) -> Lookup<Arc<AccountRecord>> {
        read(&self.accounts).lookup(uid)
    }

    /// The service account of that name.
    pub fn account(&self, namespace: &str, name: &str) -> Option<Arc<AccountRecord>> {
        read(&self.accounts).index().named(namespace, name)
    }

    /// The node with that UID.
    pub fn node_by_uid(&self, uid: &str) -> Lookup<Arc<NodeRecord>> {
        read(&self.nodes).lookup(uid)
    }

    /// The node of that name.
    pub fn node(&self, name: &str) -> Option<Arc<NodeRecord>> {
        read(&self.nodes).index().named("", name)
    }

    /// The age of the oldest of the three watches' knowledge: each counts from its own last event,
    /// bookmark or complete list. [`Duration::MAX`] until each was listed once.
    pub fn staleness(&self, now: Instant) -> Duration {
        Kind::ALL
            .into_iter()
            .map(|kind| self.staleness_of(kind, now))
            .max()
            .unwrap_or(Duration::MAX)
    }

    /// As [`Self::staleness`], of one watch.
    pub fn staleness_of(&self, kind: Kind, now: Instant) -> Duration {
        match kind {
            Kind::Pods => read(&self.pods).staleness(now),
            Kind::Accounts => read(&self.accounts).staleness(now),
            Kind::Nodes => read(&self.nodes).staleness(now),
        }
    }

    /// How many of a kind are live.
    pub fn count(&self, kind: Kind) -> usize {
        match kind {
            Kind::Pods => read(&self.pods).len(),
            Kind::Accounts => read(&self.accounts).len(),
            Kind::Nodes => read(&self.nodes).len(),
        }
    }

    /// A number that grows with each change that a lookup can see; events that only say that all is
    /// well do not count.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    fn changed(&self, changed: bool) {
        if changed {
            self.revision.send_modify(|revision| *revision += 1);
        }
    }
}

impl Default for Inventory {
    fn default() -> Self {
        Self::new(Remember::default())
    }
}

/// A whole list in one go, for what is fed by hand.
impl Inventory {
    /// These pods, and no others, exist.
    pub fn load_pods(&self, pods: Vec<PodRecord>, now: Instant) {
        for event in [Event::ListStarted, Event::Page(pods), Event::ListFinished] {
            self.apply_pod(event, now);
        }
    }

    /// These service accounts, and no others, exist.
    pub fn load_accounts(&self, accounts: Vec<AccountRecord>, now: Instant) {
        for event in [
            Event::ListStarted,
            Event::Page(accounts),
            Event::ListFinished,
        ] {
            self.apply_account(event, now);
        }
    }

    /// These nodes, and no others, exist.
    pub fn load_nodes(&self, nodes: Vec<NodeRecord>, now: Instant) {
        for event in [Event::ListStarted, Event::Page(nodes), Event::ListFinished] {
            self.apply_node(event, now);
        }
    }
}

// A panic while a lock is held is a bug, but no reason to stop answering: every change to a table
// leaves it consistent at each step that can panic (allocation).
fn read<T: Record, I: Index<T>>(table: &RwLock<Table<T, I>>) -> RwLockReadGuard<'_, Table<T, I>> {
    table.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T: Record, I: Index<T>>(table: &RwLock<Table<T, I>>) -> RwLockWriteGuard<'_, Table<T, I>> {
    table.write().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
