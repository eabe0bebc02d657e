//! The store on SQLite: two database files, one writer, any number of readers.
//!
//! `citadel.db` is the log; `citadel-index.db` beside it is the index over it. Two
//! files, because SQLite has one writer a file: the indexer's large transactions then
//! never hold up a commit, its pages are not in the log's WAL, and since the log can
//! rebuild it, its own commits need no fsync.

mod audit;
mod backup;
mod connect;
pub(super) mod errors;
mod files;
mod fresh;
mod index_file;
mod indexer;
mod insert;
mod nodes;
mod prune;
mod select;
mod subjects;
#[cfg(test)]
mod tests;
mod tree;
mod writer;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use citadel_ledger::{Hash, Tile};
use sqlx::{SqliteConnection, sqlite::SqliteSynchronous};

use self::{files::WriterLock, fresh::Fresh, select::Reader, writer::SqliteLog};
use super::{
    Announcement, AuditedEntry, BatchOptions, ExternalNode, Growth, IndexedEpoch, JoinToken,
    LogIndex, MAX_PAGE, NewEntry, NodeChange, Query, Store, StoreError, StoreHealth, StoreStats,
    StoredEntry, TreeState,
    index::IndexerHandle,
    queue::Commands,
    shared::Shared,
    writer::{Writer, to_row},
};

/// Where the database is, and how the writer batches. The defaults suit.
#[derive(Clone, Debug)]
pub struct SqliteOptions {
    /// The log's database; its directory is made if it is missing.
    pub path: PathBuf,
    /// How the writer batches.
    pub batch: BatchOptions,
    /// How long to wait for another process's lock.
    pub busy_timeout: Duration,
    /// Entries that the indexer takes in one transaction at most.
    pub index_run: usize,
    /// How long the indexer waits at most for a full run.
    pub index_delay: Duration,
    /// Anything but the default is refused at open: for the test that it is.
    synchronous: SqliteSynchronous,
}

/// The store on SQLite.
#[derive(Debug)]
pub struct SqliteStore {
    shared: Arc<Shared>,
    reader: Reader,
    writer: Option<WriterHandle>,
}

#[derive(Debug)]
struct WriterHandle {
    commands: Commands,
    indexer: IndexerHandle,
    /// Leaf hashes that the writer passed on.
    leaves: Arc<Fresh<Hash>>,
}

/// Some 5 MB: more than is recorded while the indexer writes a run.
const FRESH_ENTRIES: usize = 4096;

/// Some 2 MB: what a busy server issues in several seconds.
const FRESH_LEAVES: usize = 65_536;

// === impl SqliteOptions ===

impl SqliteOptions {
    /// The defaults for this database.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            batch: BatchOptions::default(),
            busy_timeout: Duration::from_secs(2),
            index_run: 8192,
            index_delay: Duration::from_secs(1),
            synchronous: connect::DURABLE,
        }
    }
}

// === impl SqliteStore ===

impl SqliteStore {
    /// Opens the store for writing, and makes it if it is missing. Must be called on a
    /// Tokio runtime; writer and indexer are tasks on it.
    ///
    /// Refuses a store that another writer has open, one of a newer schema, one whose
    /// commits would not be durable, and one that lost entries.
    pub async fn open(options: SqliteOptions) -> Result<Self, StoreError> {
        let options = Arc::new(options);
        files::prepare(&options.path)?;
        let lock = WriterLock::take(&options.path)?;
        connect::migrate(&options).await?;
        let mut connection = connect::writer(&options).await?;
        connect::empty_wal(&mut connection).await?;
        let size = checked_size(&mut connection).await?;
        remember_size(&mut connection, size).await?;
        let log_id = log_id(&mut connection).await?;

        let shared = Arc::new(Shared::new(size));
        let log = connect::readers(&options.path, &options);
        let index_path = files::index_path(&options.path);
        let minimum = tree::minimum(&mut connection).await?;
        let index = index_file::open(&index_path, &options, &log_id, minimum..=size).await?;
        let index_readers = connect::readers(&index_path, &options);

        let (indexer, orders) = IndexerHandle::new();
        let fresh = Arc::new(Fresh::new(FRESH_ENTRIES));
        let leaves = Arc::new(Fresh::new(FRESH_LEAVES));
        indexer::spawn(index, &options, &log, &shared, Arc::clone(&fresh), orders);
        let (commands, inbox) = Commands::new(&options.batch);
        let batch = options.batch.clone();
        let log_of_writer = SqliteLog::new(
            options,
            connection,
            size,
            Arc::clone(&shared),
            fresh,
            Arc::clone(&leaves),
            lock,
        );
        tokio::spawn(Writer::new(log_of_writer, &batch, inbox, Arc::clone(&shared)).run());

        Ok(Self {
            shared,
            reader: Reader::new(log, Some(index_readers), None),
            writer: Some(WriterHandle {
                commands,
                indexer,
                leaves,
            }),
        })
    }

