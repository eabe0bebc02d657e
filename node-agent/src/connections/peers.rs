//! How many connections each caller has.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
};

/// By whom connections are of: how many, and what they share.
type Open<K, S> = Arc<Mutex<HashMap<K, (usize, Arc<S>)>>>;

/// Counts connections by whom they are of: a principal, or a pid before there is one.
#[derive(Debug)]
pub(super) struct Peers<K, S = ()> {
    limit: usize,
    open: Open<K, S>,
}

/// One connection's place; given back when dropped.
#[derive(Debug)]
pub(super) struct PeerSlot<K: Eq + Hash, S = ()> {
    open: Open<K, S>,
    of: K,
    shared: Arc<S>,
}

impl<K, S> Clone for Peers<K, S> {
    fn clone(&self) -> Self {
        Self {
            limit: self.limit,
            open: Arc::clone(&self.open),
        }
    }
}

impl<K: Eq + Hash + Clone, S> Peers<K, S> {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            open: Arc::default(),
        }
    }

    /// `None` if this one has as many as it may. `shared` makes what all of its connections
    /// share.
    pub(super) fn enter(&self, of: &K, shared: impl FnOnce() -> S) -> Option<PeerSlot<K, S>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let (count, shared) = open
            .entry(of.clone())
            .or_insert_with(|| (0, Arc::new(shared())));
        if *count >= self.limit {
            return None;
        }
        *count += 1;
        let shared = Arc::clone(shared);
        drop(open);
        Some(PeerSlot {
            open: Arc::clone(&self.open),
            of: of.clone(),
            shared,
        })
    }
}

impl<K: Eq + Hash, S> PeerSlot<K, S> {
    /// What all connections of this one share.
    pub(super) fn shared(&self) -> &Arc<S> {
        &self.shared
    }
}

impl<K: Eq + Hash, S> Drop for PeerSlot<K, S> {
    fn drop(&mut self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((count, _)) = open.get_mut(&self.of) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.of);
            }
        }
    }
}
