//! The verification of a whole log that somebody meddled with.

use std::{fs, path::Path};

use citadel_ledger::LogKey;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use sqlx::Connection as _;
use tempfile::TempDir;

use super::*;

/// A store that is only read.
async fn read(folder: &Path) -> Arc<dyn Store> {
    Arc::new(
        SqliteStore::open_read_only(folder.join("citadel.db"))
            .await
            .unwrap(),
    )
}

pub(super) async fn verdict(
    folder: &Path,
    key: &VerifierKey,
    witnesses: &[Witness],
) -> Result<Verified, Broken> {
    let store = read(folder).await;
    let verdict = verify(&store, key, witnesses, |_| {}).await;
    store.close().await;
    verdict
}

#[tokio::test]
async fn a_whole_log_verifies_beside_its_writer_and_with_checkpoints_kept_elsewhere() {
    let folder = TempDir::new().unwrap();
    let log = opened(folder.path()).await;
    let mut kept = Vec::new();
    for (step, until) in [1, 256, 700, 2100].into_iter().enumerate() {
        issue(&log, log.store.size().await.unwrap()..until).await;
        log.grow().await.unwrap();
        kept.push(Witness {
            from: format!("kept {step}"),
            note: log.newest().unwrap().note.clone(),
        });
    }
    issue(&log, 2100..2103).await;
    let key = log.verifier().clone();
    let verified = verdict(folder.path(), &key, &kept).await.unwrap();
    assert_eq!((verified.size, verified.covered), (2103, 2100));
    assert_eq!(verified.root, log.newest().unwrap().checkpoint.root);
    log.close().await;

    // One of another key is none of this log's.
    let other = LogKey::generate(key.name()).unwrap();
    let error = verdict(folder.path(), other.verifier(), &kept)
        .await
        .unwrap_err();
    assert!(matches!(error, Broken::Checkpoint { .. }), "{error}");
}

#[tokio::test]
async fn the_end_cut_off_below_a_checkpoint_is_named() {
    let folder = TempDir::new().unwrap();
    let log = opened(folder.path()).await;
    issue(&log, 0..20).await;
    log.grow().await.unwrap();
    let older = (log.store.tree().await.unwrap(), log.newest().unwrap());
    issue(&log, 20..40).await;
    log.close().await;
    let kept = Witness {
        from: "kept".into(),
        note: fs::read_to_string(folder.path().join("keys/log.checkpoint")).unwrap(),
    };
    let key = log.verifier().clone();
    // The whole tree put back to where it was, so that the store holds together again.
    let sql = format!(
        "DELETE FROM entries WHERE idx >= 20; UPDATE tree SET size = 20, checkpoint = CAST('{}' AS BLOB)",
        older.0.checkpoint.unwrap()
    );
    run_sql(folder.path(), &sql).await;
    let verified = verdict(folder.path(), &key, &[]).await.unwrap();
    assert_eq!(verified.root, older.1.checkpoint.root);
    match verdict(folder.path(), &key, &[kept]).await.unwrap_err() {
        Broken::Cut {
            found: 20,
            seen: 41,
            from,
        } => assert_eq!(from, "kept"),
        other => panic!("{other}"),
    }
    // Cut below its own checkpoint, without any other.
    run_sql(folder.path(), "DELETE FROM entries WHERE idx >= 10").await;
    let error = verdict(folder.path(), &key, &[]).await.unwrap_err();
    assert!(
        matches!(
            error,
            Broken::Cut {
                found: 10,
                seen: 20,
                ..
            }
        ),
        "{error}"
    );
}

/// Flips one random bit of one value; gives the value as it was.
async fn flip(
    folder: &Path,
    table: &str,
    column: &str,
    key: &str,
    id: i64,
    random: &mut StdRng,
) -> Vec<u8> {
    let mut connection = shell(folder).await;
    let select = format!("SELECT {column} FROM {table} WHERE {key} = {id}");
    let before: Vec<u8> = sqlx::query_scalar(sqlx::AssertSqlSafe(select))
        .fetch_one(&mut connection)
        .await
        .unwrap();
    let mut after = before.clone();
    let at = random.random_range(0..after.len());
    after[at] ^= 1 << random.random_range(0..8);
    connection.close().await.unwrap();
    write(folder, table, column, key, id, &after).await;
    before
}

