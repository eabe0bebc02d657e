//! The tree's tables: the writer grows them, readers look at them.

use std::time::Duration;

use citadel_ledger::Tile;
use sqlx::{AssertSqlSafe, Postgres, postgres::PgArguments, query::Query};

use super::{connect, select::Reader};
use crate::store::{
    Growth, StoreError, TreeState,
    tree::{cut, tile_id},
    writer::PRUNE_STEP,
};

/// One step, all of it or nothing: no row where it does not follow on what is there, nor
/// where the commit would not be durable.
pub(super) fn integrate(growth: &Growth) -> Query<'_, Postgres, PgArguments> {
    let ids: Vec<i64> = growth
        .tiles
        .iter()
        .map(|(tile, _)| tile_id(*tile))
        .collect();
    let hashes: Vec<&[u8]> = growth
        .tiles
        .iter()
        .map(|(_, hashes)| hashes.as_slice())
        .collect();
    let sql = format!(
        "WITH moved AS ( \
           UPDATE tree SET size = $2, checkpoint = $3 \
           WHERE size = $1 AND checkpoint IS NOT DISTINCT FROM $6 AND {} \
           RETURNING size \
         ), kept AS ( \
           INSERT INTO tiles (id, hashes) \
           SELECT new.id, new.hashes \
           FROM moved CROSS JOIN unnest($4::bigint[], $5::bytea[]) AS new (id, hashes) \
           ON CONFLICT (id) DO UPDATE SET hashes = excluded.hashes \
         ) \
         SELECT size FROM moved",
        connect::DURABLE
    );
    sqlx::query(AssertSqlSafe(sql))
        .bind(growth.from.cast_signed())
        .bind(growth.to.cast_signed())
        .bind(growth.checkpoint.as_bytes())
        .bind(ids)
        .bind(hashes)
        .bind(growth.previous.as_ref().map(String::as_bytes))
}

impl Reader {
    pub(super) async fn tree(&self) -> Result<TreeState, StoreError> {
        let mut lease = self.lease().await?;
        let question = sqlx::query_as("SELECT size, minimum, checkpoint FROM tree")
            .fetch_one(lease.connection()?);
        let (size, minimum, checkpoint): (i64, i64, Option<Vec<u8>>) =
            self.within(question).await??;
        lease.give_back();
        Ok(TreeState {
            size: size.unsigned_abs(),
            minimum: minimum.unsigned_abs(),
            // What is damaged is no checkpoint any more; whoever opens it says so.
            checkpoint: checkpoint.map(|note| String::from_utf8_lossy(&note).into_owned()),
        })
    }

    pub(super) async fn tiles(&self, tiles: &[Tile]) -> Result<Vec<Vec<u8>>, StoreError> {
        let ids: Vec<i64> = tiles.iter().map(|tile| tile_id(*tile)).collect();
        let mut lease = self.lease().await?;
        let question = sqlx::query_scalar(
            "SELECT t.hashes FROM unnest($1::bigint[]) WITH ORDINALITY AS wanted (id, place) \
             LEFT JOIN tiles t ON t.id = wanted.id ORDER BY wanted.place",
        )
        .bind(ids)
        .fetch_all(lease.connection()?);
        let rows: Vec<Option<Vec<u8>>> = self.within(question).await??;
        lease.give_back();
        tiles
            .iter()
            .zip(rows)
            .map(|(tile, row)| {
                row.and_then(|row| cut(*tile, row))
                    .ok_or(StoreError::MissingTile(*tile))
            })
            .collect()
    }

    pub(super) async fn log_id(&self) -> Result<Vec<u8>, StoreError> {
        let mut lease = self.lease().await?;
        let question = sqlx::query_scalar("SELECT log_id FROM head").fetch_one(lease.connection()?);
        let log_id = self.within(question).await??;
        lease.give_back();
        Ok(log_id)
    }
}

/// Raises the minimum index, where the tree covers it.
pub(super) fn raise(minimum: i64) -> Query<'static, Postgres, PgArguments> {
    sqlx::query("UPDATE tree SET minimum = greatest(minimum, $1) WHERE size >= $1 AND $1 % 256 = 0")
        .bind(minimum)
}

/// One step of retention below the minimum index. What another server is taking away is left
/// to it: waited for, it would be gone, and this step would look like the end.
pub(super) fn prune(minimum: i64) -> Query<'static, Postgres, PgArguments> {
    sqlx::query(
        "DELETE FROM entries WHERE idx IN (SELECT e.idx FROM entries e, tree t \
           WHERE e.idx < least($1, t.minimum) AND e.serial IS NOT NULL \
           ORDER BY e.idx LIMIT $2 FOR UPDATE OF e SKIP LOCKED)",
    )
    .bind(minimum)
    .bind(PRUNE_STEP)
}

/// Takes the task of growing the tree where nobody has it, or goes on having it: one row then.
pub(super) fn lease(holder: &str, time: Duration) -> Query<'_, Postgres, PgArguments> {
    // The database's clock alone counts.
    sqlx::query(
        "UPDATE tree SET holder = $1, lease_until = clock_timestamp() + $2 * interval '1 second' \
         WHERE holder = $1 OR lease_until < clock_timestamp()",
    )
    .bind(holder)
    .bind(time.as_secs_f64())
}
