//! Schemas of before, with data in them, become today's and lose nothing.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use citadel_ca_server::store::{Filter, LogIndex, PostgresStore, Query, Store as _};
use citadel_ledger::Tile;
use citadel_tests::pki::openssl;

use super::contract::{Sample, everything, indexed};
use super::{options, shared};

/// More than a tile.
const ENTRIES: u64 = 300;

#[tokio::test]
async fn each_schema_of_before_becomes_todays_with_its_data() {
    let migrations = migrations();
    for version in 1..migrations.len() {
        let postgres = shared().await;
        let database = postgres.database().await;
        // As the role that the store is opened with: what it makes, it owns.
        let run = async |sql: &str| {
            let sql = format!("SET ROLE citadel; {sql}");
            postgres.query_in(&database, &sql).await
        };
        run(
            "CREATE TABLE _sqlx_migrations (version bigint PRIMARY KEY, description text NOT NULL, \
             installed_on timestamptz NOT NULL DEFAULT now(), success boolean NOT NULL, \
             checksum bytea NOT NULL, execution_time bigint NOT NULL)",
        )
        .await;
        for (number, file) in (1..).zip(&migrations[..version]) {
            let text = std::fs::read_to_string(file).unwrap();
            let checksum = openssl::run_text(&["dgst", "-sha384", "-r"], text.as_bytes());
            let checksum = checksum.split(' ').next().unwrap();
            run(&text).await;
            run(&format!(
                "INSERT INTO _sqlx_migrations VALUES \
                 ({number}, 'of before', now(), true, '\\x{checksum}', 0)"
            ))
            .await;
        }
        for first in (0..ENTRIES).step_by(50) {
            let mut sql = String::new();
            for n in first..first + 50 {
                let entry = Sample(n).entry();
                let (serial, bytes) =
                    (hex::encode(entry.serial.unwrap()), hex::encode(entry.bytes));
                let _ = write!(
                    sql,
                    "INSERT INTO entries VALUES ({n}, '\\x{serial}', '\\x{bytes}');"
                );
            }
            run(&sql).await;
        }
        run(&format!("UPDATE head SET size = {ENTRIES}")).await;
        let hashes = vec![7_u8; 256 * 32];
        let has_tree = version >= 3;
        if has_tree {
            run(&format!(
                "INSERT INTO tiles VALUES (0, '\\x{}')",
                hex::encode(&hashes)
            ))
            .await;
            run("UPDATE tree SET size = 256, checkpoint = 'signed'").await;
        }

        let store = PostgresStore::open(options(postgres, &postgres.url_of(&database)))
            .await
            .unwrap();
        let kept = everything(&store).await;
        assert_eq!(kept.len() as u64, ENTRIES, "from version {version}");
        for (stored, n) in kept.iter().zip(0..) {
            assert_eq!(stored.index, LogIndex(n));
            assert_eq!(stored.bytes, Sample(n).entry().bytes);
        }
        let tree = store.tree().await.unwrap();
        assert_eq!(tree.minimum, 0);
        if has_tree {
            let checkpoint = tree.checkpoint.as_deref();
            assert_eq!((tree.size, checkpoint), (256, Some("signed")));
            let tile = Tile::at(0, 0, 256).unwrap();
            assert_eq!(store.tiles(&[tile]).await.unwrap(), [hashes]);
        }
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
        let found = store.list(&Query::newest(of_pod, 1000)).await.unwrap();
        assert!(!found.is_empty(), "from version {version}");
        store.close().await;
        let newest = "SELECT max(version) FROM _sqlx_migrations";
        let newest = postgres.query_in(&database, newest).await;
        assert_eq!(newest, migrations.len().to_string());
    }
}

/// The files, in their order.
fn migrations() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../migrations/postgres");
    let files = std::fs::read_dir(folder).unwrap();
    let mut files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    files.sort();
    files
}
