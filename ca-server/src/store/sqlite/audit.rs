//! What an auditor compares: serials beside the entries, and the index epoch by epoch.

use std::collections::HashMap;

use sqlx::{AssertSqlSafe, Row as _, SqliteConnection, sqlite::SqliteRow};

use super::{
    index_file::Unfit,
    select::{Reader, indexed},
};
use crate::store::{
    AuditedEntry, IndexedEpoch, StoreError, SubjectRow,
    audit::{AuditedRow, Stray},
    index::{Bounds, BoundsRow, Digest, EpochRows, digest, epoch},
};

impl Reader {
    /// The serial is looked up as [`Reader::by_serial`] does: in the index that SQLite keeps
    /// of the column, not in the row.
    pub(super) async fn audit(
        &self,
        from: u64,
        limit: usize,
    ) -> Result<Vec<AuditedEntry>, StoreError> {
        let rows: Vec<AuditedRow> = sqlx::query_as(
            "SELECT e.idx, e.serial, e.bytes, \
                    (SELECT s.idx FROM entries s WHERE s.serial = e.serial) \
             FROM entries e WHERE e.idx >= ? ORDER BY e.idx LIMIT ?",
        )
        .bind(i64::try_from(from).unwrap_or(i64::MAX))
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(self.log())
        .await?;
        Ok(rows.into_iter().map(AuditedEntry::from).collect())
    }

    pub(super) async fn indexed_epoch(
        &self,
        epoch: i64,
    ) -> Result<Option<IndexedEpoch>, StoreError> {
        let Some(index) = self.index() else {
            return Ok(None);
        };
        let mut snapshot = index.begin().await?;
        let reach = indexed(&mut snapshot).await?;
        let issued = sqlx::query_as(
            "SELECT subject, idx, not_before, not_after FROM issued WHERE epoch = ?",
        )
        .bind(epoch)
        .fetch_all(&mut *snapshot)
        .await?;
        let keys = sqlx::query_as("SELECT spki, idx FROM keys WHERE epoch = ?")
            .bind(epoch)
            .fetch_all(&mut *snapshot)
            .await?;
        let bounds: Option<BoundsRow> = sqlx::query_as(
            "SELECT min_time_ms, max_time_ms, min_not_before, min_not_after, max_not_after \
             FROM epochs WHERE epoch = ?",
        )
        .bind(epoch)
        .fetch_optional(&mut *snapshot)
        .await?;
        Ok(Some(IndexedEpoch(EpochRows {
            reach,
            issued,
            keys,
            bounds: bounds.map(Bounds::from_row),
            subjects: subjects(epoch, &mut snapshot).await?,
        })))
    }

    pub(super) async fn stray_index_row(&self) -> Result<Option<Stray>, StoreError> {
        match self.unused() {
            Some(Unfit::OtherLog) => {
                return Ok(Some(Stray::OtherLog));
            }
            Some(Unfit::Damaged(why)) => {
                return Ok(Some(Stray::Damaged(why.clone())));
            }
            Some(Unfit::OtherVersion) | None => {}
        }
        let Some(index) = self.index() else {
            return Ok(None);
        };
        let mut snapshot = index.begin().await?;
        let reach = indexed(&mut snapshot).await?;
        if reach > self.size().await? {
            return Ok(Some(Stray::Reach(reach)));
        }
        let last = reach.checked_sub(1).map_or(-1, epoch);
        for table in ["issued", "keys", "epochs"] {
            let sql = format!("SELECT epoch FROM {table} WHERE epoch < 0 OR epoch > ? LIMIT 1");
            let stray: Option<i64> = sqlx::query_scalar(AssertSqlSafe(sql))
                .bind(last)
                .fetch_optional(&mut *snapshot)
                .await?;
            if let Some(epoch) = stray {
                return Ok(Some(Stray::Epoch { table, epoch }));
            }
        }
        let nobody: Option<i64> = sqlx::query_scalar(
            "SELECT id FROM subjects WHERE id NOT IN (SELECT subject FROM issued) LIMIT 1",
        )
        .fetch_optional(&mut *snapshot)
        .await?;
        if let Some(id) = nobody {
            return Ok(Some(Stray::Subject(id)));
        }
        // The columns by which subjects are found are kept in B-trees of their own.
        let word: String = sqlx::query_scalar("PRAGMA integrity_check(subjects)")
            .fetch_one(&mut *snapshot)
            .await?;
        Ok((word != "ok").then_some(Stray::Subjects(word)))
    }
}

/// The subjects that an epoch's rows name.
async fn subjects(
    epoch: i64,
    index: &mut SqliteConnection,
) -> Result<HashMap<i64, (Vec<u8>, Digest)>, StoreError> {
    let rows = sqlx::query(
        "SELECT id, digest, trust_domain, spiffe_id, certificate_use, cluster, namespace, \
                account, account_uid, pod, pod_uid, node, node_uid, issuer_key_id \
         FROM subjects WHERE id IN (SELECT DISTINCT subject FROM issued WHERE epoch = ?)",
    )
    .bind(epoch)
    .fetch_all(index)
    .await?;
    rows.iter()
        .map(|row| Ok((row.try_get(0)?, (row.try_get(1)?, digest(&subject(row)?)))))
        .collect()
}

fn subject(row: &SqliteRow) -> Result<SubjectRow, StoreError> {
    // What is damaged may be no UTF-8 any more: it then differs from what it should be.
    let text = |at: usize| -> Result<String, StoreError> {
        Ok(String::from_utf8_lossy(row.try_get(at)?).into_owned())
    };
    Ok(SubjectRow {
        trust_domain: text(2)?,
        spiffe_id: text(3)?,
        // One that does not fit is none that an entry has.
        certificate_use: i32::try_from(row.try_get::<i64, _>(4)?).unwrap_or(i32::MIN),
        cluster: text(5)?,
        namespace: text(6)?,
        account: text(7)?,
        account_uid: text(8)?,
        pod: text(9)?,
        pod_uid: text(10)?,
        node: text(11)?,
        node_uid: text(12)?,
        issuer_key_id: row.try_get(13)?,
    })
}