    /// Opens an existing store for reading, beside its writer or without one.
    pub async fn open_read_only(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        let options = SqliteOptions::new(path.as_ref());
        let log = connect::readers(&options.path, &options);
        connect::check_schema(&log).await?;
        let size = size(&mut *log.acquire().await?).await?;
        let index_path = files::index_path(&options.path);
        let index = index_path
            .exists()
            .then(|| connect::readers(&index_path, &options));
        let (index, unused) = match index {
            // Without an index every query reads the log: slow, and just as complete.
            None => (None, None),
            Some(index) => match index_file::unfit(&index, &log).await {
                None => (Some(index), None),
                unused => (None, unused),
            },
        };
        Ok(Self {
            shared: Arc::new(Shared::new(size)),
            reader: Reader::new(log, index, unused),
            writer: None,
        })
    }

    fn writer(&self) -> Result<&WriterHandle, StoreError> {
        self.writer.as_ref().ok_or(StoreError::ReadOnly)
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn append(&self, entries: Vec<NewEntry>) -> Result<Vec<LogIndex>, StoreError> {
        self.writer()?.commands.append(entries, &self.shared).await
    }

    fn announce(&self) -> Announcement {
        Announcement::new(&self.shared.announced)
    }

    async fn issued_by_serial(&self, serial: &[u8]) -> Result<Option<StoredEntry>, StoreError> {
        self.reader.by_serial(serial).await
    }

    async fn list(&self, query: &Query) -> Result<Vec<StoredEntry>, StoreError> {
        self.reader.list(query).await
    }

    async fn read(&self, from: LogIndex, limit: usize) -> Result<Vec<StoredEntry>, StoreError> {
        self.reader.read(from.0, limit.min(MAX_PAGE)).await
    }

    async fn audit(&self, from: LogIndex, limit: usize) -> Result<Vec<AuditedEntry>, StoreError> {
        self.reader.audit(from.0, limit.min(MAX_PAGE)).await
    }

    async fn indexed_epoch(&self, epoch: i64) -> Result<Option<IndexedEpoch>, StoreError> {
        self.reader.indexed_epoch(epoch).await
    }

    async fn stray_index_row(&self) -> Result<Option<String>, StoreError> {
        let stray = self.reader.stray_index_row().await?;
        Ok(stray.map(|stray| stray.to_string()))
    }

    async fn size(&self) -> Result<u64, StoreError> {
        self.reader.size().await
    }

    async fn bind_issuer(
        &self,
        issuer_key_id: &[u8],
        replaces: Option<&[u8]>,
    ) -> Result<(), StoreError> {
        let commands = &self.writer()?.commands;
        commands.bind_issuer(issuer_key_id, replaces).await
    }

    async fn reindex(&self) -> Result<(), StoreError> {
        let writer = self.writer()?;
        let size = self.size().await?;
        writer.indexer.reindex(size, &self.shared).await
    }

    async fn log_id(&self) -> Result<Vec<u8>, StoreError> {
        self.reader.log_id().await
    }

    async fn leaves(&self, from: LogIndex, limit: usize) -> Result<Vec<Hash>, StoreError> {
        let fresh = match &self.writer {
            Some(writer) => writer.leaves.take(from.0, limit),
            None => Ok(Vec::new()),
        };
        let wanted = match fresh {
            Ok(leaves) if !leaves.is_empty() => return Ok(leaves),
            Ok(_) => limit,
            Err(first) => usize::try_from(first - from.0).map_or(limit, |gap| gap.min(limit)),
        };
        let entries = self.reader.read(from.0, wanted.min(MAX_PAGE)).await?;
        Ok(super::leaves_of(from, &entries))
    }

    async fn tree(&self) -> Result<TreeState, StoreError> {
        tree::state(self.reader.log()).await
    }

    async fn tiles(&self, tiles: &[Tile]) -> Result<Vec<Vec<u8>>, StoreError> {
        tree::tiles(self.reader.log(), tiles).await
    }

    async fn integrate(&self, growth: Growth) -> Result<(), StoreError> {
        self.writer()?.commands.integrate(growth).await
    }

    async fn prune(&self, minimum: u64) -> Result<u64, StoreError> {
        let writer = self.writer()?;
        let gone = writer.commands.prune(minimum).await?;
        writer.indexer.prune(minimum).await?;
        Ok(gone)
    }

    async fn lease(&self, holder: &str, time: Duration) -> Result<bool, StoreError> {
        self.writer()?.commands.lease(holder, time).await
    }

    async fn change_nodes(
        &self,
        change: NodeChange,
        entry: NewEntry,
    ) -> Result<LogIndex, StoreError> {
        let commands = &self.writer()?.commands;
        commands.change_nodes(change, entry, &self.shared).await
    }

    async fn join_token(&self, id: &[u8]) -> Result<Option<JoinToken>, StoreError> {
        nodes::token(self.reader.log(), id).await
    }

    async fn join_tokens(&self) -> Result<Vec<JoinToken>, StoreError> {
        nodes::tokens(self.reader.log()).await
    }

    async fn external_node(&self, name: &str) -> Result<Option<ExternalNode>, StoreError> {
        nodes::node(self.reader.log(), name).await
    }

    async fn external_nodes(&self, after: &str) -> Result<Vec<ExternalNode>, StoreError> {
        nodes::list(self.reader.log(), after).await
    }

    fn health(&self) -> StoreHealth {
        self.shared.health.borrow().clone()
    }

    fn stats(&self) -> StoreStats {
        self.shared.stats()
    }

    async fn close(&self) {
        // Of each file the writer goes last: a reader can't tidy up the WAL.
        self.reader.close_index().await;
        if let Some(writer) = &self.writer {
            writer.indexer.stop().await;
        }
        self.reader.close_log().await;
        if let Some(writer) = &self.writer {
            writer.commands.close().await;
        }
    }
}

/// Number of entries: one step down the right edge of the B-tree.
async fn size(connection: &mut SqliteConnection) -> Result<u64, StoreError> {
    let last: Option<i64> = sqlx::query_scalar("SELECT max(idx) FROM entries")
        .fetch_one(connection)
        .await?;
    Ok(last.map_or(0, |last| last.unsigned_abs() + 1))
}

/// The size, checked against what can be known without reading the log: its first
/// entry, and the size that it had before.
async fn checked_size(connection: &mut SqliteConnection) -> Result<u64, StoreError> {
    let size = size(&mut *connection).await?;
    let minimum = tree::minimum(&mut *connection).await?;
    let first: Option<i64> = sqlx::query_scalar("SELECT min(idx) FROM entries WHERE idx >= ?")
        .bind(to_row(minimum)?)
        .fetch_one(&mut *connection)
        .await?;
    if let Some(first) = first.filter(|first| first.unsigned_abs() != minimum) {
        return Err(StoreError::Corrupt(format!(
            "the log begins with entry {first}, not {minimum}"
        )));
    }
    let known: i64 = sqlx::query_scalar("SELECT known_size FROM meta")
        .fetch_one(connection)
        .await?;
    if size < known.unsigned_abs() {
        return Err(StoreError::Corrupt(format!(
            "the log has {size} entries, and had {known} before: its end is missing"
        )));
    }
    Ok(size)
}

async fn remember_size(connection: &mut SqliteConnection, size: u64) -> Result<(), StoreError> {
    let size = i64::try_from(size).unwrap_or(i64::MAX);
    sqlx::query("UPDATE meta SET known_size = ?1 WHERE known_size <> ?1")
        .bind(size)
        .execute(connection)
        .await?;
    Ok(())
}

async fn log_id(connection: &mut SqliteConnection) -> Result<Vec<u8>, StoreError> {
    Ok(sqlx::query_scalar("SELECT log_id FROM meta")
        .fetch_one(connection)
        .await?)
}

async fn entries(
    connection: &mut SqliteConnection,
    from: u64,
    limit: usize,
) -> Result<Vec<StoredEntry>, StoreError> {
    let rows: Vec<(i64, Vec<u8>)> =
        sqlx::query_as("SELECT idx, bytes FROM entries WHERE idx >= ? ORDER BY idx LIMIT ?")
            .bind(i64::try_from(from).unwrap_or(i64::MAX))
            .bind(i64::try_from(limit).unwrap_or(i64::MAX))
            .fetch_all(connection)
            .await?;
    Ok(rows.into_iter().map(StoredEntry::from).collect())
}
