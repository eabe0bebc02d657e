//! Reads the log and its index.

use std::sync::Arc;

use async_trait::async_trait;
use sqlx::{Connection as _, PgConnection, PgPool, Postgres, QueryBuilder, pool::PoolConnection};
use tokio::time::timeout;

use super::{
    connect,
    indexer::VERSION,
    options::{PostgresOptions, Role},
    texts,
};
use crate::store::{
    Filter, Query, StoreError, StoredEntry,
    index::{self, Condition, Extent, Index, Value, on_bounds, on_subjects, on_validity},
};

#[derive(Debug)]
pub(super) struct Reader {
    options: Arc<PostgresOptions>,
    role: Role,
    pool: PgPool,
}

// === impl Reader ===

impl Reader {
    pub(super) fn new(options: Arc<PostgresOptions>, role: Role) -> Result<Self, StoreError> {
        let pool = connect::readers(&options, role)?;
        Ok(Self {
            options,
            role,
            pool,
        })
    }

    pub(super) async fn check_schema(&self) -> Result<(), StoreError> {
        let mut lease = self.lease().await?;
        let checking = connect::check_schema(lease.connection()?);
        self.within(checking).await??;
        lease.give_back();
        Ok(())
    }

    pub(super) async fn close(&self) {
        self.pool.close().await;
    }

    pub(super) async fn size(&self) -> Result<u64, StoreError> {
        let mut lease = self.lease().await?;
        let question =
            sqlx::query_scalar::<_, i64>("SELECT size FROM head").fetch_one(lease.connection()?);
        let size = within(&self.options, question).await??;
        lease.give_back();
        Ok(size.unsigned_abs())
    }

    pub(super) async fn read(
        &self,
        from: u64,
        limit: usize,
    ) -> Result<Vec<StoredEntry>, StoreError> {
        let mut lease = self.lease().await?;
        let question = entries(lease.connection()?, from, limit);
        let entries = within(&self.options, question).await??;
        lease.give_back();
        Ok(entries)
    }

    pub(super) async fn by_serial(&self, serial: &[u8]) -> Result<Option<StoredEntry>, StoreError> {
        let mut lease = self.lease().await?;
        let question = sqlx::query_as("SELECT idx, bytes FROM entries WHERE serial = $1")
            .bind(serial)
            .fetch_optional(lease.connection()?);
        let row: Option<(i64, Vec<u8>)> = within(&self.options, question).await??;
        lease.give_back();
        Ok(row.map(StoredEntry::from))
    }

    pub(super) fn options(&self) -> &PostgresOptions {
        &self.options
    }

    /// One page, newest first, of one snapshot of log and index.
    pub(super) async fn list(&self, query: &Query) -> Result<Vec<StoredEntry>, StoreError> {
        if let Some(serial) = &query.filter.serial {
            return Ok(query.alone(self.by_serial(serial).await?));
        }
        let mut lease = self.lease().await?;
        let beginning = lease
            .connection()?
            .begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY");
        let mut transaction = within(&self.options, beginning).await??;
        let mut snapshot = Snapshot {
            options: &self.options,
            connection: &mut transaction,
        };
        let extent = snapshot.extent().await?;
        let page = index::list(query, extent, &mut snapshot).await?;
        within(&self.options, transaction.commit()).await??;
        lease.give_back();
        Ok(page)
    }

    /// A connection. One that is refused for its password may have been configured before
    /// that changed.
    pub(super) async fn lease(&self) -> Result<Lease, StoreError> {
        let first = match self.pool.acquire().await {
            Ok(connection) => return Ok(Lease(Some(connection))),
            Err(sqlx::Error::PoolClosed) => return Err(StoreError::Closed),
            Err(sqlx::Error::PoolTimedOut) => {
                return Err(StoreError::Unavailable(format!(
                    "{}: no connection within {:?}",
                    self.options, self.options.deadline
                )));
            }
            Err(first) => first,
        };
        tracing::debug!(error = %first, "connecting again with the password as it is now");
        self.pool
            .set_connect_options(self.options.connect_options(self.role)?);
        Ok(Lease(Some(self.pool.acquire().await?)))
    }
}

impl Reader {
    /// See [`within`].
    pub(super) async fn within<T>(
        &self,
        question: impl Future<Output = T>,
    ) -> Result<T, StoreError> {
        within(&self.options, question).await
    }
}

/// A server that hangs without a word ends no question.
async fn within<T>(
    options: &PostgresOptions,
    question: impl Future<Output = T>,
) -> Result<T, StoreError> {
    let patience = options.patience(Role::Reader);
    timeout(patience, question)
        .await
        .map_err(|_| StoreError::Unavailable(format!("{options}: no answer within {patience:?}")))
}

/// A pool's connection. It goes back only when its question was answered to the end: the
/// pool would wait, without a limit, for an answer that nobody else waits for any more.
pub(super) struct Lease(Option<PoolConnection<Postgres>>);

// === impl Lease ===

impl Lease {
    pub(super) fn connection(&mut self) -> Result<&mut PgConnection, StoreError> {
        self.0.as_deref_mut().ok_or(StoreError::Closed)
    }

    pub(super) fn give_back(mut self) {
        drop(self.0.take());
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        drop(self.0.take().map(PoolConnection::detach));
    }
}

pub(super) async fn entries(
    connection: &mut PgConnection,
    from: u64,
    limit: usize,
) -> Result<Vec<StoredEntry>, StoreError> {
    let rows: Vec<(i64, Vec<u8>)> =
        sqlx::query_as("SELECT idx, bytes FROM entries WHERE idx >= $1 ORDER BY idx LIMIT $2")
            .bind(i64::try_from(from).unwrap_or(i64::MAX))
            .bind(i64::try_from(limit).unwrap_or(i64::MAX))
            .fetch_all(connection)
            .await?;
    Ok(rows.into_iter().map(StoredEntry::from).collect())
}

