//! Derives the index from the log, outside the commits, in large sorted runs.
//!
//! Each server has such a task; whoever holds the lock of `index_source` does a run, and
//! the others find it done. What a run writes is committed without waiting for the disk:
//! after a crash the index may lack its newest rows, and is told so by `indexed`, which
//! was committed with them.

use std::{sync::Arc, time::Duration};

use sqlx::{Connection as _, PgConnection};
use tokio::time::{sleep, timeout};

use super::{
    connect,
    head::Head,
    insert,
    options::{PostgresOptions, Role},
    prune,
    select::entries,
};
use crate::store::{
    StoreError,
    index::{IndexerOrders, Order, Run, SubjectIds},
    shared::Shared,
    writer::to_row,
};

/// Goes up with each change of what [`crate::store::IndexRow`] derives, or of what the columns mean.
pub(super) const VERSION: i32 = 1;

/// Entries read at once.
const CHUNK: u64 = 512;

/// How long to leave a failing index alone.
const RETRY: Duration = Duration::from_secs(1);

/// Starts the indexer's task.
pub(super) fn spawn(
    options: Arc<PostgresOptions>,
    head: Arc<Head>,
    shared: Arc<Shared>,
    orders: IndexerOrders,
) {
    let indexer = Indexer {
        run_entries: options.index_run.max(1) as u64,
        options,
        head,
        shared,
        connection: None,
        ids: SubjectIds::default(),
        generation: None,
    };
    tokio::spawn(indexer.live(orders));
}

struct Indexer {
    options: Arc<PostgresOptions>,
    head: Arc<Head>,
    shared: Arc<Shared>,
    run_entries: u64,
    connection: Option<PgConnection>,
    ids: SubjectIds,
    /// What `ids` is of.
    generation: Option<i64>,
}

/// How far the index reaches.
struct Source {
    indexed: u64,
    minimum: u64,
    generation: i64,
    version: i32,
}

// === impl Indexer ===

