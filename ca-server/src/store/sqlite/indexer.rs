//! Derives the index from the log, outside the commits, in large sorted runs.

use std::{sync::Arc, time::Duration};

use sqlx::{Connection, SqliteConnection, SqlitePool};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    SqliteOptions, connect,
    fresh::Fresh,
    index_file::IndexFile,
    insert::{Inserts, MAX_ROWS, OnFailure},
    prune,
    subjects::Subjects,
};
use crate::store::{
    StoreError,
    index::{Bounds, IndexerOrders, Order, Run, SubjectIds},
    shared::Shared,
};

/// How often to look for new entries while a run fills.
const LOOK_IN: Duration = Duration::from_millis(20);

/// How long to leave a failing index alone.
const RETRY: Duration = Duration::from_secs(1);

/// Starts the indexer's task.
pub(super) fn spawn(
    file: IndexFile,
    options: &SqliteOptions,
    log: &SqlitePool,
    shared: &Arc<Shared>,
    fresh: Arc<Fresh<Vec<u8>>>,
    orders: IndexerOrders,
) {
    let IndexerOrders {
        orders,
        stop,
        stopped,
    } = orders;
    shared.indexed.send_replace(file.indexed);
    let indexer = Indexer {
        connection: file.connection,
        log: log.clone(),
        run_entries: options.index_run.max(1) as u64,
        delay: options.index_delay,
        next: file.indexed,
        run: Run::default(),
        committed: shared.committed.subscribe(),
        shared: Arc::clone(shared),
        fresh,
        orders,
        ids: SubjectIds::default(),
        subjects: Subjects::new(),
        issued: Inserts::new(
            "issued",
            &["epoch", "subject", "idx", "not_before", "not_after"],
            "",
            OnFailure::GiveUp,
        ),
        keys: Inserts::new("keys", &["epoch", "spki", "idx"], "", OnFailure::GiveUp),
    };
    tokio::spawn(async move {
        indexer.live(stop).await;
        drop(stopped);
    });
}

struct Indexer {
    connection: SqliteConnection,
    log: SqlitePool,
    run_entries: u64,
    delay: Duration,
    /// Entries below this are in the index or in `run`.
    next: u64,
    /// What is to be written next.
    run: Run,
    committed: watch::Receiver<u64>,
    shared: Arc<Shared>,
    fresh: Arc<Fresh<Vec<u8>>>,
    orders: mpsc::Receiver<Order>,
    ids: SubjectIds,
    subjects: Subjects,
    issued: Inserts,
    keys: Inserts,
}

enum Work {
    Run,
    Order(Order),
}

// === impl Indexer ===

