//! PostgreSQL's errors, in our words.

use sqlx::postgres::PgDatabaseError;

use crate::store::StoreError;

/// The codes that we tell apart
/// (<https://www.postgresql.org/docs/current/errcodes-appendix.html>).
mod code {
    pub(super) const UNIQUE_VIOLATION: &str = "23505";
    pub(super) const SERIALIZATION_FAILURE: &str = "40001";
    pub(super) const DEADLOCK_DETECTED: &str = "40P01";
    pub(super) const LOCK_NOT_AVAILABLE: &str = "55P03";
    /// A statement that took longer than `statement_timeout`.
    pub(super) const QUERY_CANCELED: &str = "57014";
    pub(super) const DISK_FULL: &str = "53100";
    pub(super) const UNDEFINED_TABLE: &str = "42P01";
    pub(super) const UNDEFINED_COLUMN: &str = "42703";
    pub(super) const DATA_CORRUPTED: &str = "XX001";
    pub(super) const INDEX_CORRUPTED: &str = "XX002";
    /// A former primary that is a standby now.
    pub(super) const READ_ONLY_TRANSACTION: &str = "25006";
    /// The server ends this session or all of them.
    pub(super) const ENDED: [&str; 3] = ["57P01", "57P02", "57P05"];
}

/// What an error of a statement that is its own transaction says about that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// A serial is in the log already; nothing was recorded.
    Duplicate,
    /// Nothing was recorded; the same statement may work at once on this connection.
    Again,
    /// Nothing was recorded; the connection is good.
    Nothing,
    /// Nothing was recorded, and this server can't: look for another.
    Reconnect,
    /// The connection ended, and whether the commit happened is unknown.
    Unknown,
}

// === impl Outcome ===

impl Outcome {
    pub(super) fn of(error: &sqlx::Error) -> Self {
        let Some(database) = error
            .as_database_error()
            .and_then(|error| error.try_downcast_ref::<PgDatabaseError>())
        else {
            return Self::Unknown;
        };
        match database.code() {
            code::UNIQUE_VIOLATION if database.constraint() == Some("entries_serial_key") => {
                Self::Duplicate
            }
            code::SERIALIZATION_FAILURE
            | code::DEADLOCK_DETECTED
            | code::LOCK_NOT_AVAILABLE
            | code::QUERY_CANCELED => Self::Again,
            code::READ_ONLY_TRANSACTION => Self::Reconnect,
            // The server may have said so after the commit.
            ended if code::ENDED.contains(&ended) || ended.starts_with("08") => Self::Unknown,
            _ => Self::Nothing,
        }
    }
}

pub(in crate::store) fn of_database(error: &PgDatabaseError) -> StoreError {
    let message = error.message().to_owned();
    match error.code() {
        code::SERIALIZATION_FAILURE | code::DEADLOCK_DETECTED | code::LOCK_NOT_AVAILABLE => {
            StoreError::Busy(message)
        }
        code::DISK_FULL => StoreError::Full(message),
        code::UNDEFINED_TABLE
        | code::UNDEFINED_COLUMN
        | code::DATA_CORRUPTED
        | code::INDEX_CORRUPTED => StoreError::Corrupt(message),
        code::UNIQUE_VIOLATION if error.constraint() == Some("entries_pkey") => {
            StoreError::Corrupt("the log has entries above its size".into())
        }
        _ => StoreError::Unavailable(message),
    }
}
