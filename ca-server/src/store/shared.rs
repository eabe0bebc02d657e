//! What the writer, the indexer and the store's face tell each other.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::sync::watch;

use super::{StoreHealth, StoreStats};

#[derive(Debug)]
pub(super) struct Shared {
    /// Appends that were announced and not yet answered.
    pub(super) announced: Arc<AtomicUsize>,
    /// Entries on their way to the writer.
    pub(super) queued: AtomicUsize,
    /// Size of the log; changes after the commit and before its answers.
    pub(super) committed: watch::Sender<u64>,
    /// Entries that the index covers.
    pub(super) indexed: watch::Sender<u64>,
    pub(super) health: watch::Sender<StoreHealth>,
    counters: Counters,
}

#[derive(Debug, Default)]
struct Counters {
    commits: AtomicU64,
    failed_commits: AtomicU64,
    entries: AtomicU64,
    commit_micros: AtomicU64,
    waits: AtomicU64,
    wait_micros: AtomicU64,
}

// === impl Shared ===

impl Shared {
    pub(super) fn new(size: u64) -> Self {
        Self {
            announced: Arc::default(),
            queued: AtomicUsize::new(0),
            committed: watch::Sender::new(size),
            indexed: watch::Sender::new(0),
            health: watch::Sender::new(StoreHealth::Ready),
            counters: Counters::default(),
        }
    }

    /// The log has this many entries at least: what several tasks see never goes back.
    pub(super) fn grown_to(&self, size: u64) {
        self.committed.send_if_modified(|known| {
            let grown = size > *known;
            if grown {
                *known = size;
            }
            grown
        });
    }

    pub(super) fn count_commit(&self, entries: usize, took: Duration) {
        self.counters.commits.fetch_add(1, Ordering::Relaxed);
        self.counters
            .entries
            .fetch_add(entries as u64, Ordering::Relaxed);
        self.counters
            .commit_micros
            .fetch_add(micros(took), Ordering::Relaxed);
    }

    pub(super) fn count_failure(&self) {
        self.counters.failed_commits.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_wait(&self) {
        self.counters.waits.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_waited(&self, took: Duration) {
        self.counters
            .wait_micros
            .fetch_add(micros(took), Ordering::Relaxed);
    }

    pub(super) fn set_health(&self, health: StoreHealth) {
        self.health.send_if_modified(|current| {
            let changed = *current != health;
            if changed {
                *current = health;
            }
            changed
        });
    }

    pub(super) fn stats(&self) -> StoreStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        StoreStats {
            commits: read(&self.counters.commits),
            failed_commits: read(&self.counters.failed_commits),
            entries: read(&self.counters.entries),
            commit_time: Duration::from_micros(read(&self.counters.commit_micros)),
            waits: read(&self.counters.waits),
            wait_time: Duration::from_micros(read(&self.counters.wait_micros)),
            queued: self.queued.load(Ordering::Relaxed),
            size: *self.committed.borrow(),
            indexed: *self.indexed.borrow(),
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
