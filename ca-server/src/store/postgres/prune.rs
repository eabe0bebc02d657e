//! The index forgets what retention took away.

use sqlx::{Connection as _, PgConnection};

use crate::store::{
    StoreError,
    index::{epoch, epoch_ends_at},
};

/// Takes the rows of entries below this index away, and subjects that nobody is any more: an
/// epoch a transaction, so that each leaves an index that is whole.
pub(super) async fn prune(connection: &mut PgConnection, minimum: u64) -> Result<(), StoreError> {
    let epochs: Vec<i64> =
        sqlx::query_scalar("SELECT epoch FROM index_epochs WHERE epoch <= $1 ORDER BY epoch")
            .bind(epoch(minimum))
            .fetch_all(&mut *connection)
            .await?;
    for epoch in epochs {
        prune_epoch(connection, epoch, minimum).await?;
    }
    Ok(())
}

async fn prune_epoch(
    connection: &mut PgConnection,
    epoch: i64,
    minimum: u64,
) -> Result<(), StoreError> {
    let mut transaction = connection.begin().await?;
    sqlx::query("SET LOCAL synchronous_commit = off")
        .execute(&mut *transaction)
        .await?;
    // The lock of whoever changes the index. Ids of subjects that servers have in memory mean
    // nothing from here on.
    sqlx::query("UPDATE index_source SET generation = generation + 1")
        .execute(&mut *transaction)
        .await?;
    let minimum_row = minimum.cast_signed();
    if epoch_ends_at(epoch) <= minimum {
        sqlx::query("DELETE FROM index_epochs WHERE epoch = $1")
            .bind(epoch)
            .execute(&mut *transaction)
            .await?;
    }
    let subjects: Vec<i64> = sqlx::query_scalar(
        "SELECT DISTINCT subject FROM index_issued WHERE epoch = $1 AND idx < $2",
    )
    .bind(epoch)
    .bind(minimum_row)
    .fetch_all(&mut *transaction)
    .await?;
    for sql in [
        "DELETE FROM index_issued WHERE epoch = $1 AND idx < $2",
        "DELETE FROM index_keys WHERE epoch = $1 AND idx < $2",
    ] {
        sqlx::query(sql)
            .bind(epoch)
            .bind(minimum_row)
            .execute(&mut *transaction)
            .await?;
    }
    sqlx::query(
        "DELETE FROM index_subjects s WHERE s.id = ANY ($1) \
         AND NOT EXISTS (SELECT FROM index_issued i WHERE i.subject = s.id)",
    )
    .bind(subjects)
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(())
}
