//! What an auditor holds against the entries: what the store keeps beside them, and what the
//! index derived from them.

use super::{LogIndex, StoredEntry, index::EpochRows};

/// An entry, and what the store keeps beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditedEntry {
    /// The entry.
    pub entry: StoredEntry,
    /// The serial beside it, by which it is found.
    pub serial: Option<Vec<u8>>,
    /// What is found by that serial; `None` where there is none, or nothing is found.
    pub found: Option<LogIndex>,
}

/// What the index says of one epoch of the log, as of one moment.
#[derive(Debug)]
pub struct IndexedEpoch(pub(super) EpochRows);

/// The engines' rows: index, serial, bytes, and the index that the serial leads to.
pub(super) type AuditedRow = (i64, Option<Vec<u8>>, Vec<u8>, Option<i64>);

/// What an index has beside the epochs that it covers, as the end of a sentence that begins
/// with an entry.
#[derive(Debug, thiserror::Error)]
pub(super) enum Stray {
    #[error("ends the log; the index covers {0}")]
    Reach(u64),
    #[error("ends the log; the index's table {table} has rows of epoch {epoch}")]
    Epoch { table: &'static str, epoch: i64 },
    #[error("ends the log; the index's subject {0} is nobody's")]
    Subject(i64),
    #[error("ends the log; the index's subjects: {0}")]
    Subjects(String),
    #[error("ends the log; the index is another log's")]
    OtherLog,
    #[error("ends the log; the index can't be read: {0}")]
    Damaged(String),
}

impl From<AuditedRow> for AuditedEntry {
    fn from((index, serial, bytes, found): AuditedRow) -> Self {
        Self {
            entry: (index, bytes).into(),
            serial,
            found: found.map(|found| LogIndex(found.unsigned_abs())),
        }
    }
}
