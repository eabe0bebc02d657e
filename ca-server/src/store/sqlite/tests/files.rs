//! Files, locks, settings, schema: what a start refuses, and what it repairs.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use sqlx::{Connection, sqlite::SqliteSynchronous};
use tempfile::TempDir;

use super::{options, shell};
use crate::store::{
    Filter, LogIndex, Query, Store, StoreError,
    contract::{Sample, everything, fill, indexed},
    sqlite::{SqliteOptions, SqliteStore, connect, files::index_path},
};

#[tokio::test]
async fn nobody_else_reads_the_files() {
    let folder = TempDir::new().unwrap();
    let inner = folder.path().join("a/b");
    let store = SqliteStore::open(options(&inner)).await.unwrap();
    fill(&store, 0..10).await;
    indexed(&store).await;
    assert_eq!(mode(&inner), 0o700);
    let files: Vec<_> = fs::read_dir(&inner)
        .unwrap()
        .map(|file| file.unwrap().path())
        .collect();
    assert!(
        files.len() >= 6,
        "database, -wal and -shm of log and index: {files:?}"
    );
    for file in files {
        assert_eq!(mode(&file), 0o600, "{}", file.display());
    }
    store.close().await;
    let left: Vec<_> = fs::read_dir(&inner)
        .unwrap()
        .map(|file| file.unwrap().file_name())
        .collect();
    assert_eq!(left.len(), 3, "close leaves no WAL behind: {left:?}");
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn a_second_writer_is_refused_and_readers_are_welcome() {
    let folder = TempDir::new().unwrap();
    let store = SqliteStore::open(options(folder.path())).await.unwrap();
    fill(&store, 0..50).await;
    let error = SqliteStore::open(options(folder.path())).await.unwrap_err();
    assert!(matches!(error, StoreError::AnotherWriter { .. }), "{error}");
    assert!(
        error
            .to_string()
            .contains("already open for writing by this process"),
        "{error}"
    );

    let reader = SqliteStore::open_read_only(folder.path().join("citadel.db"))
        .await
        .unwrap();
    fill(&store, 50..60).await;
    assert_eq!(reader.size().await.unwrap(), 60);
    let query = Query::newest(
        Filter {
            node: Some("node1".into()),
            ..Filter::default()
        },
        100,
    );
    assert_eq!(
        reader.list(&query).await.unwrap(),
        store.list(&query).await.unwrap()
    );
    assert_eq!(
        reader.append(vec![Sample(99).entry()]).await,
        Err(StoreError::ReadOnly)
    );
    assert_eq!(
        reader.bind_issuer(b"key", None).await,
        Err(StoreError::ReadOnly)
    );
    reader.close().await;

    store.close().await;
    let store = SqliteStore::open(options(folder.path())).await.unwrap();
    assert_eq!(store.size().await.unwrap(), 60);
    store.close().await;
}

#[tokio::test]
async fn a_reader_needs_neither_writer_nor_index() {
    let folder = TempDir::new().unwrap();
    let store = SqliteStore::open(options(folder.path())).await.unwrap();
    fill(&store, 0..500).await;
    store.close().await;
    fs::remove_file(index_path(&folder.path().join("citadel.db"))).unwrap();
    let reader = SqliteStore::open_read_only(folder.path().join("citadel.db"))
        .await
        .unwrap();
    let query = Query::newest(
        Filter {
            pod_uid: Some("p3".into()),
            ..Filter::default()
        },
        1000,
    );
    assert_eq!(
        reader.list(&query).await.unwrap().len(),
        (0..500).filter(|n| n % 11 == 3).count()
    );
    reader.close().await;
    let error = SqliteStore::open_read_only(folder.path().join("none.db"))
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
}

#[tokio::test]
async fn the_writers_connection_reads_full_back() {
    let folder = TempDir::new().unwrap();
    let options = options(folder.path());
    let store = SqliteStore::open(options.clone()).await.unwrap();
    store.close().await;
    let mut connection = connect::writer(&options).await.unwrap();
    let synchronous: i64 = sqlx::query_scalar("PRAGMA synchronous")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    assert_eq!(synchronous, 2);
    connection.close().await.unwrap();

    for weaker in [SqliteSynchronous::Normal, SqliteSynchronous::Off] {
        let options = SqliteOptions {
            synchronous: weaker,
            ..options.clone()
        };
        let error = SqliteStore::open(options).await.unwrap_err();
        assert!(
            matches!(
                error,
                StoreError::NotDurable {
                    setting: "synchronous",
                    ..
                }
            ),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_newer_schema_is_refused() {
    let folder = TempDir::new().unwrap();
    let options = options(folder.path());
    SqliteStore::open(options.clone())
        .await
        .unwrap()
        .close()
        .await;
    let mut shell = shell(&options.path).await;
    sqlx::raw_sql(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
         VALUES (4711, 'of tomorrow', true, x'00', 0)",
    )
    .execute(&mut shell)
    .await
    .unwrap();
    shell.close().await.unwrap();
    let newer = StoreError::NewerSchema {
        found: 4711,
        known: 4,
    };
    assert_eq!(SqliteStore::open(options.clone()).await.unwrap_err(), newer);
    assert_eq!(
        SqliteStore::open_read_only(&options.path)
            .await
            .unwrap_err(),
        newer
    );
}

#[tokio::test]
async fn a_log_that_lost_entries_is_refused() {
    for (cut, complaint) in [
        ("DELETE FROM entries WHERE idx = 29", "had 30 before"),
        ("DELETE FROM entries WHERE idx = 0", "begins with entry 1"),
    ] {
        let folder = TempDir::new().unwrap();
        let options = options(folder.path());
        let store = SqliteStore::open(options.clone()).await.unwrap();
        fill(&store, 0..30).await;
        store.close().await;
        let mut shell = shell(&options.path).await;
        sqlx::raw_sql(cut).execute(&mut shell).await.unwrap();
        shell.close().await.unwrap();
        let error = SqliteStore::open(options).await.unwrap_err();
        assert!(matches!(error, StoreError::Corrupt(_)), "{error}");
        assert!(error.to_string().contains(complaint), "{error}");
    }
}

#[tokio::test]
async fn what_is_no_database_is_refused() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("citadel.db"), [b'x'; 9000]).unwrap();
    let error = SqliteStore::open(options(folder.path())).await.unwrap_err();
    assert!(matches!(error, StoreError::Corrupt(_)), "{error}");
}

/// A crash leaves the files as they are at that instant: so a copy of them, taken while
/// the store is open, is what a restart after `kill -9` finds.
#[tokio::test]
async fn a_crash_loses_nothing_that_was_answered() {
    let folder = TempDir::new().unwrap();
    let store = SqliteStore::open(options(folder.path())).await.unwrap();
    fill(&store, 0..300).await;
    indexed(&store).await;
    fill(&store, 300..330).await;
    let copy = TempDir::new().unwrap();
    for name in [
        "citadel.db",
        "citadel.db-wal",
        "citadel-index.db",
        "citadel-index.db-wal",
    ] {
        fs::copy(folder.path().join(name), copy.path().join(name)).unwrap();
    }
    let after = SqliteStore::open(options(copy.path())).await.unwrap();
    assert_eq!(everything(&after).await, everything(&store).await);
    let next = after.append(vec![Sample(330).entry()]).await.unwrap();
    assert_eq!(next, [LogIndex(330)]);
    indexed(&after).await;
    let query = Query::newest(
        Filter {
            pod_uid: Some("p3".into()),
            ..Filter::default()
        },
        1000,
    );
    let found = after.list(&query).await.unwrap();
    assert_eq!(found.len(), (0..=330).filter(|n| n % 11 == 3).count());
    after.close().await;
    store.close().await;
}

#[tokio::test]
async fn a_store_that_is_dropped_lets_the_next_one_in() {
    let folder = TempDir::new().unwrap();
    let store = SqliteStore::open(options(folder.path())).await.unwrap();
    fill(&store, 0..30).await;
    drop(store);
    let store = crate::store::contract::within_deadline(async {
        loop {
            match SqliteStore::open(options(folder.path())).await {
                Ok(store) => break store,
                Err(StoreError::AnotherWriter { .. }) => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        }
    })
    .await;
    assert_eq!(store.size().await.unwrap(), 30);
    store.close().await;
}

#[tokio::test]
async fn an_index_that_does_not_fit_is_made_anew() {
    let other = TempDir::new().unwrap();
    let store = SqliteStore::open(options(other.path())).await.unwrap();
    fill(&store, 1000..1030).await;
    indexed(&store).await;
    store.close().await;

    let folder = TempDir::new().unwrap();
    let options = options(folder.path());
    let index = index_path(&options.path);
    let store = SqliteStore::open(options.clone()).await.unwrap();
    fill(&store, 0..40).await;
    store.close().await;

    let foreign = fs::read(index_path(&other.path().join("citadel.db"))).unwrap();
    let garbage = vec![0x5a; 20_000];
    for replacement in [foreign, garbage] {
        fs::write(&index, replacement).unwrap();
        let store = SqliteStore::open(options.clone()).await.unwrap();
        indexed(&store).await;
        let query = Query::newest(
            Filter {
                pod_uid: Some("p3".into()),
                ..Filter::default()
            },
            99,
        );
        let found: Vec<_> = store
            .list(&query)
            .await
            .unwrap()
            .iter()
            .map(|entry| entry.index.0)
            .collect();
        assert_eq!(found, [36, 25, 14, 3]);
        store.close().await;
    }

    // One that covers more than the log: an older log was put back.
    let mut shell = shell(&index).await;
    sqlx::raw_sql("UPDATE source SET indexed = 41")
        .execute(&mut shell)
        .await
        .unwrap();
    shell.close().await.unwrap();
    let store = SqliteStore::open(options).await.unwrap();
    indexed(&store).await;
    assert_eq!(store.stats().indexed, 40);
    store.close().await;
}
