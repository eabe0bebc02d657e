//! What lies beside the CA's key: the log's key, and the newest checkpoint, so that a store
//! that went back in time is noticed.

use std::path::Path;

use citadel_ledger::{Builder, LogKey, VerifierKey};

use super::{Log, LogError, Rollback, Signed, administrator_act};
use crate::keys::files::{Directory, PRIVATE, PUBLIC};

const KEY: &str = "log.key";
const VERIFIER: &str = "log.pub";
const GUARD: &str = "log.checkpoint";

/// The log's key, made where there is none and none was ever used.
pub(super) fn key(directory: &Path, name: &str, used: bool) -> Result<LogKey, LogError> {
    let files = Directory::open(directory)?;
    let path = directory.join(KEY);
    let fault = |error| LogError::Key {
        path: path.clone(),
        error,
    };
    let key = match files.read_private(KEY)? {
        Some(pem) => LogKey::from_pem(name, &pem).map_err(fault)?,
        None if used => return Err(LogError::KeyMissing(path)),
        None => {
            let key = LogKey::generate(name).map_err(fault)?;
            files.create(KEY, PRIVATE, key.to_pem().as_bytes())?;
            key
        }
    };
    publish(&files, key.verifier())?;
    Ok(key)
}

/// For auditors: the public key in the form that `verify-receipt` takes.
fn publish(files: &Directory<'_>, verifier: &VerifierKey) -> Result<(), LogError> {
    let text = format!("{verifier}\n");
    if files.read_public(VERIFIER)?.as_deref() != Some(text.as_bytes()) {
        files.replace(VERIFIER, PUBLIC, text.as_bytes())?;
    }
    Ok(())
}

impl Log {
    /// Holds the store against its own checkpoint and against the guard file's.
    pub(super) async fn check_history(
        &self,
        tree: &Builder,
        guard: Option<Signed>,
        rollback: Rollback,
    ) -> Result<(), LogError> {
        let size = self.store.size().await?;
        // That the tree is the one of the store's checkpoint is known; are the entries there?
        if tree.size() > size {
            return Err(LogError::RolledBack {
                found: size,
                seen: tree.size(),
            });
        }
        let Some(guard) = guard else {
            if self.newest().is_some() {
                tracing::warn!(
                    directory = %self.directory.display(),
                    "there is no log.checkpoint: whether the store went back in time can't be told"
                );
            }
            return Ok(());
        };
        self.judge(tree, &guard, rollback).await
    }

    /// Holds the store against a checkpoint of it that was kept elsewhere.
    ///
    /// # Errors
    /// [`LogError::RolledBack`], [`LogError::OtherHistory`]; [`LogError::Checkpoint`] where it
    /// is none of this log's.
    pub async fn hold_against(&self, note: String, rollback: Rollback) -> Result<(), LogError> {
        let seen = self.open_checkpoint(note)?;
        let tree = match self.builder.lock().await.clone() {
            Some(tree) => tree,
            None => self.resumed().await?.0,
        };
        self.judge(&tree, &seen, rollback).await
    }

    /// Refuses a store that is behind this checkpoint, or accepts it and records that.
    async fn judge(
        &self,
        tree: &Builder,
        guard: &Signed,
        rollback: Rollback,
    ) -> Result<(), LogError> {
        let size = self.store.size().await?;
        match self.check(tree, guard, size).await {
            Err(error @ (LogError::RolledBack { .. } | LogError::OtherHistory { .. }))
                if rollback == Rollback::Accept =>
            {
                tracing::warn!(%error, "accepted, and recorded");
                let details = format!(
                    "{error} The checkpoint was of {} entries with root {}; the store has {size}.",
                    guard.checkpoint.size, guard.checkpoint.root
                );
                self.store
                    .append(vec![administrator_act("accept-rollback", &details)])
                    .await?;
                Ok(())
            }
            outcome => outcome,
        }
    }

    /// Whether the store's history, `size` entries now, goes on from this checkpoint.
    async fn check(&self, tree: &Builder, seen: &Signed, size: u64) -> Result<(), LogError> {
        let checkpoint = &seen.checkpoint;
        if checkpoint.size > size {
            return Err(LogError::RolledBack {
                found: size,
                seen: checkpoint.size,
            });
        }
        let root = if checkpoint.size <= tree.size() {
            super::root_at(self.store.as_ref(), checkpoint.size).await?
        } else {
            // Signed, and lost before it was on the store's disk: the entries yield it again.
            let mut tree = tree.clone();
            self.take_in(&mut tree, checkpoint.size).await?;
            tree.root()
        };
        if root == checkpoint.root {
            Ok(())
        } else {
            Err(LogError::OtherHistory {
                size: checkpoint.size,
            })
        }
    }

    pub(super) fn guard(&self) -> Result<Option<Signed>, LogError> {
        let Some(note) = Directory::open(&self.directory)?.read_public(GUARD)? else {
            return Ok(None);
        };
        let note = String::from_utf8_lossy(&note).into_owned();
        match self.open_checkpoint(note) {
            Ok(signed) => Ok(Some(signed)),
            Err(LogError::Checkpoint(error)) => Err(LogError::Guard {
                path: self.directory.join(GUARD),
                error,
            }),
            Err(error) => Err(error),
        }
    }

    /// Keeps the checkpoint beside the key.
    pub(super) async fn keep(&self, note: String) -> Result<(), LogError> {
        let directory = self.directory.clone();
        let written = tokio::task::spawn_blocking(move || {
            Directory::open(&directory)?.replace(GUARD, PUBLIC, note.as_bytes())
        });
        // It fails only with the runtime.
        written.await.unwrap_or(Ok(())).map_err(LogError::from)
    }
}
