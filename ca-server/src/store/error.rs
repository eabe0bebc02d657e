//! What can go wrong in a store, in the words of its operator.

use std::{io, path::PathBuf};

use sqlx::error::DatabaseError;

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
    /// Another process holds SQLite's write lock (a shell with an open transaction, a
    /// backup tool). Appending works again once it lets go.
    #[error("the store is locked by another process: {0}")]
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
         give the server the key that the store knows, or another store"
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

    pub(super) fn io(doing: &str, path: &std::path::Path, error: &io::Error) -> Self {
        let message = format!("{doing} {}: {error}", path.display());
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full(message),
            _ => Self::Unavailable(message),
        }
    }
}

/// SQLite's primary result codes that we tell apart (<https://sqlite.org/rescode.html>).
mod code {
    pub(super) const BUSY: i32 = 5;
    pub(super) const LOCKED: i32 = 6;
    pub(super) const IOERR: i32 = 10;
    pub(super) const CORRUPT: i32 = 11;
    pub(super) const FULL: i32 = 13;
    pub(super) const NOTADB: i32 = 26;
    pub(super) const CONSTRAINT_UNIQUE: i32 = 2067;
}

fn extended_code(error: &sqlx::Error) -> Option<i32> {
    error
        .as_database_error()
        .and_then(DatabaseError::code)?
        .parse()
        .ok()
}

/// True when a UNIQUE constraint other than the primary key was violated: a serial.
pub(super) fn is_duplicate_serial(error: &sqlx::Error) -> bool {
    extended_code(error) == Some(code::CONSTRAINT_UNIQUE)
}

/// True when the connection must not be trusted any longer: the operating system failed
/// a read, a write or an fsync under it, or it is gone.
pub(super) fn breaks_connection(error: &sqlx::Error) -> bool {
    extended_code(error).is_none_or(|code| code & 0xff == code::IOERR)
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        let Some(code) = extended_code(&error) else {
            return match error {
                sqlx::Error::PoolClosed => Self::Closed,
                other => Self::Unavailable(other.to_string()),
            };
        };
        let message = error.to_string();
        match code & 0xff {
            code::BUSY | code::LOCKED => Self::Busy(message),
            code::FULL => Self::Full(message),
            code::CORRUPT | code::NOTADB => Self::Corrupt(message),
            _ => Self::Unavailable(message),
        }
    }
}
