//! Derives the index from the log, outside the commits, in large sorted runs.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use sqlx::{Connection, SqliteConnection, SqlitePool};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    IndexerHandle, SqliteOptions, connect,
    index_file::IndexFile,
    insert::{Inserts, MAX_ROWS},
    shared::Shared,
    subjects::{Key, Subjects},
};
use crate::store::{IndexRow, StoreError, SubjectRow};

/// Log entries of one epoch, as a shift: 65,536. See `migrations/sqlite/index`.
const EPOCH_BITS: u32 = 16;

/// How often to look for new entries while a run fills.
const LOOK_IN: Duration = Duration::from_millis(20);

/// How long to leave a failing index alone.
const RETRY: Duration = Duration::from_secs(1);

/// The epoch of a log index.
pub(super) fn epoch(index: u64) -> i64 {
    (index >> EPOCH_BITS).cast_signed()
}

/// The column that finds a key: the first 8 bytes of its SHA-256.
pub(super) fn key_column(spki_sha256: &[u8]) -> i64 {
    let mut first = [0; 8];
    for (to, from) in first.iter_mut().zip(spki_sha256) {
        *to = *from;
    }
    i64::from_be_bytes(first)
}

/// Asks for a rebuild; answered when the index is empty, before it fills again.
pub(super) type Rebuild = oneshot::Sender<()>;

/// Starts the indexer's task.
pub(super) fn spawn(
    file: IndexFile,
    options: &SqliteOptions,
    log: &SqlitePool,
    shared: &Arc<Shared>,
    rebuilds: mpsc::Receiver<Rebuild>,
) -> IndexerHandle {
    let stop = CancellationToken::new();
    let stopped = CancellationToken::new();
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
        rebuilds,
        subjects: Subjects::new(),
        issued: Inserts::new(
            "issued",
            &["epoch", "subject", "idx", "not_before", "not_after"],
            "",
        ),
        keys: Inserts::new("keys", &["epoch", "spki", "idx"], ""),
    };
    let guard = stopped.clone().drop_guard();
    let task_stop = stop.clone();
    tokio::spawn(async move {
        indexer.live(task_stop).await;
        drop(guard);
    });
    IndexerHandle { stop, stopped }
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
    rebuilds: mpsc::Receiver<Rebuild>,
    subjects: Subjects,
    issued: Inserts,
    keys: Inserts,
}

/// What one run of entries adds to the index.
#[derive(Default)]
struct Run {
    /// (epoch, subject, index, not before, not after)
    issued: Vec<(i64, Subject, i64, i64, i64)>,
    /// (epoch, first bytes of the key's hash, index)
    keys: Vec<(i64, i64, i64)>,
    epochs: BTreeMap<i64, Bounds>,
    /// Subjects whose id is not in memory.
    unknown: HashMap<Key, SubjectRow>,
}

/// A subject by its id where it is in memory. Which one is fixed when the entry is
/// read: the ids in memory may be dropped before it is written.
#[derive(Clone, Copy)]
enum Subject {
    Known(i64),
    Unknown(Key),
}

#[derive(Clone, Copy)]
struct Bounds {
    min_time_ms: i64,
    max_time_ms: i64,
    /// Least `not_before`, least and greatest `not_after`.
    validity: Option<(i64, i64, i64)>,
}