async fn write(folder: &Path, table: &str, column: &str, key: &str, id: i64, value: &[u8]) {
    let update = format!("UPDATE {table} SET {column} = ? WHERE {key} = {id}");
    let mut connection = shell(folder).await;
    sqlx::query(sqlx::AssertSqlSafe(update))
        .bind(value)
        .execute(&mut connection)
        .await
        .unwrap();
    connection.close().await.unwrap();
}

/// 600 entries and their tiles: one bit flipped anywhere is named by its place.
#[tokio::test]
async fn one_flipped_bit_is_named() {
    let folder = TempDir::new().unwrap();
    let log = opened(folder.path()).await;
    issue(&log, 0..599).await;
    log.close().await;
    let key = log.verifier().clone();
    let mut random = StdRng::seed_from_u64(4);
    let level1 = 1_i64 << 56;
    for _ in 0..120 {
        let index = random.random_range(0..600_i64);
        let tile = [0, 1, 2, level1][random.random_range(0..4)];
        for (table, column, id_column, id) in [
            ("entries", "bytes", "idx", index),
            ("tiles", "hashes", "id", tile),
            ("tree", "checkpoint", "singleton", 0),
        ] {
            let before = flip(folder.path(), table, column, id_column, id, &mut random).await;
            match (table, verdict(folder.path(), &key, &[]).await.unwrap_err()) {
                ("entries", Broken::Entry(named, _)) => assert_eq!(named, index.unsigned_abs()),
                ("tiles", Broken::Entry(named, _)) if tile < level1 => {
                    assert_eq!(named / 256, tile.unsigned_abs());
                }
                ("tiles", Broken::Tile(named)) => assert_eq!(named.level, 1),
                ("tree", Broken::Checkpoint { .. } | Broken::Root { .. }) => {}
                // The size in the note is signed too; a flipped digit is no valid signature.
                (_, other) => panic!("{table} {id}: {other}"),
            }
            write(folder.path(), table, column, id_column, id, &before).await;
        }
    }
    for (sql, undo) in [
        (
            "CREATE TABLE gone AS SELECT * FROM entries WHERE idx = 300; \
             DELETE FROM entries WHERE idx = 300",
            "INSERT INTO entries SELECT * FROM gone; DROP TABLE gone",
        ),
        (
            "UPDATE entries SET idx = 9000 WHERE idx = 300; \
             UPDATE entries SET idx = 300 WHERE idx = 301; \
             UPDATE entries SET idx = 301 WHERE idx = 9000",
            "UPDATE entries SET idx = 9000 WHERE idx = 300; \
             UPDATE entries SET idx = 300 WHERE idx = 301; \
             UPDATE entries SET idx = 301 WHERE idx = 9000",
        ),
    ] {
        run_sql(folder.path(), sql).await;
        match verdict(folder.path(), &key, &[]).await.unwrap_err() {
            Broken::Missing(300) | Broken::Entry(300, _) => {}
            other => panic!("{sql}: {other}"),
        }
        run_sql(folder.path(), undo).await;
    }
    verdict(folder.path(), &key, &[]).await.unwrap();
}

#[tokio::test]
async fn a_log_without_any_checkpoint_is_not_called_valid() {
    let folder = TempDir::new().unwrap();
    let log = opened(folder.path()).await;
    issue(&log, 0..10).await;
    log.close().await;
    run_sql(
        folder.path(),
        "DELETE FROM tiles; UPDATE tree SET size = 0, checkpoint = NULL",
    )
    .await;
    let key = log.verifier().clone();
    let error = verdict(folder.path(), &key, &[]).await.unwrap_err();
    assert!(matches!(error, Broken::NoCheckpoint(11)), "{error}");
}
