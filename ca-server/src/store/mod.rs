//! The store: the log of everything that was issued, and the index over it.
//!
//! A store takes encoded log entries, numbers them densely from 0 and answers when they
//! are durable: on the disk, not in the page cache. It knows nothing of gRPC, of who was
//! authenticated, or of Kubernetes. What it can be asked about an entry is derived from
//! the entry's own bytes ([`IndexRow::of`]), so an index can always be made again.

mod audit;
mod error;
mod facts;
mod index;
mod nodes;
mod postgres;
mod query;
mod queue;
mod row;
mod shared;
mod sqlite;
mod tree;
mod writer;

#[cfg(test)]
pub(crate) mod contract;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use citadel_ledger::{Hash, Tile, leaf_hash};

pub use audit::{AuditedEntry, IndexedEpoch};
pub use error::StoreError;
pub use index::{IndexCheck, Mismatch};
pub use nodes::{ExternalNode, JoinToken, NodeChange, UsedBy};
pub use postgres::{PostgresOptions, PostgresStore, SslMode, UrlError};
pub use query::{Filter, MAX_PAGE, Query, count};
pub use queue::BatchOptions;
pub use row::{CertificateRow, IndexRow, SubjectRow};
pub use sqlite::{SqliteOptions, SqliteStore};
pub use tree::{Growth, TreeState};

/// Bytes of one entry at most: the length prefix of an entry bundle is a `uint16`.
pub const MAX_ENTRY_BYTES: usize = 65_535;

/// Entries of one append at most.
pub const MAX_APPEND: usize = 512;

/// Bytes of a serial at most (RFC 5280, section 4.1.2.2).
pub const MAX_SERIAL_BYTES: usize = 20;

/// An append-only log with an index over it.
#[async_trait]
pub trait Store: Send + Sync {
    /// Appends the entries, all or none, one after the other in the log, and resolves
    /// when they are durable. Appends that wait together share one commit.
    ///
    /// Takes at most [`MAX_APPEND`] entries of at most [`MAX_ENTRY_BYTES`] each. On any
    /// error the caller must take nothing as recorded. A dropped future withdraws the
    /// append if its commit has not begun.
    async fn append(&self, entries: Vec<NewEntry>) -> Result<Vec<LogIndex>, StoreError>;

    /// Says that a caller will append within a few milliseconds, so that a commit may
    /// wait for it. Take it when nothing slow is left to do (after authentication),
    /// keep it until the append is answered, drop it in any case.
    fn announce(&self) -> Announcement;

    /// The entry that records the certificate with this serial. Exact: every append
    /// that was answered before is seen.
    async fn issued_by_serial(&self, serial: &[u8]) -> Result<Option<StoredEntry>, StoreError>;

    /// One page of the entries that pass the query's filter, newest first, complete as
    /// of the moment it was asked.
    async fn list(&self, query: &Query) -> Result<Vec<StoredEntry>, StoreError>;

    /// Up to `limit` (at most [`MAX_PAGE`]) entries from this index upwards, without a gap.
    async fn read(&self, from: LogIndex, limit: usize) -> Result<Vec<StoredEntry>, StoreError>;

    /// As [`Self::read`], with what the store keeps beside the entries.
    async fn audit(&self, from: LogIndex, limit: usize) -> Result<Vec<AuditedEntry>, StoreError>;

    /// What the index says of the entries of an epoch (65,536 from `epoch`·65,536 on);
    /// `None` where there is no index.
    async fn indexed_epoch(&self, epoch: i64) -> Result<Option<IndexedEpoch>, StoreError>;

    /// What is wrong with the index beside the epochs that it covers: rows of other epochs,
    /// subjects of nobody. The end of a sentence that begins with an entry.
    async fn stray_index_row(&self) -> Result<Option<String>, StoreError>;

    /// What the index's columns hold of a subject.
    fn indexed_subject(&self, subject: SubjectRow) -> SubjectRow {
        subject
    }

    /// Number of entries in the log.
    async fn size(&self) -> Result<u64, StoreError>;

    /// Makes this the active issuer key, if the store has none or has `replaces`; a
    /// second time is no change. Any other key is [`StoreError::WrongIssuer`].
    async fn bind_issuer(
        &self,
        issuer_key_id: &[u8],
        replaces: Option<&[u8]>,
    ) -> Result<(), StoreError>;

    /// Drops the index and derives it anew from the log; resolves when it has caught up
    /// with what the log held at the call. Queries stay complete meanwhile, but slow.
    async fn reindex(&self) -> Result<(), StoreError>;

    /// Names this log: 16 random bytes, made with it.
    async fn log_id(&self) -> Result<Vec<u8>, StoreError>;

    /// The leaf hashes of up to `limit` entries from this index upwards, without a gap.
    async fn leaves(&self, from: LogIndex, limit: usize) -> Result<Vec<Hash>, StoreError> {
        Ok(leaves_of(
            from,
            &self.read(from, limit.min(MAX_PAGE)).await?,
        ))
    }

    /// How far the tree reaches.
    async fn tree(&self) -> Result<TreeState, StoreError>;

    /// The contents of these tiles, in their order. One that the tree does not have is
    /// [`StoreError::MissingTile`].
    async fn tiles(&self, tiles: &[Tile]) -> Result<Vec<Vec<u8>>, StoreError>;

    /// Lets the tree grow by one step, durably, all of it or nothing. Another one was
    /// faster where it is [`StoreError::TreeMoved`].
    async fn integrate(&self, growth: Growth) -> Result<(), StoreError>;

