//! 500 trials on a small log: one thing that is stored is changed, and the verification has
//! to name it.

use std::{fs, path::Path, sync::Arc};

use citadel_ledger::VerifierKey;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use sqlx::{
    AssertSqlSafe, ConnectOptions as _, Connection as _, SqliteConnection,
    sqlite::{SqliteConnectOptions, SqliteJournalMode},
};
use tempfile::TempDir;

use super::{copy, issue, opened, verification::verdict};
use crate::{
    log::{Broken, Witness},
    store::contract,
};

const ENTRIES: u64 = 300;
const TRIALS: u64 = 500;
const TASKS: u64 = 2;

/// Every stored value: file, table, column.
const VALUES: [(&str, &str, &str); 40] = [
    ("citadel", "entries", "idx"),
    ("citadel", "entries", "bytes"),
    ("citadel", "entries", "serial"),
    ("citadel", "tiles", "id"),
    ("citadel", "tiles", "hashes"),
    ("citadel", "tree", "size"),
    ("citadel", "tree", "checkpoint"),
    ("citadel-index", "source", "log_id"),
    ("citadel-index", "source", "indexed"),
    ("citadel-index", "issued", "epoch"),
    ("citadel-index", "issued", "subject"),
    ("citadel-index", "issued", "idx"),
    ("citadel-index", "issued", "not_before"),
    ("citadel-index", "issued", "not_after"),
    ("citadel-index", "keys", "epoch"),
    ("citadel-index", "keys", "spki"),
    ("citadel-index", "keys", "idx"),
    ("citadel-index", "epochs", "epoch"),
    ("citadel-index", "epochs", "min_time_ms"),
    ("citadel-index", "epochs", "max_time_ms"),
    ("citadel-index", "epochs", "min_not_before"),
    ("citadel-index", "epochs", "min_not_after"),
    ("citadel-index", "epochs", "max_not_after"),
    ("citadel-index", "subjects", "id"),
    ("citadel-index", "subjects", "digest"),
    ("citadel-index", "subjects", "trust_domain"),
    ("citadel-index", "subjects", "spiffe_id"),
    ("citadel-index", "subjects", "certificate_use"),
    ("citadel-index", "subjects", "cluster"),
    ("citadel-index", "subjects", "namespace"),
    ("citadel-index", "subjects", "account"),
    ("citadel-index", "subjects", "pod_uid"),
    ("citadel-index", "subjects", "node"),
    ("citadel-index", "subjects", "node_uid"),
    ("citadel-index", "subjects", "issuer_key_id"),
    // As often as all the others together would be too much; more than once is not.
    ("citadel", "entries", "bytes"),
    ("citadel", "entries", "serial"),
    ("citadel", "tiles", "hashes"),
    ("citadel-index", "issued", "not_after"),
    ("citadel-index", "keys", "spki"),
];

/// Tables of which a row is deleted.
const ROWS: [(&str, &str); 6] = [
    ("citadel", "entries"),
    ("citadel", "tiles"),
    ("citadel-index", "issued"),
    ("citadel-index", "keys"),
    ("citadel-index", "epochs"),
    ("citadel-index", "subjects"),
];

/// What two rows exchange.
const SWAPS: [(&str, &str, &str); 7] = [
    ("citadel", "entries", "bytes"),
    ("citadel", "entries", "serial"),
    ("citadel", "tiles", "hashes"),
    ("citadel-index", "issued", "not_before"),
    ("citadel-index", "issued", "subject"),
    ("citadel-index", "keys", "spki"),
    ("citadel-index", "subjects", "spiffe_id"),
];

/// The log that every trial begins with.
struct Original {
    folder: TempDir,
    key: VerifierKey,
    /// The newest checkpoint, as kept elsewhere.
    kept: Witness,
    /// As of 200 entries.
    older: String,
}

impl Original {
    async fn make() -> Self {
        let folder = TempDir::new().unwrap();
        let log = opened(folder.path()).await;
        issue(&log, 0..200).await;
        log.grow().await.unwrap();
        let older = log.newest().unwrap().note.clone();
        issue(&log, 200..ENTRIES - 1).await;
        contract::indexed(log.store.as_ref()).await;
        // Its stop is an entry too, and one that the index does not cover yet.
        log.close().await;
        let kept = Witness {
            from: "kept".into(),
            note: fs::read_to_string(folder.path().join("keys/log.checkpoint")).unwrap(),
        };
        Self {
            key: log.verifier().clone(),
            folder,
            kept,
            older,
        }
    }
}