enum Work {
    Run,
    Rebuild(Rebuild),
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
                Work::Rebuild(emptied) => self.empty().await.map(|()| {
                    let _ = emptied.send(());
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
        self.subjects.clear();
        self.run = Run::default();
        self.next = *self.shared.indexed.borrow();
    }

    /// Resolves when the log has entries that are not indexed, or a rebuild is asked for.
    async fn wait_for_work(&mut self) -> Option<Work> {
        let next = self.next;
        tokio::select! {
            biased;
            rebuild = self.rebuilds.recv() => rebuild.map(Work::Rebuild),
            some = self.committed.wait_for(|size| *size > next) => some.ok().map(|_| Work::Run),
        }
    }

    /// Takes everything out again.
    async fn empty(&mut self) -> Result<(), StoreError> {
        let mut transaction = self.connection.begin().await?;
        sqlx::raw_sql(
            "DELETE FROM issued; DELETE FROM keys; DELETE FROM epochs; \
             DELETE FROM subjects; UPDATE source SET indexed = 0",
        )
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        self.shared.indexed.send_replace(0);
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
        let (fresh, from_log) = match self.shared.fresh.take(self.next, usize::MAX) {
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
            self.run.add(index, IndexRow::of(bytes), &self.subjects);
            self.next += 1;
        }
    }

    async fn write(&mut self, run: Run, indexed: u64) -> Result<(), StoreError> {
        let Self {
            connection,
            subjects,
            issued,
            keys,
            ..
        } = self;
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
        let unknown: Vec<_> = run.unknown.into_iter().collect();
        subjects.resolve(&mut transaction, &unknown).await?;
        let mut rows = Vec::with_capacity(run.issued.len());
        for (epoch, subject, index, not_before, not_after) in run.issued {
            let subject = match subject {
                Subject::Known(id) => Some(id),
                Subject::Unknown(key) => subjects.id(&key),
            };
            let subject =
                subject.ok_or_else(|| StoreError::Corrupt("a subject was not inserted".into()))?;
            rows.push((epoch, subject, index, not_before, not_after));
        }
        rows.sort_unstable();
        for chunk in rows.chunks(MAX_ROWS) {
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
        let mut rows = run.keys;
        rows.sort_unstable();
        for chunk in rows.chunks(MAX_ROWS) {
            let mut insert = keys.rows(chunk.len());
            for (epoch, key, index) in chunk {
                insert = insert.bind(epoch).bind(key).bind(index);
            }
            insert.execute(&mut *transaction).await?;
        }
        for (epoch, bounds) in run.epochs {
            bounds.write(epoch, &mut transaction).await?;
        }
        sqlx::query("UPDATE source SET indexed = ?")
            .bind(indexed.cast_signed())
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(())
    }
}

// === impl Run ===

impl Run {
    fn add(&mut self, index: u64, row: IndexRow, known: &Subjects) {
        let epoch = epoch(index);
        let index = index.cast_signed();
        let mut validity = None;
        if let Some(certificate) = row.certificate {
            let key = known.key(&certificate.subject);
            let subject = known.id(&key).map_or(Subject::Unknown(key), Subject::Known);
            if matches!(subject, Subject::Unknown(_)) {
                self.unknown.entry(key).or_insert(certificate.subject);
            }
            let (not_before, not_after) = (certificate.not_before, certificate.not_after);
            self.issued
                .push((epoch, subject, index, not_before, not_after));
            self.keys
                .push((epoch, key_column(&certificate.spki_sha256), index));
            validity = Some((not_before, not_after, not_after));
        }
        let bounds = Bounds {
            min_time_ms: row.time_ms,
            max_time_ms: row.time_ms,
            validity,
        };
        self.epochs
            .entry(epoch)
            .and_modify(|known| *known = known.with(bounds))
            .or_insert(bounds);
    }
}

// === impl Bounds ===

impl Bounds {
    fn with(self, other: Self) -> Self {
        let validity = match (self.validity, other.validity) {
            (Some(a), Some(b)) => Some((a.0.min(b.0), a.1.min(b.1), a.2.max(b.2))),
            (a, b) => a.or(b),
        };
        Self {
            min_time_ms: self.min_time_ms.min(other.min_time_ms),
            max_time_ms: self.max_time_ms.max(other.max_time_ms),
            validity,
        }
    }

    async fn write(self, epoch: i64, connection: &mut SqliteConnection) -> Result<(), StoreError> {
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
        .bind(self.min_time_ms)
        .bind(self.max_time_ms)
        .bind(self.validity.map(|validity| validity.0))
        .bind(self.validity.map(|validity| validity.1))
        .bind(self.validity.map(|validity| validity.2))
        .execute(connection)
        .await?;
        Ok(())
    }
}
