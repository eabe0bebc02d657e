//! The one writer: group commit.
//!
//! It takes what waited while the last commit ran, writes it with one INSERT, and
//! answers. The INSERT is its own transaction: when it returns, SQLite has written the
//! WAL and fsynced it (`synchronous = FULL`), and one call is one hop to SQLite's thread.

use std::{
    ops::ControlFlow,
    sync::Arc,
    time::{Duration, Instant},
};

use sqlx::SqliteConnection;
use tokio::{sync::mpsc, time::timeout};

use super::{
    SqliteOptions, connect,
    files::WriterLock,
    insert::Inserts,
    queue::{Append, Batch, Command, Gatherer},
    shared::Shared,
    tree,
};
use crate::store::{
    Growth, StoreError, StoreHealth,
    error::{breaks_connection, is_duplicate_serial},
};

/// How often a writer that failed finds out whether the disk is back.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

pub(super) struct Writer {
    options: Arc<SqliteOptions>,
    connection: Option<SqliteConnection>,
    /// Index of the next entry; `None` when an error left it in doubt.
    next: Option<u64>,
    inserts: Inserts,
    gatherer: Gatherer,
    inbox: mpsc::UnboundedReceiver<Command>,
    shared: Arc<Shared>,
    // Dropped after the connection: fields go in order of declaration.
    _lock: WriterLock,
}

// === impl Writer ===

impl Writer {
    pub(super) fn new(
        options: Arc<SqliteOptions>,
        connection: SqliteConnection,
        size: u64,
        inbox: mpsc::UnboundedReceiver<Command>,
        shared: Arc<Shared>,
        lock: WriterLock,
    ) -> Self {
        Self {
            gatherer: Gatherer::new(&options),
            options,
            connection: Some(connection),
            next: Some(size),
            inserts: Inserts::new("entries", &["idx", "serial", "bytes"], ""),
            inbox,
            shared,
            _lock: lock,
        }
    }

    /// Runs until the store is closed or dropped; then closes the database and lets
    /// go of the lock.
    pub(super) async fn run(mut self) {
        let mut closing = None;
        while let Some(command) = self.next_command().await {
            if let ControlFlow::Break(reply) = self.handle(command).await {
                closing = Some(reply);
                break;
            }
        }
        self.finish().await;
        drop(self);
        if let Some(reply) = closing {
            let _ = reply.send(());
        }
    }

    async fn handle(&mut self, command: Command) -> ControlFlow<tokio::sync::oneshot::Sender<()>> {
        match command {
            Command::Append(first) => {
                let batch = self
                    .gatherer
                    .gather(first, &mut self.inbox, &self.shared)
                    .await;
                self.commit(batch).await;
            }
            Command::BindIssuer {
                key_id,
                replaces,
                reply,
            } => {
                let outcome = self.bind_issuer(&key_id, replaces.as_deref()).await;
                let _ = reply.send(outcome);
            }
            Command::Integrate { growth, reply } => {
                let _ = reply.send(self.integrate(&growth).await);
            }
            Command::Close { reply } => return ControlFlow::Break(reply),
        }
        ControlFlow::Continue(())
    }

    /// The next command. While the store is not ready, probes the disk between commands.
    async fn next_command(&mut self) -> Option<Command> {
        loop {
            if self.shared.health.borrow().is_ready() {
                return self.gatherer.next(&mut self.inbox).await;
            }
            match timeout(PROBE_INTERVAL, self.gatherer.next(&mut self.inbox)).await {
                Ok(command) => return command,
                Err(_) => self.probe().await,
            }
        }
    }

    async fn commit(&mut self, batch: Batch) {
        if batch.appends.is_empty() {
            return;
        }
        match self.write(&batch.appends, batch.entries).await {
            Ok(first) => self.answer(batch.appends, first),
            Err(Failure::DuplicateSerial) if batch.appends.len() > 1 => {
                // Only the append with the duplicate may fail: write each by itself.
                for append in batch.appends {
                    let entries = append.entries.len();
                    match self.write(std::slice::from_ref(&append), entries).await {
                        Ok(first) => self.answer(vec![append], first),
                        Err(failure) => refuse(append, &failure),
                    }
                }
            }
            Err(failure) => {
                for append in batch.appends {
                    refuse(append, &failure);
                }
            }
        }
    }

    fn answer(&self, appends: Vec<Append>, mut first: u64) {
        for mut append in appends {
            let entries = append.entries.len() as u64;
            let entries_of = append.entries.iter_mut();
            let bytes = entries_of.map(|entry| std::mem::take(&mut entry.bytes));
            self.shared.fresh.offer(first, bytes);
            self.shared.leaves.offer(first, append.leaves.drain(..));
            append.answer(Ok(first));
            first += entries;
        }
    }

    /// One commit. Returns the index of its first entry once it is durable.
    async fn write(&mut self, appends: &[Append], entries: usize) -> Result<u64, Failure> {
        let begun = Instant::now();
        let outcome = self.try_write(appends, entries).await;
        match &outcome {
            Ok(first) => {
                self.shared.count_commit(entries, begun.elapsed());
                self.shared.committed.send_replace(first + entries as u64);
                self.shared.set_health(StoreHealth::Ready);
            }
            Err(Failure::DuplicateSerial) => {}
            Err(Failure::Store(error)) => {
                self.shared.count_failure();
                self.not_ready(error);
            }
        }
        outcome
    }

    async fn try_write(&mut self, appends: &[Append], entries: usize) -> Result<u64, Failure> {
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
        self.shared.committed.send_replace(size);
        self.next = Some(size);
        Ok(size)
    }

    /// Writes a few bytes to find out whether writing works again.
    async fn probe(&mut self) {
        match self.try_probe().await {
            Ok(()) => {
                tracing::info!("the store can write again");
                self.shared.set_health(StoreHealth::Ready);
            }
            Err(error) => self.not_ready(&error),
        }
    }

    async fn try_probe(&mut self) -> Result<(), StoreError> {
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

    fn not_ready(&self, error: &StoreError) {
        let was_ready = self.shared.health.borrow().is_ready();
        if was_ready {
            tracing::error!(%error, "the store cannot write: nothing is issued until it can");
        }
        self.shared.set_health(StoreHealth::NotReady(error.clone()));
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
        tree::integrate(connection, growth).await
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

fn refuse(append: Append, failure: &Failure) {
    let error = failure.for_append(&append);
    append.answer(Err(error));
}

/// Why a commit failed.
#[derive(Debug)]
enum Failure {
    /// One of its serials is in the log already; SQLite does not say which.
    DuplicateSerial,
    Store(StoreError),
}

// === impl Failure ===

impl Failure {
    fn for_append(&self, append: &Append) -> StoreError {
        match self {
            Self::Store(error) => error.clone(),
            Self::DuplicateSerial => {
                let serials: Vec<_> = append
                    .entries
                    .iter()
                    .filter_map(|entry| entry.serial.as_deref().map(hex::encode))
                    .collect();
                StoreError::DuplicateSerial {
                    serial: serials.join(", "),
                }
            }
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

fn to_row(index: u64) -> Result<i64, StoreError> {
    i64::try_from(index).map_err(|_| StoreError::Corrupt("the log's index is exhausted".into()))
}
