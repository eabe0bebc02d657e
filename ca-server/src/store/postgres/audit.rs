//! What an auditor compares: serials beside the entries, and the index epoch by epoch.

use std::{collections::HashMap, time::Duration};

use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _, postgres::PgRow};
use tokio::time::timeout;

use super::{
    indexer::VERSION,
    select::{Reader, lock_index},
};
use crate::store::{
    AuditedEntry, IndexedEpoch, StoreError, SubjectRow,
    audit::{AuditedRow, Stray},
    index::{Bounds, BoundsRow, Digest, EpochRows, digest, epoch},
};

/// A whole table may be read.
const PATIENCE: Duration = Duration::from_secs(600);

impl Reader {
    /// The serial is looked up as [`Reader::by_serial`] does.
    pub(super) async fn audit(
        &self,
        from: u64,
        limit: usize,
    ) -> Result<Vec<AuditedEntry>, StoreError> {
        let mut lease = self.lease().await?;
        let question = sqlx::query_as(
            "SELECT e.idx, e.serial, e.bytes, \
                    (SELECT s.idx FROM entries s WHERE s.serial = e.serial) \
             FROM entries e WHERE e.idx >= $1 ORDER BY e.idx LIMIT $2",
        )
        .bind(i64::try_from(from).unwrap_or(i64::MAX))
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(lease.connection()?);
        let rows: Vec<AuditedRow> = self.within(question).await??;
        lease.give_back();
        Ok(rows.into_iter().map(AuditedEntry::from).collect())
    }

    pub(super) async fn indexed_epoch(
        &self,
        epoch: i64,
    ) -> Result<Option<IndexedEpoch>, StoreError> {
        let mut lease = self.lease().await?;
        let reading = epoch_rows(lease.connection()?, epoch);
        let rows = patiently(self, reading).await?;
        lease.give_back();
        Ok(rows.map(IndexedEpoch))
    }

    pub(super) async fn stray_index_row(&self) -> Result<Option<Stray>, StoreError> {
        let mut lease = self.lease().await?;
        let reading = stray(lease.connection()?);
        let found = patiently(self, reading).await?;
        lease.give_back();
        Ok(found)
    }
}

async fn patiently<T>(
    reader: &Reader,
    reading: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    timeout(PATIENCE, reading).await.map_err(|_| {
        let options = reader.options();
        StoreError::Unavailable(format!("{options}: no answer within {PATIENCE:?}"))
    })?
}

/// A snapshot of the index, and how far it reaches; `None` where it is of another version.
async fn begin(
    connection: &mut PgConnection,
) -> Result<(sqlx::Transaction<'_, sqlx::Postgres>, Option<u64>), StoreError> {
    let mut snapshot = connection
        .begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        .await?;
    sqlx::query(AssertSqlSafe(format!(
        "SET LOCAL statement_timeout = {}",
        PATIENCE.as_millis()
    )))
    .execute(&mut *snapshot)
    .await?;
    lock_index(&mut snapshot).await?;
    let (indexed, version): (i64, i32) =
        sqlx::query_as("SELECT indexed, version FROM index_source")
            .fetch_one(&mut *snapshot)
            .await?;
    let reach = (version == VERSION).then_some(indexed.unsigned_abs());
    Ok((snapshot, reach))
}

async fn epoch_rows(
    connection: &mut PgConnection,
    epoch: i64,
) -> Result<Option<EpochRows>, StoreError> {
    let (mut snapshot, reach) = begin(connection).await?;
    let Some(reach) = reach else {
        return Ok(None);
    };
    let issued = sqlx::query_as(
        "SELECT subject, idx, not_before, not_after FROM index_issued WHERE epoch = $1",
    )
    .bind(epoch)
    .fetch_all(&mut *snapshot)
    .await?;
    let keys = sqlx::query_as("SELECT spki, idx FROM index_keys WHERE epoch = $1")
        .bind(epoch)
        .fetch_all(&mut *snapshot)
        .await?;
    let bounds: Option<BoundsRow> = sqlx::query_as(
        "SELECT min_time_ms, max_time_ms, min_not_before, min_not_after, max_not_after \
         FROM index_epochs WHERE epoch = $1",
    )
    .bind(epoch)
    .fetch_optional(&mut *snapshot)
    .await?;
    let rows = EpochRows {
        reach,
        issued,
        keys,
        bounds: bounds.map(Bounds::from_row),
        subjects: subjects(epoch, &mut snapshot).await?,
    };
    snapshot.commit().await?;
    Ok(Some(rows))
}

async fn stray(connection: &mut PgConnection) -> Result<Option<Stray>, StoreError> {
    let (mut snapshot, reach) = begin(connection).await?;
    let Some(reach) = reach else {
        return Ok(None);
    };
    let size: i64 = sqlx::query_scalar("SELECT size FROM head")
        .fetch_one(&mut *snapshot)
        .await?;
    if reach > size.unsigned_abs() {
        return Ok(Some(Stray::Reach(reach)));
    }
    let last = reach.checked_sub(1).map_or(-1, epoch);
    for table in ["index_issued", "index_keys", "index_epochs"] {
        let sql = format!("SELECT epoch FROM {table} WHERE epoch < 0 OR epoch > $1 LIMIT 1");
        let stray: Option<i64> = sqlx::query_scalar(AssertSqlSafe(sql))
            .bind(last)
            .fetch_optional(&mut *snapshot)
            .await?;
        if let Some(epoch) = stray {
            return Ok(Some(Stray::Epoch { table, epoch }));
        }
    }
    let nobody: Option<i64> = sqlx::query_scalar(
        "SELECT s.id FROM index_subjects s \
         WHERE NOT EXISTS (SELECT FROM index_issued i WHERE i.subject = s.id) LIMIT 1",
    )
    .fetch_optional(&mut *snapshot)
    .await?;
    snapshot.commit().await?;
    Ok(nobody.map(Stray::Subject))
}

/// The subjects that an epoch's rows name.
async fn subjects(
    epoch: i64,
    connection: &mut PgConnection,
) -> Result<HashMap<i64, (Vec<u8>, Digest)>, StoreError> {
    let rows = sqlx::query(
        "SELECT id, digest, trust_domain, spiffe_id, certificate_use, cluster, namespace, \
                account, account_uid, pod, pod_uid, node, node_uid, issuer_key_id \
         FROM index_subjects \
         WHERE id IN (SELECT subject FROM index_issued WHERE epoch = $1)",
    )
    .bind(epoch)
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| Ok((row.try_get(0)?, (row.try_get(1)?, digest(&subject(row)?)))))
        .collect()
}

fn subject(row: &PgRow) -> Result<SubjectRow, StoreError> {
    Ok(SubjectRow {
        trust_domain: row.try_get(2)?,
        spiffe_id: row.try_get(3)?,
        certificate_use: row.try_get(4)?,
        cluster: row.try_get(5)?,
        namespace: row.try_get(6)?,
        account: row.try_get(7)?,
        account_uid: row.try_get(8)?,
        pod: row.try_get(9)?,
        pod_uid: row.try_get(10)?,
        node: row.try_get(11)?,
        node_uid: row.try_get(12)?,
        issuer_key_id: row.try_get(13)?,
    })
}
