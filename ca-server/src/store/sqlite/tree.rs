//! The tree's tables: the writer grows them, readers look at them.

use citadel_ledger::Tile;
use sqlx::{Connection as _, SqliteConnection, SqlitePool};

use crate::store::{
    Growth, StoreError, TreeState,
    tree::{cut, tile_id},
};

pub(super) async fn state(log: &SqlitePool) -> Result<TreeState, StoreError> {
    let (size, checkpoint): (i64, Option<Vec<u8>>) =
        sqlx::query_as("SELECT size, checkpoint FROM tree")
            .fetch_one(log)
            .await?;
    Ok(TreeState {
        size: size.unsigned_abs(),
        // What is damaged is no checkpoint any more; whoever opens it says so.
        checkpoint: checkpoint.map(|note| String::from_utf8_lossy(&note).into_owned()),
    })
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
