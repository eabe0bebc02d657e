//! Answers questions: the index narrows down, the entries themselves decide.

use sqlx::{QueryBuilder, Sqlite, SqliteConnection, SqlitePool};

use super::{entries, indexer, stored};
use crate::store::{Filter, IndexRow, Query, StoreError, StoredEntry};

/// Entries that one statement reads when the log itself is searched: a longer read
/// would keep the WAL from being emptied.
const SCAN: u64 = 256;

/// Entries of an epoch, as the index has it.
const EPOCH: u64 = 1 << 16;

#[derive(Debug)]
pub(super) struct Reader {
    log: SqlitePool,
    /// `None` beside a log that has no index: then every question reads the log.
    index: Option<SqlitePool>,
}

// === impl Reader ===

impl Reader {
    pub(super) fn new(log: SqlitePool, index: Option<SqlitePool>) -> Self {
        Self { log, index }
    }

    pub(super) async fn close_index(&self) {
        if let Some(index) = &self.index {
            index.close().await;
        }
    }

    pub(super) async fn close_log(&self) {
        self.log.close().await;
    }

    pub(super) fn log(&self) -> &SqlitePool {
        &self.log
    }

    pub(super) async fn log_id(&self) -> Result<Vec<u8>, StoreError> {
        super::log_id(&mut *self.log.acquire().await?).await
    }

    pub(super) async fn size(&self) -> Result<u64, StoreError> {
        super::size(&mut *self.log.acquire().await?).await
    }

    pub(super) async fn read(
        &self,
        from: u64,
        limit: usize,
    ) -> Result<Vec<StoredEntry>, StoreError> {
        entries(&mut *self.log.acquire().await?, from, limit).await
    }

    pub(super) async fn by_serial(&self, serial: &[u8]) -> Result<Option<StoredEntry>, StoreError> {
        let row: Option<(i64, Vec<u8>)> =
            sqlx::query_as("SELECT idx, bytes FROM entries WHERE serial = ?")
                .bind(serial)
                .fetch_optional(&self.log)
                .await?;
        Ok(row.map(stored))
    }

    /// One page, newest first: first what the index does not cover yet, then through
    /// the index. The size is read before the index's reach, so nothing falls between.
    pub(super) async fn list(&self, query: &Query) -> Result<Vec<StoredEntry>, StoreError> {
        let mut page = Page::new(query);
        if let Some(serial) = &query.filter.serial {
            if let Some(entry) = self.by_serial(serial).await? {
                page.offer(entry);
            }
            return Ok(page.found);
        }
        let size = self.size().await?;
        page.before = page.before.min(size);
        let Some(index) = &self.index else {
            self.scan(&mut page, 0).await?;
            return Ok(page.found);
        };
        // One snapshot of the index for its reach and its rows: a rebuild may empty it.
        let mut index = index.begin().await?;
        let indexed = indexed(&mut index).await?;
        self.scan(&mut page, indexed).await?;
        if page.is_open() {
            if query.filter.spki_sha256.is_some() || query.filter.asks_for_subject() {
                self.seek(&mut page, &mut index).await?;
            } else {
                self.scan_epochs(&mut page, &mut index).await?;
            }
        }
        Ok(page.found)
    }

    /// Reads the log downwards to `floor`.
    async fn scan(&self, page: &mut Page<'_>, floor: u64) -> Result<(), StoreError> {
        while page.is_open() && page.before > floor {
            let from = page.before.saturating_sub(SCAN).max(floor);
            let count = usize::try_from(page.before - from).unwrap_or(usize::MAX);
            let entries = entries(&mut *self.log.acquire().await?, from, count).await?;
            for entry in entries.into_iter().rev() {
                page.offer(entry);
            }
            page.before = from;
        }
        Ok(())
    }

    /// Reads the log downwards, but leaves out the epochs whose bounds rule them out.
    async fn scan_epochs(
        &self,
        page: &mut Page<'_>,
        index: &mut SqliteConnection,
    ) -> Result<(), StoreError> {
        let mut sql = QueryBuilder::new("SELECT epoch FROM epochs e WHERE epoch <= ");
        sql.push_bind(indexer::epoch(page.before));
        bounds(&mut sql, &page.query.filter);
        sql.push(" ORDER BY epoch DESC");
        let epochs: Vec<i64> = sql.build_query_scalar().fetch_all(index).await?;
        for epoch in epochs {
            let first = epoch.unsigned_abs() * EPOCH;
            page.before = page.before.min(first + EPOCH);
            self.scan(page, first).await?;
            if !page.is_open() {
                break;
            }
        }
        Ok(())
    }

    /// Finds candidates in the index, and lets their entries decide.
    async fn seek(
        &self,
        page: &mut Page<'_>,
        index: &mut SqliteConnection,
    ) -> Result<(), StoreError> {
        while page.is_open() {
            let wanted = page.missing();
            let candidates = candidates(page, wanted, index).await?;
            for entry in self.load(&candidates).await? {
                page.offer(entry);
            }
            match candidates.last() {
                Some(last) if candidates.len() == wanted => page.before = *last,
                _ => break,
            }
        }
        Ok(())
    }

