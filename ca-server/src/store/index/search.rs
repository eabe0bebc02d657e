//! Answers questions: the index narrows down, the entries themselves decide.

use async_trait::async_trait;

use super::{epoch, run::EPOCH};
use crate::store::{Filter, IndexRow, Query, StoreError, StoredEntry};

/// Entries that one statement reads when the log itself is searched: a longer read
/// would hold old versions of the database for too long, and much memory.
const SCAN: usize = 256;

/// The log and its index as of one moment.
#[async_trait]
pub(in crate::store) trait Index: Send {
    /// The newest `limit` entries below `before`, none below `floor`, newest first.
    async fn below(
        &mut self,
        before: u64,
        floor: u64,
        limit: usize,
    ) -> Result<Vec<StoredEntry>, StoreError>;

    /// The entries at these indexes, in their order.
    async fn load(&mut self, indexes: &[u64]) -> Result<Vec<StoredEntry>, StoreError>;

    /// The epochs up to `last` whose bounds don't rule them out, the newest first.
    async fn epochs(&mut self, last: i64, filter: &Filter) -> Result<Vec<i64>, StoreError>;

    /// The newest `limit` indexes below `before` that the index can't rule out: one seek
    /// per epoch and subject (or key), the newest epoch first.
    async fn candidates(
        &mut self,
        before: u64,
        filter: &Filter,
        limit: usize,
    ) -> Result<Vec<u64>, StoreError>;
}

/// How far log and index reach.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) struct Extent {
    /// Entries of the log. Read before `indexed`.
    pub(in crate::store) size: u64,
    /// See [`crate::store::TreeState::minimum`].
    pub(in crate::store) minimum: u64,
    /// Entries that the index covers.
    pub(in crate::store) indexed: u64,
}

/// One page, newest first: first what lies between the index's reach and the log's size,
/// then through the index.
pub(in crate::store) async fn list(
    query: &Query,
    extent: Extent,
    index: &mut dyn Index,
) -> Result<Vec<StoredEntry>, StoreError> {
    let mut page = Page::new(query, extent.size);
    page.scan(extent.indexed, index).await?;
    if page.is_open() && extent.indexed > 0 {
        if query.filter.spki_sha256.is_some() || query.filter.asks_for_subject() {
            page.seek(index).await?;
        } else {
            page.scan_epochs(index).await?;
        }
        // What retention left there is in no epoch, and records no certificate.
        if !query.filter.asks_for_certificates() {
            page.before = page.before.min(extent.minimum);
            page.scan(0, index).await?;
        }
    }
    Ok(page.found)
}

/// The page that an answer fills.
struct Page<'q> {
    query: &'q Query,
    /// Only entries below this index are still to be looked at.
    before: u64,
    found: Vec<StoredEntry>,
}

// === impl Page ===

impl<'q> Page<'q> {
    fn new(query: &'q Query, size: u64) -> Self {
        Self {
            query,
            before: query.before.map_or(size, |index| index.0.min(size)),
            found: Vec::new(),
        }
    }

    fn missing(&self) -> usize {
        self.query.page().saturating_sub(self.found.len())
    }

    fn is_open(&self) -> bool {
        self.missing() > 0
    }

    /// Takes the entry if it passes the filter and there is room.
    fn offer(&mut self, entry: StoredEntry) {
        if self.is_open()
            && entry.index.0 < self.before
            && self.query.filter.matches(&IndexRow::of(&entry.bytes))
        {
            self.found.push(entry);
        }
    }

    /// Reads the log downwards to `floor`.
    async fn scan(&mut self, floor: u64, index: &mut dyn Index) -> Result<(), StoreError> {
        while self.is_open() && self.before > floor {
            let entries = index.below(self.before, floor, SCAN).await?;
            let rest = entries.get(SCAN - 1).map_or(floor, |last| last.index.0);
            for entry in entries {
                self.offer(entry);
            }
            self.before = rest;
        }
        Ok(())
    }

    /// Reads the log downwards, but leaves out the epochs whose bounds rule them out.
    async fn scan_epochs(&mut self, index: &mut dyn Index) -> Result<(), StoreError> {
        for epoch in index.epochs(epoch(self.before), &self.query.filter).await? {
            let first = epoch.unsigned_abs() * EPOCH;
            self.before = self.before.min(first + EPOCH);
            self.scan(first, index).await?;
            if !self.is_open() {
                break;
            }
        }
        Ok(())
    }

    /// Finds candidates in the index, and lets their entries decide.
    async fn seek(&mut self, index: &mut dyn Index) -> Result<(), StoreError> {
        while self.is_open() {
            let wanted = self.missing();
            let candidates = index
                .candidates(self.before, &self.query.filter, wanted)
                .await?;
            for entry in index.load(&candidates).await? {
                self.offer(entry);
            }
            match candidates.last() {
                Some(last) if candidates.len() == wanted => self.before = *last,
                _ => break,
            }
        }
        Ok(())
    }
}
