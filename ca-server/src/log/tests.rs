//! The log over a real SQLite store: stopped, started again, and meddled with.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod retention;
mod trials;
mod verification;

use std::{fs, path::Path};

use citadel_ledger::{CheckpointError, leaf_hash, proof};
use citadel_proto::log::{Entry, entry::Kind};
use prost::Message as _;
use sqlx::{ConnectOptions as _, Connection as _, SqliteConnection, sqlite::SqliteConnectOptions};
use tempfile::TempDir;

use super::*;
use crate::store::{SqliteOptions, SqliteStore, contract::Sample};

async fn store(folder: &Path) -> Arc<dyn Store> {
    let options = SqliteOptions::new(folder.join("citadel.db"));
    Arc::new(SqliteStore::open(options).await.unwrap())
}

async fn open(folder: &Path, rollback: Rollback) -> Result<Arc<Log>, LogError> {
    let store = store(folder).await;
    let opened = Log::open(
        store.clone(),
        folder.join("keys"),
        &TrustDomain::new("example.org").unwrap(),
        rollback,
    )
    .await;
    if opened.is_err() {
        store.close().await;
    }
    opened
}

async fn opened(folder: &Path) -> Arc<Log> {
    open(folder, Rollback::Refuse).await.unwrap()
}

async fn issue(log: &Log, numbers: std::ops::Range<u64>) {
    for n in numbers {
        log.store.append(vec![Sample(n).entry()]).await.unwrap();
    }
}

/// Its receipt verifies, and is of this entry.
async fn assert_proven(log: &Log, index: u64) {
    let receipt = log.receipt(LogIndex(index)).await.unwrap().unwrap();
    let state = receipt.verify(&[log.verifier().clone()]).unwrap();
    assert_eq!(state, log.newest().unwrap().checkpoint);
    let stored = log.store.read(LogIndex(index), 1).await.unwrap();
    assert_eq!(receipt.entry, stored[0].bytes);
}

async fn shell(folder: &Path) -> SqliteConnection {
    let options = SqliteConnectOptions::new().filename(folder.join("citadel.db"));
    options.connect().await.unwrap()
}

