//! Reads the log and its index.

use async_trait::async_trait;
use sqlx::{QueryBuilder, Sqlite, SqliteConnection, SqlitePool};

use super::{entries, index_file::Unfit};
use crate::store::{
    Filter, Query, StoreError, StoredEntry,
    index::{self, Condition, Extent, Index, Value, on_bounds, on_subjects, on_validity},
};

#[derive(Debug)]
pub(super) struct Reader {
    log: SqlitePool,
    /// `None` beside a log that has no index: then every question reads the log.
    index: Option<SqlitePool>,
    /// Why the index that is there is not used.
    unused: Option<Unfit>,
}

// === impl Reader ===

impl Reader {
    pub(super) fn new(log: SqlitePool, index: Option<SqlitePool>, unused: Option<Unfit>) -> Self {
        Self { log, index, unused }
    }

    pub(super) fn index(&self) -> Option<&SqlitePool> {
        self.index.as_ref()
    }

    pub(super) fn unused(&self) -> Option<&Unfit> {
        self.unused.as_ref()
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
        Ok(row.map(StoredEntry::from))
    }

    /// One page, newest first. The size is read before the index's reach, so that nothing
    /// falls between.
    pub(super) async fn list(&self, query: &Query) -> Result<Vec<StoredEntry>, StoreError> {
        if let Some(serial) = &query.filter.serial {
            return Ok(query.alone(self.by_serial(serial).await?));
        }
        let size = self.size().await?;
        let minimum = super::tree::minimum(&mut *self.log.acquire().await?).await?;
        // One snapshot of the index for its reach and its rows: a rebuild may empty it.
        let mut index = match &self.index {
            Some(index) => Some(index.begin().await?),
            None => None,
        };
        let reach = match &mut index {
            Some(index) => indexed(index).await?,
            None => 0,
        };
        let mut files = Files {
            log: &self.log,
            index: index.as_deref_mut(),
        };
        let extent = Extent {
            size,
            minimum,
            indexed: reach,
        };
        index::list(query, extent, &mut files).await
    }
}

pub(super) async fn indexed(index: &mut SqliteConnection) -> Result<u64, StoreError> {
    let indexed: i64 = sqlx::query_scalar("SELECT indexed FROM source")
        .fetch_one(index)
        .await?;
    Ok(indexed.unsigned_abs())
}

/// Both files; of the index one snapshot.
struct Files<'a> {
    log: &'a SqlitePool,
    index: Option<&'a mut SqliteConnection>,
}

// === impl Files ===

#[async_trait]
impl Index for Files<'_> {
    async fn below(
        &mut self,
        before: u64,
        floor: u64,
        limit: usize,
    ) -> Result<Vec<StoredEntry>, StoreError> {
        let rows: Vec<(i64, Vec<u8>)> = sqlx::query_as(
            "SELECT idx, bytes FROM entries WHERE idx >= ? AND idx < ? ORDER BY idx DESC LIMIT ?",
        )
        .bind(i64::try_from(floor).unwrap_or(i64::MAX))
        .bind(i64::try_from(before).unwrap_or(i64::MAX))
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(self.log)
        .await?;
        Ok(rows.into_iter().map(StoredEntry::from).collect())
    }

    async fn load(&mut self, indexes: &[u64]) -> Result<Vec<StoredEntry>, StoreError> {
        let list: Vec<_> = indexes.iter().map(u64::to_string).collect();
        let rows: Vec<(i64, Vec<u8>)> = sqlx::query_as(
            "SELECT e.idx, e.bytes FROM json_each(?) wanted \
             CROSS JOIN entries e ON e.idx = wanted.value ORDER BY wanted.key",
        )
        .bind(format!("[{}]", list.join(",")))
        .fetch_all(self.log)
        .await?;
        Ok(rows.into_iter().map(StoredEntry::from).collect())
    }

    async fn epochs(&mut self, last: i64, filter: &Filter) -> Result<Vec<i64>, StoreError> {
        let Some(index) = self.index.as_deref_mut() else {
            return Ok(Vec::new());
        };
        let mut sql = QueryBuilder::new("SELECT epoch FROM epochs e WHERE epoch <= ");
        sql.push_bind(last);
        push(&mut sql, on_bounds(filter));
        sql.push(" ORDER BY epoch DESC");
        Ok(sql.build_query_scalar().fetch_all(index).await?)
    }

    async fn candidates(
        &mut self,
        before: u64,
        filter: &Filter,
        limit: usize,
    ) -> Result<Vec<u64>, StoreError> {
        let Some(index) = self.index.as_deref_mut() else {
            return Ok(Vec::new());
        };
        let table = if filter.spki_sha256.is_some() {
            "keys"
        } else {
            "issued"
        };
        let mut sql = QueryBuilder::new("SELECT i.idx FROM epochs e CROSS JOIN ");
        sql.push(table)
            .push(" i ON i.epoch = e.epoch WHERE e.epoch <= ");
        sql.push_bind(index::epoch(before));
        push(&mut sql, on_bounds(filter));
        if let Some(key) = &filter.spki_sha256 {
            sql.push(" AND i.spki = ").push_bind(index::key_column(key));
        } else {
            sql.push(" AND i.subject IN (SELECT id FROM subjects WHERE true");
            push(&mut sql, on_subjects(filter));
            sql.push(")");
            push(&mut sql, on_validity(filter));
        }
        sql.push(" AND i.idx < ").push_bind(before.cast_signed());
        sql.push(" ORDER BY e.epoch DESC, i.idx DESC LIMIT ");
        sql.push_bind(i64::try_from(limit).unwrap_or(i64::MAX));
        let found: Vec<i64> = sql
            .build_query_scalar()
            .persistent(false)
            .fetch_all(index)
            .await?;
        Ok(found.into_iter().map(i64::unsigned_abs).collect())
    }
}

/// Adds ` AND <comparison> ?` for each condition.
fn push(sql: &mut QueryBuilder<Sqlite>, conditions: Vec<Condition<'_>>) {
    for (comparison, value) in conditions {
        sql.push(" AND ").push(comparison);
        match value {
            Value::Integer(number) => sql.push_bind(number),
            Value::Text(text) => sql.push_bind(text.to_owned()),
            Value::EndOf(prefix) => sql.push_bind(format!("{prefix}\u{10FFFF}")),
            Value::Bytes(bytes) => sql.push_bind(bytes.to_vec()),
        };
    }
}
