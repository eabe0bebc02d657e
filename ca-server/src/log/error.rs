//! Why the log can't be opened, grown or proven.

use std::path::PathBuf;

use citadel_ledger::{
    CheckpointError, KeyError as LogKeyError, MissingNode, TileError, proof::ProofError,
};

use crate::{keys::KeyError, store::StoreError};

/// Why the log can't be opened, grown or proven.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The key file or the guard file, or their directory.
    #[error(transparent)]
    File(#[from] KeyError),
    /// The key in the file.
    #[error("{path}: {error}")]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: LogKeyError,
    },
    /// The store has checkpoints, and there is no key that could have signed them.
    #[error(
        "{0} is missing, and the store's checkpoints were signed with it: \
         put it back (it is in the backup of the directory)"
    )]
    KeyMissing(PathBuf),
    /// A checkpoint is not one of this log, or not whole.
    #[error(
        "a checkpoint of the log is refused: {0}. Every server on one store needs the same \
         log.key in its data_dir"
    )]
    Checkpoint(#[from] CheckpointError),
    /// The guard file.
    #[error("{path}: {error}; if the log's key was replaced on purpose, remove the file")]
    Guard {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: CheckpointError,
    },
    /// The store is older than what was seen of it.
    #[error(
        "the store went back in time: it has {found} entries, and a checkpoint of {seen} was \
         signed before. Put the newer store back; if the loss is real and meant, start once \
         with --accept-rollback, which is recorded"
    )]
    RolledBack {
        /// Entries of the store.
        found: u64,
        /// Entries that the checkpoint counts.
        seen: u64,
    },
    /// The store has another history than what was seen of it.
    #[error(
        "the store's first {size} entries are not those that a checkpoint was signed over. \
         Put the right store back; if this one is meant, start once with --accept-rollback, \
         which is recorded"
    )]
    OtherHistory {
        /// Entries that the checkpoint counts.
        size: u64,
    },
    /// The tiles do not yield the root that was signed.
    #[error("the tree's tiles do not yield the root of its checkpoint of {0} entries")]
    Root(u64),
    /// A tile is missing.
    #[error("the tree is incomplete: {0}")]
    Missing(#[from] MissingNode),
    /// A tile has another size than it should.
    #[error("the tree is damaged: {0}")]
    Tile(#[from] TileError),
    /// No proof.
    #[error(transparent)]
    Proof(#[from] ProofError),
}
