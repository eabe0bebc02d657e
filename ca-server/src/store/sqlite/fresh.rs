//! What was just committed, on its way from the writer past the database: entries to the
//! indexer, leaf hashes to the tree.
//!
//! Reading what was just written costs half as much as writing it did. What does not fit
//! here (the reader is behind, or the process was restarted) is read from the log.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

/// A run without a gap, of so many at most.
#[derive(Debug)]
pub(super) struct Fresh<T> {
    run: Mutex<Run<T>>,
    capacity: usize,
}

/// What stands from `first` upwards.
#[derive(Debug)]
struct Run<T> {
    first: u64,
    items: VecDeque<T>,
}

// === impl Fresh ===

impl<T> Fresh<T> {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            run: Mutex::new(Run {
                first: 0,
                items: VecDeque::new(),
            }),
            capacity,
        }
    }

    /// Adds what was committed at `first`, if it follows on what is here and there is room.
    pub(super) fn offer(&self, first: u64, items: impl ExactSizeIterator<Item = T>) {
        let mut run = self.run.lock().unwrap_or_else(PoisonError::into_inner);
        if run.items.is_empty() {
            run.first = first;
        }
        let follows = run.first + run.items.len() as u64 == first;
        if follows && run.items.len() + items.len() <= self.capacity {
            run.items.extend(items);
        }
    }

    /// Takes up to `limit` from `from` upwards and forgets what stands before. Nothing, and
    /// where what is here begins, if that is later.
    pub(super) fn take(&self, from: u64, limit: usize) -> Result<Vec<T>, u64> {
        let mut run = self.run.lock().unwrap_or_else(PoisonError::into_inner);
        if run.first > from && !run.items.is_empty() {
            return Err(run.first);
        }
        let before = usize::try_from(from - run.first.min(from)).unwrap_or(usize::MAX);
        let before = before.min(run.items.len());
        run.items.drain(..before);
        let count = limit.min(run.items.len());
        let taken = run.items.drain(..count).collect();
        run.first += (before + count) as u64;
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_is_kept_and_what_does_not_fit_is_left_to_the_log() {
        let fresh = Fresh::new(4);
        fresh.offer(10, [10, 11].into_iter());
        fresh.offer(13, [13].into_iter());
        fresh.offer(12, [12, 13].into_iter());
        fresh.offer(14, [14].into_iter());
        assert_eq!(fresh.take(8, 9), Err(10));
        assert_eq!(fresh.take(11, 2), Ok(vec![11, 12]));
        assert_eq!(fresh.take(13, 9), Ok(vec![13]));
        assert_eq!(fresh.take(14, 9), Ok(vec![]));
        fresh.offer(20, [20].into_iter());
        assert_eq!(fresh.take(14, 9), Err(20));
        assert_eq!(fresh.take(21, 9), Ok(vec![]), "what is behind is forgotten");
    }
}
