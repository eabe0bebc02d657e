//! The log as the writer sees it.
//!
//! A batch is one INSERT and its own transaction: when it returns, SQLite has written the
//! WAL and fsynced it (`synchronous = FULL`), and one call is one hop to SQLite's thread.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use citadel_ledger::Hash;
use sqlx::SqliteConnection;

use super::{
    SqliteOptions, connect,
    errors::{breaks_connection, is_duplicate_serial},
    files::WriterLock,
    fresh::Fresh,
    insert::{Inserts, OnFailure},
    nodes, tree,
};
use crate::store::{
    Growth, NewEntry, NodeChange, StoreError,
    queue::Append,
    shared::Shared,
    writer::{Failure, Log, no_minimum, to_row},
};

pub(super) struct SqliteLog {
    options: Arc<SqliteOptions>,
    connection: Option<SqliteConnection>,
    /// Index of the next entry; `None` when an error left it in doubt.
    next: Option<u64>,
    inserts: Inserts,
    shared: Arc<Shared>,
    fresh: Arc<Fresh<Vec<u8>>>,
    leaves: Arc<Fresh<Hash>>,
    // Dropped after the connection: fields go in order of declaration.
    _lock: WriterLock,
}

// === impl SqliteLog ===

impl SqliteLog {
    pub(super) fn new(
        options: Arc<SqliteOptions>,
        connection: SqliteConnection,
        size: u64,
        shared: Arc<Shared>,
        fresh: Arc<Fresh<Vec<u8>>>,
        leaves: Arc<Fresh<Hash>>,
        lock: WriterLock,
    ) -> Self {
        Self {
            options,
            connection: Some(connection),
            next: Some(size),
            inserts: Inserts::new("entries", &["idx", "serial", "bytes"], "", OnFailure::Undo),
            shared,
            fresh,
            leaves,
            _lock: lock,
        }
    }

    /// After an error, nothing that was believed about the log holds: whether the
    /// statement was committed is unknown, and after an I/O error the connection's
    /// cache and WAL are in doubt as well.
    async fn distrust(&mut self, error: sqlx::Error) -> StoreError {
        self.next = None;
        if breaks_connection(&error)
            && let Some(connection) = self.connection.take()
        {
            connect::close(connection, "failed writer").await;
        }
        error.into()
    }

    /// The index of the next entry, on a connection that can be trusted: what an error
    /// left in doubt is made sure of first.
    async fn restored(&mut self) -> Result<u64, StoreError> {
        if let (Some(next), Some(_)) = (self.next, &self.connection) {
            return Ok(next);
        }
        if self.connection.is_none() {
            let mut connection = connect::writer(&self.options).await?;
            connect::empty_wal(&mut connection).await?;
            self.connection = Some(connection);
        }
        let connection = self.connection.as_mut().ok_or(StoreError::Closed)?;
        let size = super::size(connection).await?;
        // A commit whose outcome was unknown may turn out to have happened.
        self.shared.grown_to(size);
        self.next = Some(size);
        Ok(size)
    }
}

#[async_trait]
impl Log for SqliteLog {
    async fn write(&mut self, appends: &[Append], entries: usize) -> Result<u64, Failure> {
        let first = self.restored().await?;
        let mut insert = self.inserts.rows(entries);
        let mut index = first;
        for entry in appends.iter().flat_map(|append| &append.entries) {
            insert = insert
                .bind(to_row(index)?)
                .bind(entry.serial.as_deref())
                .bind(entry.bytes.as_slice());
            index += 1;
        }
        let connection = self.connection.as_mut().ok_or(StoreError::Closed)?;
        match insert.execute(connection).await {
            Ok(_) => {
                self.next = Some(index);
                Ok(first)
            }
            // SQLite undid the statement; nothing else is wrong.
            Err(error) if is_duplicate_serial(&error) => Err(Failure::DuplicateSerial),
            Err(error) => Err(Failure::Store(self.distrust(error).await)),
        }
    }

    fn recorded(&mut self, first: u64, append: &mut Append) {
        let entries = append.entries.iter_mut();
        let bytes = entries.map(|entry| std::mem::take(&mut entry.bytes));
        self.fresh.offer(first, bytes);
        self.leaves.offer(first, append.leaves.drain(..));
    }

    async fn change_nodes(
        &mut self,
        change: &NodeChange,
        entry: &NewEntry,
    ) -> Result<u64, StoreError> {
        let index = self.restored().await?;
        let row = to_row(index)?;
        let connection = self.connection.as_mut().ok_or(StoreError::Closed)?;
        match nodes::apply(connection, change, row, entry).await {
            Ok(true) => {
                self.next = Some(index + 1);
                Ok(index)
            }
            Ok(false) => Err(StoreError::NotApplied),
            Err(error) => Err(self.distrust(error).await),
        }
    }

    async fn probe(&mut self) -> Result<(), StoreError> {
        self.restored().await?;
        let connection = self.connection.as_mut().ok_or(StoreError::Closed)?;
        match sqlx::query("UPDATE meta SET probes = probes + 1")
            .execute(connection)
            .await
        {
            Ok(_) => Ok(()),
            Err(error) => Err(self.distrust(error).await),
        }
    }

    async fn bind_issuer(
        &mut self,
        key_id: &[u8],
        replaces: Option<&[u8]>,
    ) -> Result<(), StoreError> {
        self.restored().await?;
        let connection = self.connection.as_mut().ok_or(StoreError::Closed)?;
        let active: Option<Vec<u8>> = sqlx::query_scalar("SELECT issuer_key_id FROM meta")
            .fetch_one(&mut *connection)
            .await?;
        match active {
            Some(active) if active == key_id => return Ok(()),
            Some(active) if replaces != Some(active.as_slice()) => {
                return Err(StoreError::WrongIssuer {
                    active: hex::encode(active),
                    offered: hex::encode(key_id),
                });
            }
            _ => {}
        }
        let update = sqlx::query("UPDATE meta SET issuer_key_id = ?").bind(key_id);
        match update.execute(connection).await {
            Ok(_) => Ok(()),
            Err(error) => Err(self.distrust(error).await),
        }
    }

    async fn integrate(&mut self, growth: &Growth) -> Result<(), StoreError> {
        self.restored().await?;
        let connection = self.connection.as_mut().ok_or(StoreError::Closed)?;
        match tree::integrate(connection, growth).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(StoreError::TreeMoved { from: growth.from }),
            Err(error) => Err(self.distrust(error).await),
        }
    }

    async fn prune(&mut self, minimum: u64) -> Result<u64, StoreError> {
        self.restored().await?;
        let connection = self.connection.as_mut().ok_or(StoreError::Closed)?;
        match tree::prune(connection, minimum).await {
            Ok(gone) => gone.ok_or_else(|| no_minimum(minimum)),
            Err(error) => Err(self.distrust(error).await),
        }
    }

    /// There is one writer: the task is always its own.
    async fn lease(&mut self, _holder: &str, _time: Duration) -> Result<bool, StoreError> {
        Ok(true)
    }

    async fn finish(&mut self) {
        if let Some(mut connection) = self.connection.take() {
            if let Err(error) = clean_stop(&mut connection).await {
                tracing::warn!(%error, "the store's last checkpoint failed; the next start repeats it");
            }
            connect::close(connection, "writer").await;
        }
    }
}

async fn clean_stop(connection: &mut SqliteConnection) -> Result<(), StoreError> {
    let size = super::size(&mut *connection).await?;
    super::remember_size(&mut *connection, size).await?;
    connect::empty_wal(connection).await
}
