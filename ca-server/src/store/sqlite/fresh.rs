//! Entries on their way from the writer to the indexer, past the database.
//!
//! Reading what was just written costs half as much as writing it did. What does not
//! fit here (the indexer is behind, or the process was restarted) it reads from the log.

use std::sync::{Mutex, PoisonError};

use crate::store::queue::Append;

/// Entries kept at most: some 10 MB.
const CAPACITY: usize = 8192;

/// A run of committed entries without a gap.
#[derive(Debug, Default)]
pub(super) struct Fresh(Mutex<FreshRun>);

/// Entries from `first` upwards.
#[derive(Debug, Default)]
pub(super) struct FreshRun {
    pub(super) first: u64,
    pub(super) entries: Vec<Vec<u8>>,
}

// === impl Fresh ===

impl Fresh {
    /// Adds the entries of an append that was committed at `first`, if they follow on
    /// what is here and there is room.
    pub(super) fn offer(&self, first: u64, append: &mut Append) {
        let mut run = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if run.entries.is_empty() {
            run.first = first;
        }
        let follows = run.first + run.entries.len() as u64 == first;
        if follows && run.entries.len() + append.entries.len() <= CAPACITY {
            run.entries.extend(
                append
                    .entries
                    .iter_mut()
                    .map(|entry| std::mem::take(&mut entry.bytes)),
            );
        }
    }

    /// Takes all there is.
    pub(super) fn take(&self) -> FreshRun {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
