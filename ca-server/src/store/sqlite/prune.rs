//! The index forgets what retention took away.

use sqlx::{Connection as _, SqliteConnection};

use crate::store::{
    StoreError,
    index::{epoch, epoch_ends_at},
};

/// Takes the rows of entries below this index away, and subjects that nobody is any more: an
/// epoch a transaction, so that each leaves an index that is whole.
pub(super) async fn prune(
    connection: &mut SqliteConnection,
    minimum: u64,
) -> Result<(), StoreError> {
    let epochs: Vec<i64> =
        sqlx::query_scalar("SELECT epoch FROM epochs WHERE epoch <= ? ORDER BY epoch")
            .bind(epoch(minimum))
            .fetch_all(&mut *connection)
            .await?;
    for epoch in epochs {
        prune_epoch(connection, epoch, minimum).await?;
    }
    sqlx::query("UPDATE source SET indexed = ?1 WHERE indexed < ?1")
        .bind(minimum.cast_signed())
        .execute(connection)
        .await?;
    Ok(())
}

async fn prune_epoch(
    connection: &mut SqliteConnection,
    epoch: i64,
    minimum: u64,
) -> Result<(), StoreError> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    let subjects: Vec<i64> =
        sqlx::query_scalar("SELECT DISTINCT subject FROM issued WHERE epoch = ? AND idx < ?")
            .bind(epoch)
            .bind(minimum.cast_signed())
            .fetch_all(&mut *transaction)
            .await?;
    for sql in [
        "DELETE FROM issued WHERE epoch = ? AND idx < ?",
        "DELETE FROM keys WHERE epoch = ? AND idx < ?",
    ] {
        sqlx::query(sql)
            .bind(epoch)
            .bind(minimum.cast_signed())
            .execute(&mut *transaction)
            .await?;
    }
    if epoch_ends_at(epoch) <= minimum {
        sqlx::query("DELETE FROM epochs WHERE epoch = ?")
            .bind(epoch)
            .execute(&mut *transaction)
            .await?;
    }
    let list: Vec<_> = subjects.iter().map(i64::to_string).collect();
    // One seek an epoch; the first one ends it for whoever lives.
    sqlx::query(
        "DELETE FROM subjects WHERE id IN (SELECT value FROM json_each(?)) \
         AND NOT EXISTS (SELECT 1 FROM epochs e CROSS JOIN issued i \
                         ON i.epoch = e.epoch AND i.subject = subjects.id)",
    )
    .bind(format!("[{}]", list.join(",")))
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(())
}
