//! The store on PostgreSQL: one log for several servers.
//!
//! Log and index are tables of one schema. A batch takes the head row's lock, which
//! numbers its entries, and is one transaction; the index is derived from the log by
//! whichever server comes first.

mod audit;
mod connect;
pub(super) mod errors;
mod head;
mod indexer;
mod insert;
mod log;
mod nodes;
mod options;
mod prune;
mod select;
mod texts;
mod tree;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use citadel_ledger::Tile;
pub use options::{PostgresOptions, SslMode, UrlError};
use tokio::time::timeout;

use self::{head::Head, log::PostgresLog, options::Role, select::Reader};
use super::{
    Announcement, AuditedEntry, ExternalNode, Growth, IndexedEpoch, JoinToken, LogIndex, MAX_PAGE,
    NewEntry, NodeChange, Query, Store, StoreError, StoreHealth, StoreStats, StoredEntry,
    SubjectRow, TreeState, index::IndexerHandle, queue::Commands, shared::Shared, writer::Writer,
};

/// The store on PostgreSQL 15 or later.
#[derive(Debug)]
pub struct PostgresStore {
    shared: Arc<Shared>,
    reader: Reader,
    /// `None` where the log is only read.
    writer: Option<WriterHandle>,
}

#[derive(Debug)]
struct WriterHandle {
    commands: Commands,
    indexer: IndexerHandle,
}

// === impl PostgresStore ===

impl PostgresStore {
    /// Opens the store, and makes its tables if they are missing. Must be called on a
    /// Tokio runtime; writer and indexer are tasks on it. Any number of servers may have
    /// it open.
    ///
    /// Refuses a server older than 15, a standby, one whose commits would not be durable,
    /// a newer schema, and a log that lost entries.
    pub async fn open(options: PostgresOptions) -> Result<Self, StoreError> {
        let options = Arc::new(options);
        connect::migrate(&options).await?;
        let mut connection = connect::connect_at_start(&options, Role::Start).await?;
        let reading = async {
            let read = head::read(&mut connection).await?;
            connect::take_role(&options, Role::Writer, &mut connection).await?;
            Ok::<_, StoreError>(read)
        };
        let (size, log_id) = timeout(options.patience(Role::Start), reading)
            .await
            .map_err(|_| StoreError::Unavailable(format!("{options}: no answer")))??;
        tracing::info!(
            database = %options,
            size,
            "the log's database is durable, by what it reads back"
        );

        let shared = Arc::new(Shared::new(size));
        let head = Arc::new(Head::new(log_id, Arc::clone(&shared)));
        let reader = Reader::new(Arc::clone(&options), Role::Reader)?;
        let (indexer, orders) = IndexerHandle::new();
        indexer::spawn(
            Arc::clone(&options),
            Arc::clone(&head),
            Arc::clone(&shared),
            orders,
        );
        let (commands, inbox) = Commands::new(&options.batch);
        let batch = options.batch.clone();
        let log = PostgresLog::new(options, head, Arc::clone(&shared), connection);
        tokio::spawn(Writer::new(log, &batch, inbox, Arc::clone(&shared)).run());
        Ok(Self {
            shared,
            reader,
            writer: Some(WriterHandle { commands, indexer }),
        })
    }

    /// Opens an existing store for reading alone, beside its servers: every transaction is
    /// read-only, by the database's own word.
    ///
    /// Refuses a server older than 15, a standby, and a schema of another version.
    pub async fn open_read_only(options: PostgresOptions) -> Result<Self, StoreError> {
        let reader = Reader::new(Arc::new(options), Role::Auditor)?;
        reader.check_schema().await?;
        let size = reader.size().await?;
        Ok(Self {
            shared: Arc::new(Shared::new(size)),
            reader,
            writer: None,
        })
    }

    fn writer(&self) -> Result<&WriterHandle, StoreError> {
        self.writer.as_ref().ok_or(StoreError::ReadOnly)
    }
}

impl PostgresStore {
    /// Drops the schema that the options name, with the log in it: for a store that was
    /// made to be thrown away.
    ///
    /// # Errors
    /// The options name none; or what the database says.
    pub async fn drop_schema(options: &PostgresOptions) -> Result<(), StoreError> {
        let Some(schema) = &options.schema else {
            return Err(StoreError::Settings("no schema is named".into()));
        };
        let mut connection = connect::connect_at_start(options, Role::Migration).await?;
        // The name was checked to need no quotes.
        let drop = sqlx::query(sqlx::AssertSqlSafe(format!(
            "DROP SCHEMA IF EXISTS \"{schema}\" CASCADE"
        )))
        .execute(&mut connection);
        timeout(options.patience(Role::Migration), drop)
            .await
            .map_err(|_| StoreError::Unavailable(format!("{options}: no answer")))??;
        connect::close(connection).await;
        Ok(())
    }
}

#[async_trait]
impl Store for PostgresStore {
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

    fn indexed_subject(&self, subject: SubjectRow) -> SubjectRow {
        texts::columns(subject)
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

    async fn tree(&self) -> Result<TreeState, StoreError> {
        self.reader.tree().await
    }

    async fn tiles(&self, tiles: &[Tile]) -> Result<Vec<Vec<u8>>, StoreError> {
        self.reader.tiles(tiles).await
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
        self.reader.token(id).await
    }

    async fn join_tokens(&self) -> Result<Vec<JoinToken>, StoreError> {
        self.reader.tokens().await
    }

    async fn external_node(&self, name: &str) -> Result<Option<ExternalNode>, StoreError> {
        self.reader.node(name).await
    }

    async fn external_nodes(&self, after: &str) -> Result<Vec<ExternalNode>, StoreError> {
        self.reader.nodes(after).await
    }

    fn health(&self) -> StoreHealth {
        self.shared.health.borrow().clone()
    }

    fn stats(&self) -> StoreStats {
        self.shared.stats()
    }

    async fn close(&self) {
        self.reader.close().await;
        if let Some(writer) = &self.writer {
            writer.indexer.stop().await;
            writer.commands.close().await;
        }
    }
}