    /// Raises the minimum index to this one, and takes the records of certificates below it
    /// away, with their serials and their rows of the index: in small steps, between which
    /// others append. Goes on with what an interrupted call left. Entries of other kinds and
    /// all hashes stay. Returns how many entries went.
    ///
    /// It must be a multiple of 256 that the tree covers, and below the log's size.
    async fn prune(&self, minimum: u64) -> Result<u64, StoreError>;

    /// Takes the task of growing the tree for this time, or goes on having it; false while
    /// another holder has it. It saves work: what keeps steps apart is [`Self::integrate`].
    async fn lease(&self, holder: &str, time: Duration) -> Result<bool, StoreError>;

    /// Changes what is known of nodes outside Kubernetes, in one transaction with the entry
    /// that records it; resolves when both are durable. A change that does not apply (a token
    /// that was used) is [`StoreError::NotApplied`], and records nothing.
    async fn change_nodes(
        &self,
        change: NodeChange,
        entry: NewEntry,
    ) -> Result<LogIndex, StoreError>;

    /// A join token. Exact: every change that was answered before is seen, another server's
    /// too; as are the three that follow.
    async fn join_token(&self, id: &[u8]) -> Result<Option<JoinToken>, StoreError>;

    /// The join tokens, newest first, at most 10,000.
    async fn join_tokens(&self) -> Result<Vec<JoinToken>, StoreError>;

    /// A node outside Kubernetes.
    async fn external_node(&self, name: &str) -> Result<Option<ExternalNode>, StoreError>;

    /// The nodes outside Kubernetes by name, from behind `after` on, at most 10,000.
    async fn external_nodes(&self, after: &str) -> Result<Vec<ExternalNode>, StoreError>;

    /// Whether an append would work now, as of the last write.
    fn health(&self) -> StoreHealth;

    /// Counters since the store was opened.
    fn stats(&self) -> StoreStats;

    /// Commits what waits, lets the index catch up no further, closes all files and
    /// lets another writer in. Later calls fail with [`StoreError::Closed`].
    async fn close(&self);
}

/// An entry to append.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewEntry {
    /// An encoded `citadel.log.v1.Entry`, at most [`MAX_ENTRY_BYTES`].
    pub bytes: Vec<u8>,
    /// Serial of the certificate that the entry records; unique in the log. `None` for
    /// entries of other kinds.
    pub serial: Option<Vec<u8>>,
}

/// Position of an entry in the log: dense from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogIndex(pub u64);

/// An entry as the log holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredEntry {
    /// Its position.
    pub index: LogIndex,
    /// An encoded `citadel.log.v1.Entry`.
    pub bytes: Vec<u8>,
}

/// Whether the store can record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreHealth {
    /// The last write worked.
    Ready,
    /// The last write failed; it is tried again every second.
    NotReady(StoreError),
}

/// Counters since the store was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreStats {
    /// Commits that worked: each is one fsync of the log.
    pub commits: u64,
    /// Commits that failed.
    pub failed_commits: u64,
    /// Entries that were committed.
    pub entries: u64,
    /// Time spent in commits.
    pub commit_time: Duration,
    /// Commits that waited for appends that were announced.
    pub waits: u64,
    /// Time spent so.
    pub wait_time: Duration,
    /// Entries that wait for a commit now.
    pub queued: usize,
    /// Size of the log.
    pub size: u64,
    /// Entries that the index covers.
    pub indexed: u64,
}

/// Somebody is about to append; see [`Store::announce`].
#[must_use = "an announcement ends when it is dropped"]
pub struct Announcement(Arc<AtomicUsize>);

// === impl NewEntry ===

impl NewEntry {
    fn check(&self) -> Result<(), StoreError> {
        within("an entry", self.bytes.len(), MAX_ENTRY_BYTES)?;
        within(
            "a serial",
            self.serial.as_ref().map_or(0, Vec::len),
            MAX_SERIAL_BYTES,
        )
    }
}

/// Leaf hashes from this index on, as far as the entries have no gap.
pub(crate) fn leaves_of(from: LogIndex, entries: &[StoredEntry]) -> Vec<Hash> {
    let whole = without_gap(from, entries);
    whole.iter().map(|entry| leaf_hash(&entry.bytes)).collect()
}

/// The entries from this index on, up to the first one that is missing.
pub(crate) fn without_gap(from: LogIndex, entries: &[StoredEntry]) -> &[StoredEntry] {
    let whole = (from.0..)
        .zip(entries)
        .take_while(|(index, entry)| entry.index.0 == *index)
        .count();
    &entries[..whole]
}

fn within(what: &'static str, size: usize, limit: usize) -> Result<(), StoreError> {
    if size > limit {
        Err(StoreError::TooLarge { what, size, limit })
    } else {
        Ok(())
    }
}

// === impl StoredEntry ===

/// Index and bytes, as the engines keep them.
impl From<(i64, Vec<u8>)> for StoredEntry {
    fn from((index, bytes): (i64, Vec<u8>)) -> Self {
        Self {
            index: LogIndex(index.unsigned_abs()),
            bytes,
        }
    }
}

// === impl LogIndex ===

impl fmt::Display for LogIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

// === impl StoreHealth ===

impl StoreHealth {
    /// True when the last write worked.
    pub fn is_ready(&self) -> bool {
        matches!(self, Self::Ready)
    }
}

// === impl Announcement ===

impl Announcement {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Announcement {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl fmt::Debug for Announcement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Announcement")
    }
}