/// One copy of the log, and what is done to it.
struct Trial<'o> {
    original: &'o Original,
    folder: &'o Path,
    random: StdRng,
}

impl Trial<'_> {
    async fn shell(&self, file: &str) -> SqliteConnection {
        let path = self.folder.join(format!("{file}.db"));
        SqliteConnectOptions::new()
            .filename(path)
            .journal_mode(SqliteJournalMode::Wal)
            .pragma("synchronous", "OFF")
            .connect()
            .await
            .unwrap()
    }

    /// Changes one thing; says what, and which entry has to be named where that is known.
    async fn meddle(&mut self) -> Option<(String, Option<u64>)> {
        match self.random.random_range(0..10) {
            0..=5 => self.flip().await,
            6 | 7 => self.delete().await,
            8 => self.swap().await,
            _ => Some(self.cut().await),
        }
    }

    /// One bit of one value; `None` where there is no bit to flip or no room for the result.
    async fn flip(&mut self) -> Option<(String, Option<u64>)> {
        let (file, table, column) = VALUES[self.random.random_range(0..VALUES.len())];
        let mut shell = self.shell(file).await;
        let row = self.row(&mut shell, table).await;
        let kind: String = ask(&mut shell, &format!("SELECT typeof({column}) {row}")).await;
        let update = |value: &str| {
            format!(
                "UPDATE {table} SET {column} = {value} {row_of}",
                row_of = only(&row)
            )
        };
        let changed = match kind.as_str() {
            "integer" => {
                let value: i64 = ask(&mut shell, &format!("SELECT {column} {row}")).await;
                let value = value ^ (1_i64 << self.random.random_range(0..64));
                let sql = update("?");
                sqlx::query(AssertSqlSafe(sql))
                    .bind(value)
                    .execute(&mut shell)
                    .await
            }
            "blob" | "text" => {
                let sql = format!("SELECT CAST({column} AS BLOB) {row}");
                let mut value: Vec<u8> = ask(&mut shell, &sql).await;
                if value.is_empty() {
                    return None;
                }
                let at = self.random.random_range(0..value.len());
                value[at] ^= 1 << self.random.random_range(0..8);
                let sql = update(if kind == "text" {
                    "CAST(? AS TEXT)"
                } else {
                    "?"
                });
                sqlx::query(AssertSqlSafe(sql))
                    .bind(value)
                    .execute(&mut shell)
                    .await
            }
            _ => return None,
        };
        let named = entry_of(table, column, &row);
        shell.close().await.unwrap();
        // A value that is taken is refused by SQLite itself.
        changed.ok()?;
        Some((format!("a bit of {table}.{column} {row}"), named))
    }

    async fn delete(&mut self) -> Option<(String, Option<u64>)> {
        let (file, table) = ROWS[self.random.random_range(0..ROWS.len())];
        let mut shell = self.shell(file).await;
        let row = self.row(&mut shell, table).await;
        let named = entry_of(table, "", &row);
        run(&mut shell, &format!("DELETE FROM {table} {}", only(&row))).await;
        shell.close().await.unwrap();
        Some((format!("deleted: {table} {row}"), named))
    }

    async fn swap(&mut self) -> Option<(String, Option<u64>)> {
        let (file, table, column) = SWAPS[self.random.random_range(0..SWAPS.len())];
        let mut shell = self.shell(file).await;
        let (one, other) = (
            self.row(&mut shell, table).await,
            self.row(&mut shell, table).await,
        );
        let same = format!("SELECT (SELECT {column} {one}) IS (SELECT {column} {other})");
        if ask::<bool>(&mut shell, &same).await {
            return None;
        }
        run(
            &mut shell,
            &format!(
                "CREATE TEMP TABLE held AS SELECT (SELECT {column} {one}) AS a, \
                                                  (SELECT {column} {other}) AS b",
            ),
        )
        .await;
        // The serial is unique: it is let go of in between.
        for (row, value) in [
            (
                &one,
                if column == "serial" {
                    "NULL"
                } else {
                    "(SELECT b FROM held)"
                },
            ),
            (&other, "(SELECT a FROM held)"),
            (&one, "(SELECT b FROM held)"),
        ] {
            let sql = format!("UPDATE {table} SET {column} = {value} {}", only(row));
            // The key of a row may be among what is exchanged.
            if sqlx::raw_sql(AssertSqlSafe(sql))
                .execute(&mut shell)
                .await
                .is_err()
            {
                return None;
            }
        }
        shell.close().await.unwrap();
        Some((format!("swapped: {table}.{column} {one} and {other}"), None))
    }

    /// The tail cut off, the tree put back, so that only what was kept elsewhere shows it.
    async fn cut(&mut self) -> (String, Option<u64>) {
        let mut shell = self.shell("citadel").await;
        let from = self.random.random_range(200..ENTRIES);
        let older = &self.original.older;
        let back = format!("UPDATE tree SET size = 200, checkpoint = CAST('{older}' AS BLOB)");
        let back = if self.random.random_bool(0.5) {
            back
        } else {
            String::new()
        };
        let sql = format!("DELETE FROM entries WHERE idx >= {from}; {back}");
        run(&mut shell, &sql).await;
        shell.close().await.unwrap();
        (format!("cut at {from}"), None)
    }

    /// A random row, as the end of a SELECT.
    async fn row(&mut self, shell: &mut SqliteConnection, table: &str) -> String {
        let key = match table {
            "tiles" | "subjects" => "id",
            "epochs" => "epoch",
            "entries" | "issued" | "keys" => "idx",
            _ => "singleton",
        };
        let count: i64 = ask(shell, &format!("SELECT count(*) FROM {table}")).await;
        let at = self.random.random_range(0..count);
        let sql = format!("SELECT {key} FROM {table} ORDER BY {key} LIMIT 1 OFFSET {at}");
        let id: i64 = ask(shell, &sql).await;
        format!("FROM {table} WHERE {key} = {id}")
    }
}

