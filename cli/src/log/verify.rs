//! `citadel log verify`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use citadel_ca_server::log::{Broken, Verified, Witness, verify};
use citadel_ca_server::store::Store;
use citadel_ledger::{MAX_NOTE_BYTES, VerifierKey};
use serde_json::json;

use super::source::{SourceArgs, read_bounded, store_failure};
use crate::exit::{Ended, Failure, Outcome};
use crate::output::{self, Format};
use crate::progress::Progress;

/// Verifies the whole log: every entry, every hash, every checkpoint, and against the entries
/// every serial and every row of the index.
///
/// Names the first bad entry and what is wrong with it, and then ends with exit code 1.
#[derive(Debug, clap::Args)]
pub(crate) struct VerifyArgs {
    /// A checkpoint that was kept elsewhere; repeatable.
    #[arg(long, value_name = "FILE")]
    checkpoint: Vec<PathBuf>,
}

impl VerifyArgs {
    pub(crate) async fn run(self, source: &SourceArgs, format: Format) -> Result<Outcome, Ended> {
        let store = source.open().await?;
        let key = source.key()?;
        let mut witnesses = Vec::new();
        // What the CA keeps beside the store, where it is there.
        let guard = source.beside("log.checkpoint")?;
        let guard = guard.filter(|path| path.exists());
        for path in self.checkpoint.iter().chain(&guard) {
            witnesses.push(witness(path)?);
        }
        let verified = verified(&store, &key, &witnesses).await?;
        match format {
            Format::Json => output::json(&json!({
                "valid": true,
                "entries": verified.size,
                "entries_in_checkpoint": verified.covered,
                "entries_in_index": verified.indexed,
                "minimum_index": verified.minimum,
                "root": verified.root.to_string(),
            }))?,
            Format::Text => output::text(&format!(
                "valid: {} entries{}; {} of them in a checkpoint, root {}; {}\n",
                verified.size,
                match verified.minimum {
                    0 => String::new(),
                    minimum => format!(", of those below {minimum} the hashes"),
                },
                verified.covered,
                verified.root,
                match verified.indexed {
                    Some(indexed) => format!("{indexed} in the index"),
                    None => "no index".to_owned(),
                }
            ))?,
        }
        Ok(Outcome::Done)
    }
}

/// The whole log, with a bar on standard error.
pub(super) async fn verified(
    store: &Arc<dyn Store>,
    key: &VerifierKey,
    witnesses: &[Witness],
) -> Result<Verified, Failure> {
    let size = store.size().await.map_err(|error| store_failure(&error))?;
    let progress = Progress::new("verifying", size);
    let verified = verify(store, key, witnesses, |looked_at| {
        progress.at(looked_at, String::new());
    })
    .await;
    drop(progress);
    verified.map_err(|error| match error {
        Broken::Store(error) => store_failure(&error),
        other => Failure::check(other.to_string()),
    })
}

/// A checkpoint in a file, which is no longer than any checkpoint.
pub(super) fn witness(path: &Path) -> Result<Witness, Failure> {
    let bytes = read_bounded(path, MAX_NOTE_BYTES as u64)?;
    let note = String::from_utf8(bytes)
        .map_err(|_| Failure::check(format!("{}: no checkpoint", path.display())))?;
    Ok(Witness {
        from: path.display().to_string(),
        note,
    })
}
