//! One kind of object: the live ones by UID, the UIDs seen to go, and the age of all that.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Event, Lookup, Remember};
use crate::intern::Interner;
use crate::records::{AccountRecord, NodeRecord, PodRecord, Record};

pub(crate) struct Table<T, I> {
    live: HashMap<Arc<str>, Entry<T>>,
    index: I,
    gone: GoneUids,
    interner: Interner,
    /// Counts the lists that were begun. An entry carries the number of the last list that was
    /// under way, or had ended, when it was seen.
    generation: u64,
    /// When the watch last showed that it is alive; `None` until the first complete list.
    fresh: Option<Instant>,
    /// When the list that is under way was begun: it shows the state of that time.
    list_began: Option<Instant>,
}

struct Entry<T> {
    record: Arc<T>,
    generation: u64,
}

impl<T: Record, I: Index<T>> Table<T, I> {
    pub(crate) fn new(remember: Remember) -> Self {
        Self {
            live: HashMap::new(),
            index: I::default(),
            gone: GoneUids::new(remember),
            interner: Interner::default(),
            generation: 0,
            fresh: None,
            list_began: None,
        }
    }

    pub(crate) fn lookup(&self, uid: &str) -> Lookup<Arc<T>> {
        match self.live.get(uid) {
            Some(entry) => Lookup::Live(entry.record.clone()),
            None if self.gone.contains(uid) => Lookup::Gone,
            None => Lookup::Unknown,
        }
    }

    /// The live records, in no order.
    pub(crate) fn live(&self) -> impl Iterator<Item = &Arc<T>> {
        self.live.values().map(|entry| &entry.record)
    }

    pub(crate) fn index(&self) -> &I {
        &self.index
    }

    pub(crate) fn len(&self) -> usize {
        self.live.len()
    }

    pub(crate) fn staleness(&self, now: Instant) -> Duration {
        self.fresh
            .map_or(Duration::MAX, |at| now.saturating_duration_since(at))
    }

    /// Takes an event in; whether a lookup can see the difference.
    pub(crate) fn apply(&mut self, event: Event<T>, now: Instant) -> bool {
        self.gone.forget_old(now);
        match event {
            Event::ListStarted => {
                self.generation += 1;
                self.list_began = Some(now);
                false
            }
            Event::Page(records) => {
                let mut changed = false;
                for record in records {
                    changed |= self.upsert(record, now);
                }
                changed
            }
            Event::ListFinished => {
                // Without a beginning there was no list, and nothing may go for being absent from it.
                let Some(began) = self.list_began.take() else {
                    return false;
                };
                self.fresh = self.fresh.max(Some(began));
                self.drop_unlisted(now)
            }
            Event::Applied(record) => {
                self.heard(now);
                self.upsert(record, now)
            }
            Event::Deleted(record) => {
                self.heard(now);
                self.bury(record.uid(), now)
            }
            Event::Bookmark => {
                self.heard(now);
                false
            }
        }
    }

    /// A record that did not come from the watch. During a list it counts as listed: the object
    /// may be younger than the snapshot that the list shows.
    pub(crate) fn insert_fetched(&mut self, record: T, now: Instant) -> (Lookup<Arc<T>>, bool) {
        let uid = record.uid().clone();
        let changed = self.upsert(record, now);
        (self.lookup(&uid), changed)
    }

    fn heard(&mut self, now: Instant) {
        if self.fresh.is_some() {
            self.fresh = Some(now);
        }
    }

    fn upsert(&mut self, mut record: T, now: Instant) -> bool {
        if self.gone.contains(record.uid()) {
            // A list or an event that is older than what we know.
            return false;
        }
        if record.is_over() {
            return self.bury(record.uid(), now);
        }
        if let Some(known) = self.live.get_mut(record.uid()) {
            known.generation = self.generation;
            if *known.record == record {
                return false;
            }
        }
        record.intern(&mut self.interner);
        let record = Arc::new(record);
        let entry = Entry {
            record: record.clone(),
            generation: self.generation,
        };
        if let Some(old) = self.live.insert(record.uid().clone(), entry) {
            self.index.remove(&old.record);
        }
        self.index.insert(&record);
        true
    }

    /// The UID is gone for good, whether or not it was known alive.
    fn bury(&mut self, uid: &Arc<str>, now: Instant) -> bool {
        let new = self.gone.insert(uid, now);
        if let Some(entry) = self.live.remove(uid) {
            self.index.remove(&entry.record);
            return true;
        }
        new
    }