    /// The entries at these indexes, in their order.
    async fn load(&self, indexes: &[u64]) -> Result<Vec<StoredEntry>, StoreError> {
        let list: Vec<_> = indexes.iter().map(u64::to_string).collect();
        let rows: Vec<(i64, Vec<u8>)> = sqlx::query_as(
            "SELECT e.idx, e.bytes FROM json_each(?) wanted \
             CROSS JOIN entries e ON e.idx = wanted.value ORDER BY wanted.key",
        )
        .bind(format!("[{}]", list.join(",")))
        .fetch_all(&self.log)
        .await?;
        Ok(rows.into_iter().map(stored).collect())
    }
}

async fn indexed(index: &mut SqliteConnection) -> Result<u64, StoreError> {
    let indexed: i64 = sqlx::query_scalar("SELECT indexed FROM source")
        .fetch_one(index)
        .await?;
    Ok(indexed.unsigned_abs())
}

/// The newest `limit` indexes below the page's that the index can't rule out: one seek
/// per epoch and subject (or key), the newest epoch first.
async fn candidates(
    page: &Page<'_>,
    limit: usize,
    index: &mut SqliteConnection,
) -> Result<Vec<u64>, StoreError> {
    let filter = &page.query.filter;
    let table = if filter.spki_sha256.is_some() {
        "keys"
    } else {
        "issued"
    };
    let mut sql = QueryBuilder::new("SELECT i.idx FROM epochs e CROSS JOIN ");
    sql.push(table)
        .push(" i ON i.epoch = e.epoch WHERE e.epoch <= ");
    sql.push_bind(indexer::epoch(page.before));
    bounds(&mut sql, filter);
    if let Some(key) = &filter.spki_sha256 {
        sql.push(" AND i.spki = ")
            .push_bind(indexer::key_column(key));
    } else {
        sql.push(" AND i.subject IN (SELECT id FROM subjects WHERE true");
        subjects(&mut sql, filter);
        sql.push(")");
        validity(&mut sql, filter);
    }
    sql.push(" AND i.idx < ")
        .push_bind(page.before.cast_signed());
    sql.push(" ORDER BY e.epoch DESC, i.idx DESC LIMIT ");
    sql.push_bind(i64::try_from(limit).unwrap_or(i64::MAX));
    let found: Vec<i64> = sql
        .build_query_scalar()
        .persistent(false)
        .fetch_all(index)
        .await?;
    Ok(found.into_iter().map(i64::unsigned_abs).collect())
}

/// Conditions on an epoch's bounds.
fn bounds(sql: &mut QueryBuilder<Sqlite>, filter: &Filter) {
    compare(sql, "e.max_time_ms >= ", filter.recorded_since_ms);
    compare(sql, "e.min_time_ms < ", filter.recorded_until_ms);
    compare(sql, "e.max_not_after >= ", filter.valid_since);
    compare(sql, "e.min_not_before <= ", filter.valid_until);
    compare(sql, "e.min_not_after < ", filter.expires_before);
}

/// Conditions on a certificate's validity.
fn validity(sql: &mut QueryBuilder<Sqlite>, filter: &Filter) {
    compare(sql, "i.not_after >= ", filter.valid_since);
    compare(sql, "i.not_before <= ", filter.valid_until);
    compare(sql, "i.not_after < ", filter.expires_before);
}

/// Conditions on whose certificate it is.
fn subjects(sql: &mut QueryBuilder<Sqlite>, filter: &Filter) {
    compare(sql, "spiffe_id = ", filter.spiffe_id.as_ref());
    compare(sql, "trust_domain = ", filter.trust_domain.as_ref());
    compare(sql, "certificate_use = ", filter.certificate_use);
    compare(sql, "cluster = ", filter.cluster.as_ref());
    compare(sql, "namespace = ", filter.namespace.as_ref());
    compare(sql, "account = ", filter.account.as_ref());
    compare(sql, "node = ", filter.node.as_ref());
    compare(sql, "issuer_key_id = ", filter.issuer_key_id.as_ref());
    compare(sql, "pod_uid = ", filter.pod_uid.as_ref());
    compare(sql, "node_uid = ", filter.node_uid.as_ref());
    if let Some(prefix) = &filter.spiffe_id_prefix {
        compare(sql, "spiffe_id >= ", Some(prefix));
        // Greater than every ID that starts so; the entries decide.
        compare(sql, "spiffe_id < ", Some(&format!("{prefix}\u{10FFFF}")));
    }
}

/// Adds ` AND <comparison> ?` where there is a value.
fn compare<T>(sql: &mut QueryBuilder<Sqlite>, comparison: &'static str, value: Option<T>)
where
    T: for<'q> sqlx::Encode<'q, Sqlite> + sqlx::Type<Sqlite>,
{
    if let Some(value) = value {
        sql.push(" AND ").push(comparison).push_bind(value);
    }
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
    fn new(query: &'q Query) -> Self {
        let before = query.before.map_or(u64::MAX, |index| index.0);
        Self {
            query,
            before,
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
}
