//! `citadel log verify`.

use std::path::PathBuf;

use citadel_ca_server::log::{Broken, Witness, verify};
use serde_json::json;

use super::source::{SourceArgs, store_failure};
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
        let key = source.key()?;
        let mut witnesses = Vec::new();
        // What the CA keeps beside the store, where it is there.
        let guard = source.path()?.with_file_name("log.checkpoint");
        let guard = guard.exists().then_some(guard);
        for path in self.checkpoint.iter().chain(&guard) {
            let note = std::fs::read_to_string(path)
                .map_err(|error| Failure::local(format!("{}: {error}", path.display())))?;
            witnesses.push(Witness {
                from: path.display().to_string(),
                note,
            });
        }
        let store = source.open().await?;
        let size = store.size().await.map_err(|error| store_failure(&error))?;
        let progress = Progress::new("verifying", size);
        let mut before = 0;
        let verified = verify(&store, &key, &witnesses, |looked_at| {
            progress.advance(looked_at - before);
            before = looked_at;
        })
        .await;
        drop(progress);
        let verified = verified.map_err(|error| match error {
            Broken::Store(error) => store_failure(&error),
            other => Failure::check(other.to_string()),
        })?;
        match format {
            Format::Json => output::json(&json!({
                "valid": true,
                "entries": verified.size,
                "entries_in_checkpoint": verified.covered,
                "entries_in_index": verified.indexed,
                "root": verified.root.to_string(),
            }))?,
            Format::Text => output::text(&format!(
                "valid: {} entries; {} of them in a checkpoint, root {}; {}\n",
                verified.size,
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
