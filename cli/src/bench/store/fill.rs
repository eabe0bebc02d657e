//! Fills the log as servers do, and measures what an append costs at the end.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use citadel_ca_server::log::{Log, Rollback};
use citadel_ca_server::store::{MAX_APPEND, NewEntry, SqliteOptions, SqliteStore, Store};
use citadel_runtime::Shutdown;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio::sync::Mutex;

use super::super::measure;
use super::super::server::TRUST_DOMAIN;
use super::fleet::Fleet;
use super::stored;
use crate::exit::Failure;
use crate::progress::Progress;
use crate::trust;

/// Appends under way while the log is filled.
const FILLING: usize = 2;

/// Certificates of one measurement of appending, how many of them are appended at once, one by
/// one, and how often it is measured: the fastest counts, because whatever else runs on the
/// machine can only slow it down.
const MEASURED: u64 = 20_000;
const AT_ONCE: usize = 64;
const ROUNDS: usize = 3;

/// A fleet, and how many of its certificates are in the log.
pub(super) struct Filling {
    fleet: Arc<Fleet>,
    issued: u64,
}

/// What was seen on the way.
pub(super) struct Filled {
    /// Wall time of one certificate.
    pub(super) append: Duration,
    /// CPU of the process for one certificate.
    pub(super) append_cpu: Duration,
    /// Entries not indexed when a measurement ended, at most.
    pub(super) backlog: u64,
    pub(super) fill_per_s: f64,
    pub(super) indexed_per_s: f64,
}

/// What one certificate cost, among many at once.
struct One {
    wall: Duration,
    cpu: Duration,
    /// Entries not indexed when the last one was recorded.
    backlog: u64,
}

impl Filling {
    pub(super) fn new(fleet: Fleet) -> Self {
        Self {
            fleet: Arc::new(fleet),
            issued: 0,
        }
    }

    pub(super) fn fleet(&self) -> &Fleet {
        &self.fleet
    }

    /// Certificates of the fleet that are in the log.
    pub(super) fn issued(&self) -> u64 {
        self.issued
    }

    /// Fills the log up to this many certificates; the last ones are those that are measured.
    pub(super) async fn up_to(
        &mut self,
        size: u64,
        database: &Path,
        data: &Path,
    ) -> Result<Filled, Failure> {
        let store = SqliteStore::open(SqliteOptions::new(database))
            .await
            .map_err(|error| stored(&error))?;
        let store: Arc<dyn Store> = Arc::new(store);
        let trust_domain = trust::domain(TRUST_DOMAIN)?;
        let log = Log::open(
            Arc::clone(&store),
            data.to_path_buf(),
            &trust_domain,
            Rollback::Refuse,
        )
        .await
        .map_err(|error| Failure::local(error.to_string()))?;
        let shutdown = Shutdown::new();
        let tree = tokio::spawn(Arc::clone(&log).run(shutdown.signal()));
        let filled = self.fill(&store, size).await;
        shutdown.trigger();
        let _ = tree.await;
        log.close().await;
        filled
    }

    async fn fill(&mut self, store: &Arc<dyn Store>, size: u64) -> Result<Filled, Failure> {
        let measured = (ROUNDS as u64 * MEASURED).min(size.saturating_sub(self.issued));
        let bulk = size - measured;
        let (begun, first) = (Instant::now(), self.issued);
        self.bulk(store, bulk).await?;
        let appended = begun.elapsed();
        indexed(store).await;
        #[allow(clippy::cast_precision_loss)]
        let rate = |time: Duration| (bulk - first) as f64 / time.as_secs_f64().max(1e-9);
        let (fill_per_s, indexed_per_s) = (rate(appended), rate(begun.elapsed()));
        let (mut append, mut append_cpu, mut backlog) = (Duration::MAX, Duration::MAX, 0);
        for _ in 0..ROUNDS {
            let round = measured / ROUNDS as u64;
            let one = self.one_by_one(store, round).await?;
            append = append.min(one.wall);
            append_cpu = append_cpu.min(one.cpu);
            backlog = backlog.max(one.backlog);
        }
        self.bulk(store, size).await?;
        indexed(store).await;
        Ok(Filled {
            append,
            append_cpu,
            backlog,
            fill_per_s,
            indexed_per_s,
        })
    }

    /// As fast as it goes, in the largest appends.
    async fn bulk(&mut self, store: &Arc<dyn Store>, to: u64) -> Result<(), Failure> {
        let total = to.saturating_sub(self.issued);
        if total == 0 {
            return Ok(());
        }
        let progress = Progress::new("filling", total);
        let appends = (self.issued..to).step_by(MAX_APPEND).map(|first| {
            let numbers = first..to.min(first + MAX_APPEND as u64);
            let (store, fleet) = (Arc::clone(store), Arc::clone(&self.fleet));
            async move {
                let count = numbers.end - numbers.start;
                // On another thread than the next one.
                let made = tokio::spawn(async move {
                    let entries = numbers.map(|n| fleet.entry(n)).collect();
                    store.append(entries).await
                });
                let appended = made
                    .await
                    .map_err(|_| Failure::local("the task that appends panicked"))?;
                appended.map_err(|error| stored(&error))?;
                Ok::<_, Failure>(count)
            }
        });
        stream::iter(appends)
            .buffered(FILLING)
            .try_for_each(|count| {
                progress.advance(count);
                std::future::ready(Ok(()))
            })
            .await?;
        self.issued = to;
        Ok(())
    }

    /// As a busy server: many requests of one certificate.
    async fn one_by_one(&mut self, store: &Arc<dyn Store>, count: u64) -> Result<One, Failure> {
        let numbers = self.issued..self.issued + count;
        let entries: Vec<NewEntry> = numbers.map(|n| self.fleet.entry(n)).collect();
        let entries = Arc::new(Mutex::new(entries.into_iter()));
        let usage = || {
            measure::usage_of(std::process::id())
                .map_err(|error| Failure::local(format!("the CPU of this process: {error}")))
        };
        let (begun, before) = (Instant::now(), usage()?);
        let lanes: Vec<_> = (0..AT_ONCE)
            .map(|_| {
                let (store, entries) = (Arc::clone(store), Arc::clone(&entries));
                tokio::spawn(async move {
                    loop {
                        let Some(entry) = entries.lock().await.next() else {
                            return Ok(());
                        };
                        let _coming = store.announce();
                        store.append(vec![entry]).await?;
                    }
                })
            })
            .collect();
        for lane in lanes {
            lane.await
                .map_err(|_| Failure::local("the task that appends panicked"))?
                .map_err(|error| stored(&error))?;
        }
        let wall = begun.elapsed();
        let stats = store.stats();
        let backlog = stats.size - stats.indexed;
        // The indexer's share is part of the price.
        indexed(store).await;
        let cpu = usage()?.cpu.saturating_sub(before.cpu);
        self.issued += count;
        let each = u32::try_from(count).unwrap_or(u32::MAX).max(1);
        Ok(One {
            wall: wall / each,
            cpu: cpu / each,
            backlog,
        })
    }
}

/// Waits until the index has caught up.
async fn indexed(store: &Arc<dyn Store>) {
    loop {
        let stats = store.stats();
        if stats.indexed >= stats.size {
            return;
        }
        // A measurement's step, not a test: nothing else tells when.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
