//! How many connections each caller has.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
};

/// Counts connections by whom they are of: a principal, or a pid before there is one.
#[derive(Debug, Clone)]
pub(super) struct Peers<K> {
    limit: usize,
    open: Arc<Mutex<HashMap<K, usize>>>,
}

/// One connection's place; given back when dropped.
#[derive(Debug)]
pub(super) struct PeerSlot<K: Eq + Hash> {
    open: Arc<Mutex<HashMap<K, usize>>>,
    of: K,
}

impl<K: Eq + Hash + Clone> Peers<K> {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            open: Arc::default(),
        }
    }

    /// `None` if this one has as many as it may.
    pub(super) fn enter(&self, of: &K) -> Option<PeerSlot<K>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(of.clone()).or_default();
        if *count >= self.limit {
            return None;
        }
        *count += 1;
        drop(open);
        Some(PeerSlot {
            open: Arc::clone(&self.open),
            of: of.clone(),
        })
    }
}

impl<K: Eq + Hash> Drop for PeerSlot<K> {
    fn drop(&mut self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.of) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.of);
            }
        }
    }
}
