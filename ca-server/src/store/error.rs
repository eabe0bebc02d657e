//! What can go wrong in a store, in the words of its operator.

use std::{io, path::PathBuf};

use sqlx::postgres::PgDatabaseError;

use super::{postgres, sqlite};

/// Why a store could not do what it was asked.
///
/// After any error of an append the caller must assume that nothing was recorded, and
/// must not release what it wanted to record. (The record may exist all the same when
/// a commit's outcome is unknown; the other way round never happens.)
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The append queue is at its limit; try again shortly.
    #[error("the store is overloaded: {queued} entries wait for their commit")]
    Overloaded {
        /// Entries that wait.
        queued: usize,
    },
    /// The disk is full. Appending works again once there is room.
    #[error("the store's disk is full: {0}")]
    Full(String),
    /// Somebody else holds a lock that the store needs (a shell with an open transaction,
    /// a backup tool). Appending works again once it is let go.
    #[error("the store is locked by somebody else: {0}")]
    Busy(String),
    /// Another writer has this store open.
    #[error(
        "{path} is already open for writing by {holder}: one writer at a time \
         (open it read-only, or stop the other one)"
    )]
    AnotherWriter {
        /// The database.
        path: PathBuf,
        /// The other process as far as its lock file tells.
        holder: String,
    },
    /// I/O error, read-only file, failed fsync: the message says which.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// The log has this serial already. Only the append that brought it failed.
    #[error("the log already has an entry with serial {serial}")]
    DuplicateSerial {
        /// The serial, or the serials of the append, in hex.
        serial: String,
    },
    /// An entry, or the number of entries of one append, exceeds its limit.
    #[error("{what} of {size} is over the limit of {limit}")]
    TooLarge {
        /// What was measured.
        what: &'static str,
        /// Its size.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// The store belongs to another issuer key.
    #[error(
        "the store's active issuer key is {active}, this server's is {offered}: \
         give the server the key that the store knows, or another store; to replace that key \
         for good, set ca.replaces_key to {active}"
    )]
    WrongIssuer {
        /// Key id that the store knows, in hex.
        active: String,
        /// Key id that was offered, in hex.
        offered: String,
    },
    /// The database was written by a newer program.
    #[error(
        "the store's schema has version {found}, this program knows {known} at most: \
         use the newer program"
    )]
    NewerSchema {
        /// Version in the database.
        found: i64,
        /// Newest version that this program knows.
        known: i64,
    },
    /// The database was written by an older program, and is only read here.
    #[error(
        "the store's schema has version {found}, this program reads {known}: start the server \
         of this program's version once, which brings it up to date"
    )]
    OlderSchema {
        /// Version in the database.
        found: i64,
        /// The version that this program reads.
        known: i64,
    },
    /// The database has no tables of ours.
    #[error("the database holds no log (is it the right database, and the right schema?)")]
    NoLog,
    /// The log is behind what this process saw of it, or another one: an older copy was
    /// restored, or the database failed over to a standby that had not received all.
    /// The store stops for good: whoever operates it has to judge what is missing.
    #[error(
        "the store went back: {0}; certificates whose records are missing may be in use. \
         Restore the lost entries, or restart the server to go on with this log as it is"
    )]
    WentBack(String),
    /// The database server is older than what the store works with.
    #[error("the database server has version {found}, the store needs {wanted} or later")]
    OldServer {
        /// Its version.
        found: String,
        /// The least version.
        wanted: &'static str,
    },
    /// The settings of the store contradict themselves, or a file that they name can't be
    /// read.
    #[error("the store's settings: {0}")]
    Settings(String),
    /// The database reads back a setting under which a commit would not be durable.
    #[error("the store would not be durable: {setting} reads back {found}, not {wanted}")]
    NotDurable {
        /// The setting.
        setting: &'static str,
        /// Its value.
        found: String,
        /// The value that it must have.
        wanted: &'static str,
    },
    /// The tree has another size than the step began with: another replica was faster.
    #[error("the log's tree no longer has {from} entries")]
    TreeMoved {
        /// The size that the step began with.
        from: u64,
    },
    /// The tree has no such tile.
    #[error("the log's tree has no {}", citadel_ledger::Resource::Hashes(*.0))]
    MissingTile(citadel_ledger::Tile),
    /// The state of a node or of a join token is another one than the change is for.
    #[error("the change does not apply to what the store holds")]
    NotApplied,
    /// What the database holds contradicts itself.
    #[error("the store is corrupt: {0}")]
    Corrupt(String),
    /// The store was opened for reading alone.
    #[error("the store is open read-only")]
    ReadOnly,
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
}

// === impl StoreError ===

impl StoreError {
    /// True when the same call may succeed later without anyone changing it.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Self::Overloaded { .. } | Self::Full(_) | Self::Busy(_) | Self::Unavailable(_)
        )
    }

    /// Whether who only reads can read a schema of this version.
    pub(super) fn of_schema(found: Option<i64>, known: i64) -> Result<(), Self> {
        match found {
            None => Err(Self::NoLog),
            Some(found) if found > known => Err(Self::NewerSchema { found, known }),
            Some(found) if found < known => Err(Self::OlderSchema { found, known }),
            Some(_) => Ok(()),
        }
    }

    pub(super) fn io(doing: &str, path: &std::path::Path, error: &io::Error) -> Self {
        let message = format!("{doing} {}: {error}", path.display());
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full(message),
            _ => Self::Unavailable(message),
        }
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        match error {
            sqlx::Error::PoolClosed => Self::Closed,
            // Of a pool's hook, which may only fail with an error of sqlx's.
            sqlx::Error::Configuration(inner) if inner.is::<Self>() => inner
                .downcast::<Self>()
                .map_or_else(|inner| Self::Unavailable(inner.to_string()), |own| *own),
            sqlx::Error::Database(inner) => {
                if let Some(of_postgres) = inner.try_downcast_ref::<PgDatabaseError>() {
                    return postgres::errors::of_database(of_postgres);
                }
                sqlite::errors::of_database(&*inner)
            }
            other => Self::Unavailable(other.to_string()),
        }
    }
}