/// The entry that a row is of. One that moved may be named by where it is now.
fn entry_of(table: &str, column: &str, row: &str) -> Option<u64> {
    let moved = column == "idx" || column == "epoch";
    (["entries", "issued", "keys"].contains(&table) && !moved)
        .then(|| row.rsplit(' ').next()?.parse().ok())
        .flatten()
}

async fn ask<T>(shell: &mut SqliteConnection, sql: &str) -> T
where
    T: for<'r> sqlx::Decode<'r, sqlx::Sqlite> + sqlx::Type<sqlx::Sqlite> + Send + Unpin,
{
    sqlx::query_scalar(AssertSqlSafe(sql.to_owned()))
        .fetch_one(shell)
        .await
        .unwrap()
}

async fn run(shell: &mut SqliteConnection, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
        .execute(shell)
        .await
        .unwrap();
}

/// Of `FROM … WHERE …` the condition.
fn only(row: &str) -> &str {
    &row[row.find("WHERE").unwrap()..]
}

/// The entry that the verification named, if it named one.
fn named(broken: &Broken) -> Option<u64> {
    match broken {
        Broken::Missing(index) | Broken::Entry(index, _) => Some(*index),
        Broken::Beside(mismatch) => Some(mismatch.index),
        _ => None,
    }
}

async fn trials(original: Arc<Original>, task: u64) {
    let folder = TempDir::new().unwrap();
    let mut trial = Trial {
        original: &original,
        folder: folder.path(),
        random: StdRng::seed_from_u64(500 + task),
    };
    let mut done = 0;
    while done < TRIALS / TASKS {
        copy(original.folder.path(), folder.path());
        let meddled = trial.meddle().await;
        if let Some((what, expected)) = meddled {
            let kept = std::slice::from_ref(&original.kept);
            match verdict(folder.path(), &original.key, kept).await {
                Ok(_) => panic!("{what}: not noticed"),
                Err(Broken::Store(crate::store::StoreError::MissingTile(_)))
                    if what.contains("tiles") => {}
                Err(Broken::Store(error)) => panic!("{what}: {error}"),
                Err(broken) => {
                    if let Some(expected) = expected {
                        assert_eq!(named(&broken), Some(expected), "{what}: {broken}");
                    }
                }
            }
            done += 1;
        }
        for name in ["citadel", "citadel-index"] {
            for end in ["db-wal", "db-shm"] {
                let _ = fs::remove_file(folder.path().join(format!("{name}.{end}")));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_changed_removed_exchanged_or_cut_off_is_named_in_500_trials() {
    let original = Arc::new(Original::make().await);
    let kept = std::slice::from_ref(&original.kept);
    let verified = verdict(original.folder.path(), &original.key, kept)
        .await
        .unwrap();
    assert_eq!((verified.size, verified.covered), (ENTRIES, ENTRIES));
    assert_eq!(verified.indexed, Some(ENTRIES - 1));
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| tokio::spawn(trials(original.clone(), task)))
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}
