//! How many connections each caller has.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

/// Counts connections by principal.
#[derive(Debug, Clone)]
pub(super) struct Peers {
    limit: usize,
    open: Arc<Mutex<HashMap<Arc<str>, usize>>>,
}

/// One connection's place; given back when dropped.
#[derive(Debug)]
pub(super) struct PeerSlot {
    peers: Peers,
    principal: Arc<str>,
}

impl Peers {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            open: Arc::default(),
        }
    }

    /// `None` if this caller has as many as it may.
    pub(super) fn enter(&self, principal: &Arc<str>) -> Option<PeerSlot> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(Arc::clone(principal)).or_default();
        if *count >= self.limit {
            return None;
        }
        *count += 1;
        drop(open);
        Some(PeerSlot {
            peers: self.clone(),
            principal: Arc::clone(principal),
        })
    }
}

impl Drop for PeerSlot {
    fn drop(&mut self) {
        let mut open = self
            .peers
            .open
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.principal) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.principal);
            }
        }
    }
}