impl Indexer {
    async fn live(mut self, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.work() => {}
        }
        connect::close(self.connection, "index").await;
    }

    /// Ends when the store is gone.
    async fn work(&mut self) {
        let mut failing = false;
        loop {
            let Some(work) = self.wait_for_work().await else {
                return;
            };
            let outcome = match work {
                Work::Run => self.index_run().await,
                Work::Order(Order::Rebuild(emptied)) => self.empty().await.map(|()| {
                    let _ = emptied.send(());
                }),
                Work::Order(Order::Prune(minimum, done)) => self.prune(minimum).await.map(|()| {
                    let _ = done.send(());
                }),
            };
            match outcome {
                Ok(()) => failing = false,
                Err(error) => {
                    if !failing {
                        tracing::warn!(%error, "indexing failed; queries read the log instead");
                    }
                    failing = true;
                    self.begin_again();
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// Forgets what is in memory, and goes on from what the index holds.
    fn begin_again(&mut self) {
        self.ids.clear();
        self.run = Run::default();
        self.next = *self.shared.indexed.borrow();
    }

    /// Resolves when the log has entries that are not indexed, or something is asked for.
    async fn wait_for_work(&mut self) -> Option<Work> {
        let next = self.next;
        tokio::select! {
            biased;
            order = self.orders.recv() => order.map(Work::Order),
            some = self.committed.wait_for(|size| *size > next) => some.ok().map(|_| Work::Run),
        }
    }

    /// Takes everything out again.
    async fn empty(&mut self) -> Result<(), StoreError> {
        let minimum = super::tree::minimum(&mut *self.log.acquire().await?).await?;
        let mut transaction = self.connection.begin().await?;
        sqlx::raw_sql(
            "DELETE FROM issued; DELETE FROM keys; DELETE FROM epochs; DELETE FROM subjects",
        )
        .execute(&mut *transaction)
        .await?;
        sqlx::query("UPDATE source SET indexed = ?")
            .bind(minimum.cast_signed())
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        self.shared.indexed.send_replace(minimum);
        self.begin_again();
        Ok(())
    }

    /// Forgets what retention took away.
    async fn prune(&mut self, minimum: u64) -> Result<(), StoreError> {
        prune::prune(&mut self.connection, minimum).await?;
        self.shared
            .indexed
            .send_modify(|indexed| *indexed = minimum.max(*indexed));
        // Ids of subjects that are gone are given to nobody any more.
        self.begin_again();
        Ok(())
    }

    /// Collects a run until it is full or its first entry has waited long enough, and
    /// writes it in one transaction.
    async fn index_run(&mut self) -> Result<(), StoreError> {
        let deadline = Instant::now() + self.delay;
        let full = *self.shared.indexed.borrow() + self.run_entries;
        loop {
            self.collect(full).await?;
            if self.next >= full || Instant::now() >= deadline {
                break;
            }
            // Every commit would wake this task: look in now and then instead.
            tokio::time::sleep_until(deadline.min(Instant::now() + LOOK_IN)).await;
        }
        let run = std::mem::take(&mut self.run);
        self.write(run, self.next).await?;
        self.shared.indexed.send_replace(self.next);
        Ok(())
    }

    /// Adds to the run what is committed now, up to `full`: what the writer passed on,
    /// and what precedes that from the log.
    async fn collect(&mut self, full: u64) -> Result<(), StoreError> {
        let committed = *self.committed.borrow_and_update();
        let (fresh, from_log) = match self.fresh.take(self.next, usize::MAX) {
            Ok(fresh) if fresh.is_empty() => (fresh, committed),
            Ok(fresh) => (fresh, self.next),
            Err(first) => (Vec::new(), first.min(committed)),
        };
        // In small reads: a long one would hold the log's WAL, and much memory.
        while self.next < from_log.min(full) {
            let count = usize::try_from(from_log - self.next).unwrap_or(usize::MAX);
            let count = count.min(MAX_ROWS);
            let entries = super::entries(&mut *self.log.acquire().await?, self.next, count).await?;
            if entries.is_empty() {
                return Err(StoreError::Corrupt(format!(
                    "entry {} is missing",
                    self.next
                )));
            }
            for entry in entries {
                self.add(entry.index.0, &entry.bytes);
            }
        }
        for (index, bytes) in (self.next..).zip(&fresh) {
            self.add(index, bytes);
        }
        Ok(())
    }

    /// Adds the entry if it is the next one.
    fn add(&mut self, index: u64, bytes: &[u8]) {
        if index == self.next {
            self.run.add(index, bytes, &self.ids);
            self.next += 1;
        }
    }

    async fn write(&mut self, mut run: Run, indexed: u64) -> Result<(), StoreError> {
        let Self {
            connection,
            ids,
            subjects,
            issued,
            keys,
            ..
        } = self;
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
        let unknown = run.take_unknown();
        subjects.resolve(&mut transaction, ids, &unknown).await?;
        for chunk in run.issued(ids)?.chunks(MAX_ROWS) {
            let mut insert = issued.rows(chunk.len());
            for (epoch, subject, index, not_before, not_after) in chunk {
                insert = insert
                    .bind(epoch)
                    .bind(subject)
                    .bind(index)
                    .bind(not_before)
                    .bind(not_after);
            }
            insert.execute(&mut *transaction).await?;
        }
        let (rows, epochs) = run.into_keys_and_epochs();
        for chunk in rows.chunks(MAX_ROWS) {
            let mut insert = keys.rows(chunk.len());
            for (epoch, key, index) in chunk {
                insert = insert.bind(epoch).bind(key).bind(index);
            }
            insert.execute(&mut *transaction).await?;
        }
        for (epoch, bounds) in epochs {
            write_bounds(epoch, bounds, &mut transaction).await?;
        }
        sqlx::query("UPDATE source SET indexed = ?")
            .bind(indexed.cast_signed())
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(())
    }
}

async fn write_bounds(
    epoch: i64,
    bounds: Bounds,
    connection: &mut SqliteConnection,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO epochs (epoch, min_time_ms, max_time_ms, \
                             min_not_before, min_not_after, max_not_after) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6) \
         ON CONFLICT (epoch) DO UPDATE SET \
           min_time_ms = min(min_time_ms, ?2), \
           max_time_ms = max(max_time_ms, ?3), \
           min_not_before = min(ifnull(min_not_before, ?4), ifnull(?4, min_not_before)), \
           min_not_after = min(ifnull(min_not_after, ?5), ifnull(?5, min_not_after)), \
           max_not_after = max(ifnull(max_not_after, ?6), ifnull(?6, max_not_after))",
    )
    .bind(epoch)
    .bind(bounds.min_time_ms)
    .bind(bounds.max_time_ms)
    .bind(bounds.validity.map(|validity| validity.0))
    .bind(bounds.validity.map(|validity| validity.1))
    .bind(bounds.validity.map(|validity| validity.2))
    .execute(connection)
    .await?;
    Ok(())
}