impl Indexer {
    async fn live(mut self, given: IndexerOrders) {
        let IndexerOrders {
            mut orders,
            stop,
            stopped,
        } = given;
        let mut pause = Duration::ZERO;
        let mut failing = false;
        loop {
            let order = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                order = orders.recv() => match order {
                    Some(order) => Some(order),
                    None => break,
                },
                () = sleep(pause) => None,
            };
            let work = timeout(self.options.patience(Role::Indexer), self.work(order));
            let outcome = tokio::select! {
                () = stop.cancelled() => break,
                outcome = work => outcome,
            };
            let error = match outcome {
                Ok(Ok(again)) => {
                    failing = false;
                    pause = if again {
                        Duration::ZERO
                    } else {
                        self.options.index_delay
                    };
                    continue;
                }
                Ok(Err(error)) => error,
                Err(_) => StoreError::Unavailable("indexing took too long".into()),
            };
            if !failing {
                tracing::warn!(%error, "indexing failed; queries read the log instead");
            }
            failing = true;
            self.connection = None;
            // A transaction that failed may have given ids.
            self.generation = None;
            pause = RETRY;
        }
        if let Some(connection) = self.connection {
            connect::close(connection).await;
        }
        drop(stopped);
    }

    /// Does what there is to do. True: there is more, at once.
    async fn work(&mut self, order: Option<Order>) -> Result<bool, StoreError> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => connect::connect(&self.options, Role::Indexer).await?,
        };
        match order {
            Some(Order::Rebuild(emptied)) => {
                self.empty(&mut connection).await?;
                let _ = emptied.send(());
            }
            Some(Order::Prune(minimum, done)) => {
                prune::prune(&mut connection, minimum).await?;
                let _ = done.send(());
            }
            None => {}
        }
        let again = self.look(&mut connection).await?;
        self.connection = Some(connection);
        Ok(again)
    }

    /// Looks how far log and index are, and does a run if that is due and nobody else does.
    async fn look(&mut self, connection: &mut PgConnection) -> Result<bool, StoreError> {
        let known = self.head.known();
        let (size, log_id, indexed, version): (i64, Vec<u8>, i64, i32) = sqlx::query_as(
            "SELECT h.size, h.log_id, s.indexed, s.version FROM head h, index_source s",
        )
        .fetch_one(&mut *connection)
        .await?;
        let (size, indexed) = (size.unsigned_abs(), indexed.unsigned_abs());
        self.head.seen(size, &log_id, known)?;
        if version > VERSION {
            // A newer program is at work here.
            self.shared.indexed.send_replace(0);
            return Ok(false);
        }
        if version < VERSION {
            self.empty(connection).await?;
            return Ok(true);
        }
        self.shared.indexed.send_replace(indexed);
        if indexed > size {
            return Err(StoreError::Corrupt(format!(
                "the index covers {indexed} entries, and the log has {size}"
            )));
        }
        if indexed == size {
            return Ok(false);
        }
        self.index_run(connection, size).await
    }

    /// Takes everything out again, for this program's version.
    async fn empty(&mut self, connection: &mut PgConnection) -> Result<(), StoreError> {
        let mut transaction = connection.begin().await?;
        // In the order in which everybody takes these locks: first the row, then the tables,
        // in the readers' order. Truncating waits for readers, and lets no new ones in before.
        sqlx::query("SELECT 1 FROM index_source FOR UPDATE")
            .execute(&mut *transaction)
            .await?;
        sqlx::query("TRUNCATE index_epochs, index_subjects, index_issued, index_keys")
            .execute(&mut *transaction)
            .await?;
        sqlx::query(
            "UPDATE index_source SET indexed = 0, generation = generation + 1, version = $1",
        )
        .bind(VERSION)
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        self.shared.indexed.send_replace(0);
        Ok(())
    }

    /// One run, in one transaction.
    async fn index_run(
        &mut self,
        connection: &mut PgConnection,
        size: u64,
    ) -> Result<bool, StoreError> {
        let mut transaction = connection.begin().await?;
        sqlx::query("SET LOCAL synchronous_commit = off")
            .execute(&mut *transaction)
            .await?;
        let Some(source) = claim(&mut transaction).await? else {
            // Somebody else is at it.
            transaction.rollback().await?;
            return Ok(false);
        };
        if source.version != VERSION {
            transaction.rollback().await?;
            return Ok(false);
        }
        if self.generation != Some(source.generation) {
            self.ids.clear();
            self.generation = Some(source.generation);
        }
        let mut run = Run::default();
        let mut next = source.indexed.max(source.minimum);
        let end = size.min(next + self.run_entries);
        while next < end {
            let count = usize::try_from(CHUNK.min(end - next)).unwrap_or(usize::MAX);
            let chunk = entries(&mut transaction, next, count).await?;
            if chunk.len() < count || chunk.iter().zip(next..).any(|(e, at)| e.index.0 != at) {
                return Err(StoreError::Corrupt(format!(
                    "an entry is missing at {next} or soon after"
                )));
            }
            for entry in chunk {
                run.add(next, &entry.bytes, &self.ids);
                next += 1;
            }
        }
        insert::run(run, &mut self.ids, &mut transaction).await?;
        sqlx::query("UPDATE index_source SET indexed = $1")
            .bind(to_row(next)?)
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        self.shared.indexed.send_replace(next);
        Ok(next < size)
    }
}

/// The right to add to the index, for this transaction; `None` when another has it.
async fn claim(connection: &mut PgConnection) -> Result<Option<Source>, StoreError> {
    let row: Option<(i64, i64, i32, i64)> = sqlx::query_as(
        "SELECT s.indexed, s.generation, s.version, t.minimum \
         FROM index_source s CROSS JOIN tree t FOR UPDATE OF s SKIP LOCKED",
    )
    .fetch_optional(connection)
    .await?;
    Ok(row.map(|(indexed, generation, version, minimum)| Source {
        indexed: indexed.unsigned_abs(),
        minimum: minimum.unsigned_abs(),
        generation,
        version,
    }))
}
