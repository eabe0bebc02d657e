//! Connections to the log's database: what they set, what they read back, the schema.

use std::path::Path;

use sqlx::{
    ConnectOptions, Connection, Row, SqliteConnection, SqlitePool,
    migrate::{MigrateError, Migrator},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

use super::SqliteOptions;
use crate::store::StoreError;

pub(super) static MIGRATIONS: Migrator = sqlx::migrate!("../migrations/sqlite");

/// Six entries of the usual size fill a page; smaller pages leave a fifth empty.
const PAGE_BYTES: u32 = 8192;

/// Pages in the WAL after which a commit copies it into the database: 20 MB, for the length of
/// which appends wait. Commits write at the right end of two B-trees, so that nearly every page is
/// copied once, however often; and a WAL that has its size already costs less to sync.
const AUTOCHECKPOINT_PAGES: u32 = 2_500;

/// Readers at once; each is a thread.
const READERS: u32 = 4;

/// Opens the writer's connection, and refuses one whose commits would not be durable.
pub(super) async fn writer(options: &SqliteOptions) -> Result<SqliteConnection, StoreError> {
    let mut connection = writer_options(options).connect().await?;
    let synchronous = read_back(&mut connection, "synchronous", "PRAGMA synchronous", "2").await?;
    let journal_mode = read_back(
        &mut connection,
        "journal_mode",
        "PRAGMA journal_mode",
        "wal",
    )
    .await?;
    tracing::info!(
        synchronous,
        journal_mode,
        "the log's writer is durable, by what it reads back"
    );
    Ok(connection)
}

fn writer_options(options: &SqliteOptions) -> SqliteConnectOptions {
    base(&options.path, options)
        .page_size(PAGE_BYTES)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(options.synchronous)
        .pragma("wal_autocheckpoint", AUTOCHECKPOINT_PAGES.to_string())
        // macOS alone knows it: there, fsync does not reach the platter.
        .pragma("fullfsync", "ON")
        .thread_name(|_| "citadel-log".to_owned())
}

/// The settings on which durability rests are asked for, not assumed.
async fn read_back(
    connection: &mut SqliteConnection,
    setting: &'static str,
    pragma: &'static str,
    wanted: &'static str,
) -> Result<String, StoreError> {
    let row = sqlx::query(pragma).fetch_one(connection).await?;
    let found = row
        .try_get::<String, _>(0)
        .or_else(|_| row.try_get::<i64, _>(0).map(|number| number.to_string()))?;
    if found == wanted {
        Ok(found)
    } else {
        Err(StoreError::NotDurable {
            setting,
            found,
            wanted,
        })
    }
}

/// Readers of a database that exists. They never write, not even its schema.
pub(super) fn readers(path: &Path, options: &SqliteOptions) -> SqlitePool {
    SqlitePoolOptions::new()
        .max_connections(READERS)
        .test_before_acquire(false)
        .connect_lazy_with(
            base(path, options)
                .create_if_missing(false)
                .read_only(true)
                .thread_name(|_| "citadel-read".to_owned()),
        )
}

/// What every connection has in common. Statements are not logged: they hold what
/// names workloads.
pub(super) fn base(path: &Path, options: &SqliteOptions) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(false)
        .busy_timeout(options.busy_timeout)
        .disable_statement_logging()
}

/// Brings the schema to this program's version; refuses a newer one untouched.
///
/// Through a pool of one connection, because of sqlx's signature: the compiler does not
/// see that the future over a borrowed connection is `Send`.
pub(super) async fn migrate(options: &SqliteOptions) -> Result<(), StoreError> {
    let pool = SqlitePoolOptions::new()
        .max_connections(1)
        .connect_with(writer_options(options))
        .await?;
    let outcome = MIGRATIONS.run(&pool).await.map_err(schema_error);
    pool.close().await;
    outcome
}

/// For a reader: the schema must be one that this program knows.
pub(super) async fn check_schema(readers: &SqlitePool) -> Result<(), StoreError> {
    let found: Option<i64> = sqlx::query_scalar("SELECT max(version) FROM _sqlx_migrations")
        .fetch_one(readers)
        .await?;
    StoreError::of_schema(found, newest())
}

fn schema_error(error: MigrateError) -> StoreError {
    match error {
        MigrateError::VersionMissing(found) => StoreError::NewerSchema {
            found,
            known: newest(),
        },
        MigrateError::Execute(e) | MigrateError::ExecuteMigration(e, _) => e.into(),
        other => StoreError::Corrupt(other.to_string()),
    }
}

fn newest() -> i64 {
    MIGRATIONS
        .iter()
        .map(|migration| migration.version)
        .max()
        .unwrap_or(0)
}

/// Copies the whole WAL into the database and empties it.
///
/// This is more than tidying up. After an fsync that failed, the kernel may hold pages
/// of the WAL that it calls clean and that never reached the disk; a later commit built
/// on them would be lost with them. Copying writes every one of those pages again, into
/// the database, and fsyncs that; so a writer does it before its first commit, and
/// after each I/O error.
pub(super) async fn empty_wal(connection: &mut SqliteConnection) -> Result<(), StoreError> {
    let busy: i64 = sqlx::query_scalar("PRAGMA wal_checkpoint(TRUNCATE)")
        .fetch_one(connection)
        .await?;
    if busy == 0 {
        Ok(())
    } else {
        Err(StoreError::Busy(
            "a reader kept an old snapshot open during the checkpoint".into(),
        ))
    }
}

/// Closes a connection of which nothing more is expected.
pub(super) async fn close(connection: SqliteConnection, what: &str) {
    if let Err(error) = connection.close().await {
        tracing::warn!(%error, "closing the {what} failed");
    }
}

/// The default; other values exist to test that they are refused.
pub(super) const DURABLE: SqliteSynchronous = SqliteSynchronous::Full;