/// Somebody else's hand in the database.
async fn run_sql(folder: &Path, sql: &str) {
    let mut connection = shell(folder).await;
    let sql = sqlx::AssertSqlSafe(sql.to_owned());
    sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

fn copy(from: &Path, to: &Path) {
    for name in ["citadel.db", "citadel-index.db"] {
        fs::copy(from.join(name), to.join(name)).unwrap();
    }
}

#[tokio::test]
async fn every_entry_is_proven_after_the_next_checkpoint_and_after_a_restart() {
    let folder = TempDir::new().unwrap();
    let log = opened(folder.path()).await;
    assert!(log.newest().is_none(), "an empty log has no checkpoint");
    let mut size = 0;
    // Across the ends of tiles: 256 entries each.
    for step in [1, 254, 1, 1, 300] {
        issue(&log, size..size + step).await;
        assert!(log.receipt(LogIndex(size)).await.unwrap().is_none());
        log.grow().await.unwrap();
        size += step;
        assert_eq!(log.newest().unwrap().checkpoint.size, size);
        for index in [0, size / 2, size - 1] {
            assert_proven(&log, index).await;
        }
    }
    let before = log.newest().unwrap();
    log.close().await;

    let log = opened(folder.path()).await;
    // What `close` recorded is covered too.
    let after = log.newest().unwrap();
    assert_eq!(after.checkpoint.size, size + 1);
    for index in 0..=size {
        assert_proven(&log, index).await;
    }
    let plan = proof::consistency(before.checkpoint.size, after.checkpoint.size).unwrap();
    let nodes = plan.nodes();
    let tiles = prove::load(log.store.as_ref(), &nodes, after.checkpoint.size).await;
    let steps = plan.prove(&tiles.unwrap()).unwrap();
    proof::verify_consistency(
        before.checkpoint.size,
        before.checkpoint.root,
        after.checkpoint.size,
        after.checkpoint.root,
        &steps,
    )
    .unwrap();
    log.close().await;
}

#[tokio::test]
async fn leaves_are_those_of_the_entries_wherever_they_come_from() {
    let folder = TempDir::new().unwrap();
    let store = store(folder.path()).await;
    for n in 0..20 {
        store.append(vec![Sample(n).entry()]).await.unwrap();
    }
    let expected: Vec<_> = (0..20)
        .map(|n| leaf_hash(&Sample(n).entry().bytes))
        .collect();
    // What the writer passed on, then the log itself.
    for _ in 0..2 {
        let mut leaves = Vec::new();
        while leaves.len() < 20 {
            let more = store
                .leaves(LogIndex(leaves.len() as u64), 7)
                .await
                .unwrap();
            assert!(!more.is_empty() && more.len() <= 7);
            leaves.extend(more);
        }
        assert_eq!(leaves, expected);
    }
    assert!(store.leaves(LogIndex(20), 7).await.unwrap().is_empty());
    store.close().await;
}

#[tokio::test]
async fn a_store_that_went_back_is_refused_unless_it_is_accepted() {
    let (folder, backup) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let log = opened(folder.path()).await;
    issue(&log, 0..10).await;
    log.close().await;
    copy(folder.path(), backup.path());

    let log = opened(folder.path()).await;
    issue(&log, 10..20).await;
    log.close().await;
    copy(backup.path(), folder.path());
    match open(folder.path(), Rollback::Refuse).await.err().unwrap() {
        LogError::RolledBack {
            found: 11,
            seen: 22,
        } => {}
        other => panic!("{other}"),
    }
    // Once accepted it is on record, and the next start asks for nothing.
    let log = open(folder.path(), Rollback::Accept).await.unwrap();
    let act = log.store.read(LogIndex(11), 1).await.unwrap().remove(0);
    match Entry::decode(act.bytes.as_slice()).unwrap().kind.unwrap() {
        Kind::AdministratorAct(act) => {
            assert_eq!(act.act, "accept-rollback");
            assert!(act.details.contains("22 entries"), "{}", act.details);
        }
        other => panic!("{other:?}"),
    }
    log.close().await;
    opened(folder.path()).await.close().await;
}

#[tokio::test]
async fn a_store_with_another_history_is_refused() {
    let (folder, backup) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let log = opened(folder.path()).await;
    issue(&log, 0..5).await;
    log.close().await;
    copy(folder.path(), backup.path());
    let log = opened(folder.path()).await;
    issue(&log, 10..13).await;
    log.close().await;
    let guard = fs::read(folder.path().join("keys/log.checkpoint")).unwrap();

    // The same log, restored and gone on otherwise, with as many entries and more.
    copy(backup.path(), folder.path());
    let log = open(folder.path(), Rollback::Accept).await.unwrap();
    issue(&log, 20..28).await;
    log.close().await;
    fs::write(folder.path().join("keys/log.checkpoint"), guard).unwrap();
    match open(folder.path(), Rollback::Refuse).await.err().unwrap() {
        LogError::OtherHistory { size: 10 } => {}
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_checkpoint_that_the_store_lost_is_made_again_from_the_entries() {
    let folder = TempDir::new().unwrap();
    let log = opened(folder.path()).await;
    issue(&log, 0..3).await;
    log.grow().await.unwrap();
    let tree = log.store.tree().await.unwrap();
    issue(&log, 3..9).await;
    log.close().await;
    // The tree as it was: as if its last transaction had not reached the disk.
    let sql = format!(
        "UPDATE tree SET size = {}, checkpoint = CAST('{}' AS BLOB)",
        tree.size,
        tree.checkpoint.unwrap()
    );
    run_sql(folder.path(), &sql).await;
    let log = opened(folder.path()).await;
    assert_eq!(log.newest().unwrap().checkpoint.size, 10);
    assert_proven(&log, 8).await;
    log.close().await;
}

#[tokio::test]
async fn files_beside_the_key_that_are_lost_or_foreign_are_named() {
    let folder = TempDir::new().unwrap();
    let keys = folder.path().join("keys");
    let log = opened(folder.path()).await;
    issue(&log, 0..3).await;
    log.close().await;

    // Without the guard file nothing can be compared; the next checkpoint makes it anew.
    fs::remove_file(keys.join("log.checkpoint")).unwrap();
    let log = opened(folder.path()).await;
    issue(&log, 3..4).await;
    log.close().await;
    assert!(keys.join("log.checkpoint").exists());

    let guard = fs::read_to_string(keys.join("log.checkpoint")).unwrap();
    let forged = guard.replacen("\n6\n", "\n5\n", 1);
    assert_ne!(forged, guard);
    fs::write(keys.join("log.checkpoint"), forged).unwrap();
    let error = open(folder.path(), Rollback::Accept).await.err().unwrap();
    assert!(matches!(error, LogError::Guard { .. }), "{error}");
    fs::write(keys.join("log.checkpoint"), guard).unwrap();

    let key = fs::read(keys.join("log.key")).unwrap();
    fs::remove_file(keys.join("log.key")).unwrap();
    let error = open(folder.path(), Rollback::Accept).await.err().unwrap();
    assert!(matches!(error, LogError::KeyMissing(_)), "{error}");
    fs::write(keys.join("log.key"), &key).unwrap();
    let error = open(folder.path(), Rollback::Refuse).await.err().unwrap();
    assert!(matches!(error, LogError::File(_)), "mode 0644: {error}");
    fs::remove_file(keys.join("log.key")).unwrap();
    crate::keys::files::Directory::open(&keys)
        .unwrap()
        .create("log.key", crate::keys::files::PRIVATE, &key)
        .unwrap();
    opened(folder.path()).await.close().await;
}

#[tokio::test]
async fn a_tree_that_was_meddled_with_is_noticed_at_the_start() {
    for (sql, expected) in [
        ("UPDATE tiles SET hashes = zeroblob(length(hashes))", "root"),
        ("DELETE FROM tiles", "missing"),
        ("UPDATE tree SET size = size - 1", "root"),
        ("UPDATE tree SET checkpoint = substr(checkpoint, 2)", "note"),
        // Signed again over what the guard file vouches for.
        ("UPDATE tree SET checkpoint = NULL", "fine"),
    ] {
        let folder = TempDir::new().unwrap();
        let log = opened(folder.path()).await;
        issue(&log, 0..300).await;
        log.close().await;
        run_sql(folder.path(), sql).await;
        match (open(folder.path(), Rollback::Refuse).await, expected) {
            (Err(LogError::Root(_)), "root")
            | (Err(LogError::Store(crate::store::StoreError::MissingTile(_))), "missing")
            | (Err(LogError::Checkpoint(_)), "note") => {}
            (Ok(log), "fine") => {
                assert_proven(&log, 300).await;
                log.close().await;
            }
            (Err(error), _) => panic!("{sql}: {error}"),
            (Ok(_), _) => panic!("{sql}: not noticed"),
        }
    }
}

#[tokio::test]
async fn another_replica_that_was_faster_is_followed() {
    let folder = TempDir::new().unwrap();
    let log = opened(folder.path()).await;
    issue(&log, 0..5).await;
    let (mut slow, _) = log.resumed().await.unwrap();
    let stale = slow.clone();
    log.grow().await.unwrap();
    issue(&log, 5..7).await;
    let error = log.step(&mut slow, 7).await.unwrap_err();
    assert!(
        matches!(
            error,
            LogError::Store(crate::store::StoreError::TreeMoved { from: 0 })
        ),
        "{error}"
    );
    *log.builder.lock().await = Some(stale);
    log.grow().await.unwrap();
    assert_eq!(log.newest().unwrap().checkpoint.size, 7);
    for index in 0..7 {
        assert_proven(&log, index).await;
    }
    log.close().await;
}

#[tokio::test]
async fn a_checkpoint_of_another_log_is_refused() {
    let (folder, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    for folder in [&folder, &other] {
        let log = opened(folder.path()).await;
        issue(&log, 0..3).await;
        log.close().await;
    }
    let from = other.path().join("keys/log.checkpoint");
    fs::copy(from, folder.path().join("keys/log.checkpoint")).unwrap();
    match open(folder.path(), Rollback::Accept).await.err().unwrap() {
        LogError::Guard {
            error: CheckpointError::Note(_),
            ..
        } => {}
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_gap_is_not_signed_over() {
    let folder = TempDir::new().unwrap();
    let log = opened(folder.path()).await;
    issue(&log, 0..10).await;
    log.grow().await.unwrap();
    issue(&log, 10..20).await;
    // As after a restart: nothing is passed on in memory.
    log.store.leaves(LogIndex(10), 100).await.unwrap();
    run_sql(folder.path(), "DELETE FROM entries WHERE idx = 15").await;
    let error = log.grow().await.unwrap_err();
    assert!(error.to_string().contains("entry 15 is missing"), "{error}");
    assert_eq!(log.newest().unwrap().checkpoint.size, 10);
    log.store.close().await;
}

/// As after a failover to a standby that had not received the newest step.
#[tokio::test]
async fn a_running_server_signs_nothing_beside_what_it_signed() {
    let folder = TempDir::new().unwrap();
    let log = opened(folder.path()).await;
    issue(&log, 0..10).await;
    log.grow().await.unwrap();
    let older = log.store.tree().await.unwrap();
    issue(&log, 10..20).await;
    log.grow().await.unwrap();
    let signed = log.newest().unwrap();
    let guard = fs::read(folder.path().join("keys/log.checkpoint")).unwrap();
    let back = format!(
        "UPDATE tree SET size = 10, checkpoint = CAST('{}' AS BLOB)",
        older.checkpoint.unwrap()
    );
    for sql in [back.as_str(), "UPDATE tree SET size = 0, checkpoint = NULL"] {
        run_sql(folder.path(), sql).await;
        issue(
            &log,
            log.store.size().await.unwrap()..log.store.size().await.unwrap() + 1,
        )
        .await;
        for outcome in [log.grow().await, log.follow().await, log.grow().await] {
            let error = outcome.unwrap_err();
            assert!(
                matches!(error, LogError::RolledBack { seen: 20, .. }),
                "{error}"
            );
        }
        assert_eq!(log.newest().unwrap(), signed);
    }
    // What was seen is there for the next start.
    let kept = fs::read(folder.path().join("keys/log.checkpoint")).unwrap();
    let keys = [log.verifier().clone()];
    let kept = Checkpoint::open(&kept, &keys).unwrap();
    let guard = Checkpoint::open(&guard, &keys).unwrap();
    assert!(kept.size >= guard.size);
    log.store.close().await;
}