/// Before a snapshot of the index is taken: a rebuild truncates these tables, which a snapshot
/// from before it would see as empty. In the order in which that locks them.
pub(super) async fn lock_index(connection: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query(
        "LOCK TABLE index_epochs, index_subjects, index_issued, index_keys IN ACCESS SHARE MODE",
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Log and index in one snapshot.
struct Snapshot<'a> {
    options: &'a PostgresOptions,
    connection: &'a mut PgConnection,
}

// === impl Snapshot ===

impl Snapshot<'_> {
    async fn extent(&mut self) -> Result<Extent, StoreError> {
        within(self.options, lock_index(&mut *self.connection)).await??;
        let question = sqlx::query_as(
            "SELECT head.size, tree.minimum, index_source.indexed, index_source.version \
             FROM head, tree, index_source",
        )
        .fetch_one(&mut *self.connection);
        let (size, minimum, indexed, version): (i64, i64, i64, i32) =
            within(self.options, question).await??;
        // An index of another version means something else: then the log alone answers.
        let indexed = if version == VERSION { indexed } else { 0 };
        Ok(Extent {
            size: size.unsigned_abs(),
            minimum: minimum.unsigned_abs(),
            indexed: indexed.unsigned_abs(),
        })
    }
}

#[async_trait]
impl Index for Snapshot<'_> {
    async fn below(
        &mut self,
        before: u64,
        floor: u64,
        limit: usize,
    ) -> Result<Vec<StoredEntry>, StoreError> {
        let question = sqlx::query_as(
            "SELECT idx, bytes FROM entries WHERE idx >= $1 AND idx < $2 ORDER BY idx DESC LIMIT $3",
        )
        .bind(i64::try_from(floor).unwrap_or(i64::MAX))
        .bind(i64::try_from(before).unwrap_or(i64::MAX))
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(&mut *self.connection);
        let rows: Vec<(i64, Vec<u8>)> = within(self.options, question).await??;
        Ok(rows.into_iter().map(StoredEntry::from).collect())
    }

    async fn load(&mut self, indexes: &[u64]) -> Result<Vec<StoredEntry>, StoreError> {
        let wanted: Vec<i64> = indexes.iter().map(|index| index.cast_signed()).collect();
        let question = sqlx::query_as(
            "SELECT e.idx, e.bytes \
             FROM unnest($1::bigint[]) WITH ORDINALITY AS wanted (idx, place) \
             JOIN entries e ON e.idx = wanted.idx ORDER BY wanted.place",
        )
        .bind(wanted)
        .fetch_all(&mut *self.connection);
        let rows: Vec<(i64, Vec<u8>)> = within(self.options, question).await??;
        Ok(rows.into_iter().map(StoredEntry::from).collect())
    }

    async fn epochs(&mut self, last: i64, filter: &Filter) -> Result<Vec<i64>, StoreError> {
        let mut sql = QueryBuilder::new("SELECT epoch FROM index_epochs e WHERE epoch <= ");
        sql.push_bind(last);
        push(&mut sql, on_bounds(filter));
        sql.push(" ORDER BY epoch DESC");
        let question = sql
            .build_query_scalar()
            .persistent(false)
            .fetch_all(&mut *self.connection);
        Ok(within(self.options, question).await??)
    }

    async fn candidates(
        &mut self,
        before: u64,
        filter: &Filter,
        limit: usize,
    ) -> Result<Vec<u64>, StoreError> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let mut sql = QueryBuilder::new(
            "SELECT c.idx FROM (SELECT epoch FROM index_epochs e WHERE e.epoch <= ",
        );
        sql.push_bind(index::epoch(before));
        push(&mut sql, on_bounds(filter));
        sql.push(" ORDER BY epoch DESC) e CROSS JOIN LATERAL (SELECT i.idx FROM ");
        if let Some(key) = &filter.spki_sha256 {
            sql.push("index_keys i WHERE i.epoch = e.epoch AND i.spki = ")
                .push_bind(index::key_column(key));
        } else {
            sql.push(
                "index_issued i WHERE i.epoch = e.epoch \
                 AND i.subject = ANY (ARRAY(SELECT id FROM index_subjects WHERE true",
            );
            push(&mut sql, on_subjects(filter));
            sql.push("))");
            push(&mut sql, on_validity(filter));
        }
        sql.push(" AND i.idx < ").push_bind(before.cast_signed());
        sql.push(" ORDER BY i.idx DESC LIMIT ").push_bind(limit);
        sql.push(") c ORDER BY e.epoch DESC, c.idx DESC LIMIT ")
            .push_bind(limit);
        let question = sql
            .build_query_scalar()
            .persistent(false)
            .fetch_all(&mut *self.connection);
        let found: Vec<i64> = within(self.options, question).await??;
        Ok(found.into_iter().map(i64::unsigned_abs).collect())
    }
}

/// Adds ` AND <comparison> $n` for each condition.
fn push(sql: &mut QueryBuilder<Postgres>, conditions: Vec<Condition<'_>>) {
    for (comparison, value) in conditions {
        sql.push(" AND ").push(comparison);
        match value {
            Value::Integer(number) => sql.push_bind(number),
            Value::Text(text) => sql.push_bind(texts::column(text)),
            Value::EndOf(prefix) => sql.push_bind(texts::end_of(prefix)),
            Value::Bytes(bytes) => sql.push_bind(bytes.to_vec()),
        };
    }
}
