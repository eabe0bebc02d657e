//! The index's database file: made anew whenever it does not fit the log.

use std::{ops::RangeInclusive, path::Path};

use sqlx::{
    ConnectOptions, Connection, SqliteConnection, SqlitePool,
    sqlite::{SqliteJournalMode, SqliteSynchronous},
};

use super::{SqliteOptions, connect, files};
use crate::store::StoreError;

const SCHEMA: &str = include_str!("../../../../migrations/sqlite/index/schema.sql");

/// Goes up with each change of the schema or of what [`crate::store::IndexRow`] derives.
const VERSION: i64 = 1;

/// Pages in the WAL (4 KB each) after which it is copied into the database.
const AUTOCHECKPOINT_PAGES: u32 = 8_000;

/// The pages that an epoch's inserts fall into, in KiB.
const CACHE_KIB: i32 = 8 * 1024;

/// The index of a log, and how far it reaches.
pub(super) struct IndexFile {
    pub(super) connection: SqliteConnection,
    pub(super) indexed: u64,
}

/// Opens the index of the log `log_id`, which has entries of these indexes. Drops and begins
/// a new one where the file is missing, damaged, of another version or of another log.
pub(super) async fn open(
    path: &Path,
    options: &SqliteOptions,
    log_id: &[u8],
    entries: RangeInclusive<u64>,
) -> Result<IndexFile, StoreError> {
    match try_open(path, options, log_id).await {
        Ok(Some(file)) if entries.contains(&file.indexed) => return Ok(file),
        Ok(Some(file)) => {
            tracing::warn!(
                indexed = file.indexed,
                ?entries,
                "the index reaches to where the log has no entries (was an older log \
                 restored?): it is made anew"
            );
            connect::close(file.connection, "index").await;
        }
        Ok(None) => {}
        Err(error) => {
            tracing::warn!(%error, "the index cannot be used: it is made anew");
        }
    }
    files::remove_database(path)?;
    create(path, options, log_id, *entries.start()).await
}

/// `None` when there is none, or one of another version or log.
async fn try_open(
    path: &Path,
    options: &SqliteOptions,
    log_id: &[u8],
) -> Result<Option<IndexFile>, StoreError> {
    if !path.exists() {
        return Ok(None);
    }
    let mut connection = connect(path, options).await?;
    let version: i64 = sqlx::query_scalar("PRAGMA user_version")
        .fetch_one(&mut connection)
        .await?;
    if version == VERSION
        && let Some((of, indexed)) =
            sqlx::query_as::<_, (Vec<u8>, i64)>("SELECT log_id, indexed FROM source")
                .fetch_optional(&mut connection)
                .await?
        && of == log_id
    {
        return Ok(Some(IndexFile {
            connection,
            indexed: indexed.unsigned_abs(),
        }));
    }
    connection.close().await?;
    Ok(None)
}

async fn create(
    path: &Path,
    options: &SqliteOptions,
    log_id: &[u8],
    indexed: u64,
) -> Result<IndexFile, StoreError> {
    files::prepare(path)?;
    let mut connection = connect(path, options).await?;
    let mut transaction = connection.begin().await?;
    sqlx::raw_sql(SCHEMA).execute(&mut *transaction).await?;
    sqlx::query("INSERT INTO source (singleton, log_id, indexed) VALUES (0, ?, ?)")
        .bind(log_id)
        .bind(indexed.cast_signed())
        .execute(&mut *transaction)
        .await?;
    // Last, so that a file without it is an unfinished one.
    sqlx::raw_sql("PRAGMA user_version = 1")
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await?;
    Ok(IndexFile {
        connection,
        indexed,
    })
}

/// `synchronous = NORMAL`: after a power cut the index may lack its newest rows, which
/// it then derives again; it is never damaged.
async fn connect(path: &Path, options: &SqliteOptions) -> Result<SqliteConnection, StoreError> {
    Ok(connect::base(path, options)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Normal)
        .pragma("wal_autocheckpoint", AUTOCHECKPOINT_PAGES.to_string())
        .pragma("cache_size", (-CACHE_KIB).to_string())
        .thread_name(|_| "citadel-index".to_owned())
        .connect()
        .await?)
}

/// Why a reader may not use this index for this log; `None` when it may.
pub(super) async fn unfit(index: &SqlitePool, log: &SqlitePool) -> Option<Unfit> {
    let version: Result<i64, _> = sqlx::query_scalar("PRAGMA user_version")
        .fetch_one(index)
        .await;
    match version {
        Ok(VERSION) => {}
        Ok(_) => return Some(Unfit::OtherVersion),
        Err(error) => return Some(Unfit::Damaged(error.to_string())),
    }
    let of: Result<Vec<u8>, _> = sqlx::query_scalar("SELECT log_id FROM source")
        .fetch_one(index)
        .await;
    let log_id: Result<Vec<u8>, _> = sqlx::query_scalar("SELECT log_id FROM meta")
        .fetch_one(log)
        .await;
    match (of, log_id) {
        (Ok(of), Ok(log_id)) if of == log_id => None,
        (Ok(_), Ok(_)) => Some(Unfit::OtherLog),
        (Err(error), _) | (_, Err(error)) => Some(Unfit::Damaged(error.to_string())),
    }
}

/// Why an index can't be used.
#[derive(Debug)]
pub(super) enum Unfit {
    /// Of an older or newer program: the next start of the server makes it anew.
    OtherVersion,
    /// Of another log.
    OtherLog,
    /// It can't be read.
    Damaged(String),
}
