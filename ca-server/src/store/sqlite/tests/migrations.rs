//! Schemas of before, with data in them, become today's and lose nothing.

use citadel_ledger::Tile;
use sqlx::{
    ConnectOptions as _, Connection as _,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions},
};
use tempfile::TempDir;

use super::{options, shell};
use crate::store::{
    Filter, LogIndex, Query, Store,
    contract::{Sample, everything, indexed},
    sqlite::{SqliteStore, connect},
};

/// More than a tile.
const ENTRIES: u64 = 300;

#[tokio::test]
async fn each_schema_of_before_becomes_todays_with_its_data() {
    let versions: Vec<i64> = connect::MIGRATIONS.iter().map(|one| one.version).collect();
    let (newest, before) = versions.split_last().unwrap();
    assert!(!before.is_empty(), "{newest}");
    for version in before {
        let folder = TempDir::new().unwrap();
        let options = options(folder.path());
        let pool = SqlitePoolOptions::new()
            .max_connections(1)
            .connect_with(
                SqliteConnectOptions::new()
                    .filename(&options.path)
                    .create_if_missing(true)
                    .journal_mode(SqliteJournalMode::Wal)
                    .disable_statement_logging(),
            )
            .await
            .unwrap();
        connect::MIGRATIONS.run_to(*version, &pool).await.unwrap();
        pool.close().await;
        let mut shell = shell(&options.path).await;
        for n in 0..ENTRIES {
            let entry = Sample(n).entry();
            sqlx::query("INSERT INTO entries (idx, serial, bytes) VALUES (?, ?, ?)")
                .bind(n.cast_signed())
                .bind(entry.serial)
                .bind(entry.bytes)
                .execute(&mut shell)
                .await
                .unwrap();
        }
        let hashes = vec![7_u8; 256 * 32];
        if *version >= 2 {
            sqlx::query("INSERT INTO tiles (id, hashes) VALUES (0, ?)")
                .bind(&hashes)
                .execute(&mut shell)
                .await
                .unwrap();
            sqlx::raw_sql("UPDATE tree SET size = 256, checkpoint = CAST('signed' AS BLOB)")
                .execute(&mut shell)
                .await
                .unwrap();
        }
        shell.close().await.unwrap();

        let store = SqliteStore::open(options).await.unwrap();
        let kept = everything(&store).await;
        assert_eq!(kept.len() as u64, ENTRIES, "from version {version}");
        for (stored, n) in kept.iter().zip(0..) {
            assert_eq!(stored.index, LogIndex(n));
            assert_eq!(stored.bytes, Sample(n).entry().bytes);
        }
        let tree = store.tree().await.unwrap();
        assert_eq!(tree.minimum, 0);
        if *version >= 2 {
            assert_eq!(
                (tree.size, tree.checkpoint.as_deref()),
                (256, Some("signed"))
            );
            let tile = Tile::at(0, 0, 256).unwrap();
            assert_eq!(store.tiles(&[tile]).await.unwrap(), [hashes]);
        }
        assert_eq!(store.join_tokens().await, Ok(Vec::new()));
        assert_eq!(store.external_nodes("").await, Ok(Vec::new()));
        // It goes on, and everything is found.
        let next = store.append(vec![Sample(ENTRIES).entry()]).await.unwrap();
        assert_eq!(next, [LogIndex(ENTRIES)]);
        indexed(&store).await;
        let found = store.issued_by_serial(&Sample(5).serial()).await.unwrap();
        assert_eq!(found.unwrap().index, LogIndex(5));
        let of_pod = Filter {
            pod_uid: Some("p3".into()),
            ..Filter::default()
        };
        let found = store
            .list(&Query::newest(of_pod.clone(), 1000))
            .await
            .unwrap();
        let wanted = kept
            .iter()
            .filter(|entry| of_pod.matches(&crate::store::IndexRow::of(&entry.bytes)))
            .count();
        assert!(
            wanted > 0 && found.len() >= wanted,
            "from version {version}"
        );
        store.close().await;
    }
}
