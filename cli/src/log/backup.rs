//! `citadel log backup` and `citadel log restore`.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use citadel_ca_server::log::Witness;
use citadel_ca_server::store::{SqliteStore, Store};
use citadel_ledger::{Checkpoint, MAX_NOTE_BYTES, VerifierKey};
use serde_json::json;

use super::source::{Place, SourceArgs, exists, parse_key, read_bounded, store_failure};
use super::verify::{verified, witness};
use crate::exit::{Ended, Failure, Outcome};
use crate::output::{self, Format};

const DATABASE: &str = "citadel.db";
const KEY: &str = "log.pub";
const CHECKPOINT: &str = "log.checkpoint";

/// Copies a log on SQLite into a new folder, while its server runs.
///
/// The folder has the log as of one moment, its public key and its newest checkpoint. The
/// keys in data_dir are not in it: back that folder up too. For PostgreSQL use pg_dump or
/// pg_basebackup.
#[allow(clippy::doc_markdown)]
#[derive(Debug, clap::Args)]
pub(crate) struct BackupArgs {
    /// The new folder.
    #[arg(value_name = "DEST")]
    folder: PathBuf,
}

/// Verifies a backup wholly, and puts it where --store says and no log is.
///
/// A CA whose log.checkpoint is newer than the backup refuses to start on it: certificates
/// may be in use whose records are lost. If that is meant, start it once with
/// citadel-ca --accept-rollback, which is recorded.
#[allow(clippy::doc_markdown)]
#[derive(Debug, clap::Args)]
pub(crate) struct RestoreArgs {
    /// The folder that citadel log backup made.
    #[arg(value_name = "BACKUP")]
    folder: PathBuf,
}

fn sqlite(source: &SourceArgs) -> Result<PathBuf, Failure> {
    match source.place()? {
        Place::Sqlite(path) => Ok(path),
        Place::Postgres(_) => Err(Failure::usage("--store: this is for a log on SQLite").next(
            "Back PostgreSQL up with pg_dump or pg_basebackup, and verify what was restored \
             with citadel log verify --store postgres://….",
        )),
    }
}

impl BackupArgs {
    pub(crate) async fn run(self, source: &SourceArgs, format: Format) -> Result<Outcome, Ended> {
        let path = sqlite(source)?;
        exists(&path)?;
        let key = source.key()?;
        if self.folder.exists() {
            return Err(Failure::usage(format!("{} exists already", self.folder.display())).into());
        }
        let mut unfinished = self.folder.clone().into_os_string();
        unfinished.push(".unfinished");
        let unfinished = PathBuf::from(unfinished);
        DirBuilder::new()
            .mode(0o700)
            .create(&unfinished)
            .map_err(|error| local(&unfinished, &error))?;
        let made = fill(&path, &unfinished, &key).await.and_then(|entries| {
            fs::rename(&unfinished, &self.folder).map_err(|error| local(&self.folder, &error))?;
            Ok(entries)
        });
        if made.is_err() {
            let _ = fs::remove_dir_all(&unfinished);
        }
        let entries = made?;
        match format {
            Format::Json => output::json(&json!({ "entries": entries }))?,
            Format::Text => {
                output::text(&format!("{entries} entries in {}\n", self.folder.display()))?;
            }
        }
        Ok(Outcome::Done)
    }
}

/// Writes all that a backup has; says how many entries that are.
async fn fill(store: &Path, folder: &Path, key: &VerifierKey) -> Result<u64, Failure> {
    let failed = |error| store_failure(&error);
    let copy = folder.join(DATABASE);
    let store = SqliteStore::open_read_only(store).await.map_err(failed)?;
    store.back_up(&copy).await.map_err(failed)?;
    store.close().await;
    // Of the copy: the original has gone on meanwhile.
    let copy = SqliteStore::open_read_only(copy).await.map_err(failed)?;
    let tree = copy.tree().await.map_err(failed)?;
    let entries = copy.size().await.map_err(failed)?;
    copy.close().await;
    let write = |name: &str, text: &str| {
        let path = folder.join(name);
        fs::write(&path, text).map_err(|error| local(&path, &error))
    };
    write(KEY, &format!("{key}\n"))?;
    if let Some(note) = tree.checkpoint {
        write(CHECKPOINT, &note)?;
    }
    Ok(entries)
}

impl RestoreArgs {
    pub(crate) async fn run(self, source: &SourceArgs, format: Format) -> Result<Outcome, Ended> {
        let to = sqlite(source)?;
        let from = self.folder.join(DATABASE);
        exists(&from)?;
        if to.exists() {
            return Err(
                Failure::usage(format!("{} exists: nothing is overwritten", to.display()))
                    .next("Move it away first, with what SQLite keeps beside it (-wal, -shm).")
                    .into(),
            );
        }
        let key = match source.given_key()? {
            Some(key) => key,
            None => parse_key(&read_bounded(
                &self.folder.join(KEY),
                MAX_NOTE_BYTES as u64,
            )?)?,
        };
        let beside = to.with_file_name(KEY);
        if beside.exists() && parse_key(&read_bounded(&beside, MAX_NOTE_BYTES as u64)?)? != key {
            return Err(Failure::check(format!(
                "the backup is of another log than the one of {}",
                beside.display()
            ))
            .into());
        }
        let kept = self.folder.join(CHECKPOINT);
        let witnesses: Vec<Witness> = if kept.exists() {
            vec![witness(&kept)?]
        } else {
            Vec::new()
        };
        let store = SqliteStore::open_read_only(&from)
            .await
            .map_err(|error| store_failure(&error))?;
        let store: Arc<dyn Store> = Arc::new(store);
        let checked = verified(&store, &key, &witnesses).await;
        store.close().await;
        let checked = checked?;
        SqliteStore::restore(&from, &to).map_err(|error| store_failure(&error))?;
        let seen = seen(&to.with_file_name(CHECKPOINT))?;
        match format {
            Format::Json => output::json(&json!({
                "entries": checked.size,
                "entries_in_checkpoint": checked.covered,
                "entries_seen": seen,
            }))?,
            Format::Text => output::text(&format!(
                "{} entries, valid, in {}\n",
                checked.size,
                to.display()
            ))?,
        }
        if let Some(seen) = seen.filter(|seen| *seen > checked.size) {
            output::note(&format!(
                "A checkpoint of {seen} entries was signed after this backup: certificates may \
                 be in use whose records are lost, and the CA refuses to start. If the loss is \
                 real and meant, start it once with citadel-ca --accept-rollback, which is \
                 recorded."
            ));
        }
        Ok(Outcome::Done)
    }
}

/// Entries that the CA's own newest checkpoint counts, where that lies beside the store.
fn seen(guard: &Path) -> Result<Option<u64>, Failure> {
    if !guard.exists() {
        return Ok(None);
    }
    let note = witness(guard)?.note;
    Ok(Checkpoint::unverified(note.as_bytes())
        .ok()
        .map(|checkpoint| checkpoint.size))
}

fn local(path: &Path, error: &std::io::Error) -> Failure {
    Failure::local(format!("{}: {error}", path.display()))
}