    fn drop_unlisted(&mut self, now: Instant) -> bool {
        let absent: Vec<Arc<str>> = self
            .live
            .iter()
            .filter(|(_, entry)| entry.generation < self.generation)
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in &absent {
            self.bury(uid, now);
        }
        !absent.is_empty()
    }
}

// === UIDs that went ===

/// Bounded by time and count, oldest first out.
struct GoneUids {
    remember: Remember,
    known: HashSet<Arc<str>>,
    order: VecDeque<(Arc<str>, Instant)>,
}

impl GoneUids {
    fn new(remember: Remember) -> Self {
        Self {
            remember,
            known: HashSet::new(),
            order: VecDeque::new(),
        }
    }

    fn contains(&self, uid: &str) -> bool {
        self.known.contains(uid)
    }

    fn insert(&mut self, uid: &Arc<str>, now: Instant) -> bool {
        if self.remember.count == 0 || !self.known.insert(uid.clone()) {
            return false;
        }
        if self.order.len() >= self.remember.count {
            self.forget_first();
        }
        self.order.push_back((uid.clone(), now));
        true
    }

    fn forget_old(&mut self, now: Instant) {
        while let Some((_, at)) = self.order.front()
            && now.saturating_duration_since(*at) > self.remember.duration
        {
            self.forget_first();
        }
    }

    fn forget_first(&mut self) {
        if let Some((uid, _)) = self.order.pop_front() {
            self.known.remove(&uid);
        }
    }
}

// === second ways to find a live record ===

pub(crate) trait Index<T>: Default {
    fn insert(&mut self, record: &Arc<T>);
    fn remove(&mut self, record: &T);
}

/// Pods by the node that they are bound to. A map, since one node may hold very many.
#[derive(Default)]
pub(crate) struct ByNode(HashMap<Arc<str>, HashMap<Arc<str>, Arc<PodRecord>>>);

impl ByNode {
    pub(crate) fn on_node(&self, node: &str) -> Vec<Arc<PodRecord>> {
        self.0
            .get(node)
            .map(|pods| pods.values().cloned().collect())
            .unwrap_or_default()
    }

    pub(crate) fn find_on_node(
        &self,
        node: &str,
        is_it: impl Fn(&PodRecord) -> bool,
    ) -> Option<Arc<PodRecord>> {
        self.0.get(node)?.values().find(|pod| is_it(pod)).cloned()
    }
}

impl Index<PodRecord> for ByNode {
    fn insert(&mut self, pod: &Arc<PodRecord>) {
        if let Some(node) = &pod.node {
            self.0
                .entry(node.clone())
                .or_default()
                .insert(pod.uid.clone(), pod.clone());
        }
    }

    fn remove(&mut self, pod: &PodRecord) {
        let Some(node) = &pod.node else { return };
        if let Some(pods) = self.0.get_mut(node) {
            pods.remove(&pod.uid);
            if pods.is_empty() {
                self.0.remove(node);
            }
        }
    }
}

/// Objects by namespace and name. The name is unique in the API, but for a moment two UIDs can be
/// live here under one name (a request by name overtook the watch): the last one learnt is the
/// answer, and the other one comes back if it goes first.
pub(crate) struct ByName<T>(HashMap<FullName, Vec<Arc<T>>>);

/// Namespace, empty where there is none, and name.
type FullName = (Arc<str>, Arc<str>);

impl<T> Default for ByName<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T: NamedRecord> ByName<T> {
    pub(crate) fn named(&self, namespace: &str, name: &str) -> Option<Arc<T>> {
        self.0
            .get(&(namespace.into(), name.into()))?
            .last()
            .cloned()
    }
}

impl<T: NamedRecord> Index<T> for ByName<T> {
    fn insert(&mut self, record: &Arc<T>) {
        self.0.entry(record.key()).or_default().push(record.clone());
    }

    fn remove(&mut self, record: &T) {
        let key = record.key();
        if let Some(records) = self.0.get_mut(&key) {
            records.retain(|known| known.uid() != record.uid());
            if records.is_empty() {
                self.0.remove(&key);
            }
        }
    }
}

pub(crate) trait NamedRecord: Record {
    fn key(&self) -> FullName;
}

impl NamedRecord for AccountRecord {
    fn key(&self) -> FullName {
        (self.namespace.clone(), self.name.clone())
    }
}

impl NamedRecord for NodeRecord {
    fn key(&self) -> FullName {
        ("".into(), self.name.clone())
    }
}
