//! The tree's tables: the writer grows them, readers look at them.

use citadel_ledger::Tile;
use sqlx::{Connection as _, SqliteConnection, SqlitePool};

use crate::store::{
    Growth, StoreError, TreeState,
    tree::{cut, tile_id},
    writer::PRUNE_STEP,
};

pub(super) async fn state(log: &SqlitePool) -> Result<TreeState, StoreError> {
    let (size, minimum, checkpoint): (i64, i64, Option<Vec<u8>>) =
        sqlx::query_as("SELECT size, minimum, checkpoint FROM tree")
            .fetch_one(log)
            .await?;
    Ok(TreeState {
        size: size.unsigned_abs(),
        minimum: minimum.unsigned_abs(),
        // What is damaged is no checkpoint any more; whoever opens it says so.
        checkpoint: checkpoint.map(|note| String::from_utf8_lossy(&note).into_owned()),
    })
}

/// See [`TreeState::minimum`].
pub(super) async fn minimum(connection: &mut SqliteConnection) -> Result<u64, StoreError> {
    let minimum: i64 = sqlx::query_scalar("SELECT minimum FROM tree")
        .fetch_one(connection)
        .await?;
    Ok(minimum.unsigned_abs())
}

/// One step of retention; `None` where the tree can't have this minimum index.
pub(super) async fn prune(
    connection: &mut SqliteConnection,
    minimum: u64,
) -> Result<Option<u64>, sqlx::Error> {
    let minimum = minimum.cast_signed();
    sqlx::query("UPDATE tree SET minimum = ?1 WHERE minimum < ?1 AND size >= ?1 AND ?1 % 256 = 0")
        .bind(minimum)
        .execute(&mut *connection)
        .await?;
    let reached: i64 = sqlx::query_scalar("SELECT minimum FROM tree")
        .fetch_one(&mut *connection)
        .await?;
    if reached < minimum {
        return Ok(None);
    }
    let gone = sqlx::query(
        "DELETE FROM entries WHERE idx IN (SELECT idx FROM entries \
           WHERE idx < ? AND serial IS NOT NULL ORDER BY idx LIMIT ?)",
    )
    .bind(minimum)
    .bind(PRUNE_STEP)
    .execute(connection)
    .await?;
    Ok(Some(gone.rows_affected()))
}

/// The contents, in the order of the tiles.
pub(super) async fn tiles(log: &SqlitePool, tiles: &[Tile]) -> Result<Vec<Vec<u8>>, StoreError> {
    let mut connection = log.acquire().await?;
    let mut contents = Vec::with_capacity(tiles.len());
    for tile in tiles {
        let row: Option<Vec<u8>> = sqlx::query_scalar("SELECT hashes FROM tiles WHERE id = ?")
            .bind(tile_id(*tile))
            .fetch_optional(&mut *connection)
            .await?;
        let content = row.and_then(|row| cut(*tile, row));
        contents.push(content.ok_or(StoreError::MissingTile(*tile))?);
    }
    Ok(contents)
}

/// One step, all of it or nothing; false where it does not follow on what is there.
pub(super) async fn integrate(
    connection: &mut SqliteConnection,
    growth: &Growth,
) -> Result<bool, sqlx::Error> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    let moved =
        sqlx::query("UPDATE tree SET size = ?, checkpoint = ? WHERE size = ? AND checkpoint IS ?")
            .bind(growth.to.cast_signed())
            .bind(growth.checkpoint.as_bytes())
            .bind(growth.from.cast_signed())
            .bind(growth.previous.as_ref().map(String::as_bytes))
            .execute(&mut *transaction)
            .await?;
    if moved.rows_affected() != 1 {
        return Ok(false);
    }
    for (tile, content) in &growth.tiles {
        sqlx::query(
            "INSERT INTO tiles (id, hashes) VALUES (?, ?) \
             ON CONFLICT (id) DO UPDATE SET hashes = excluded.hashes",
        )
        .bind(tile_id(*tile))
        .bind(content.as_slice())
        .execute(&mut *transaction)
        .await?;
    }
    transaction.commit().await?;
    Ok(true)
}
