//! SQLite's errors, in our words.

use sqlx::error::DatabaseError;

use crate::store::StoreError;

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
    of(error.as_database_error()?)
}

fn of(error: &dyn DatabaseError) -> Option<i32> {
    error.code()?.parse().ok()
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

pub(in crate::store) fn of_database(error: &dyn DatabaseError) -> StoreError {
    let message = error.to_string();
    match of(error).map(|code| code & 0xff) {
        Some(code::BUSY | code::LOCKED) => StoreError::Busy(message),
        Some(code::FULL) => StoreError::Full(message),
        Some(code::CORRUPT | code::NOTADB) => StoreError::Corrupt(message),
        _ => StoreError::Unavailable(message),
    }
}
