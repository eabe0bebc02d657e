//! Where the log is, and what verifies it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use citadel_ca_server::log::LogError;
use citadel_ca_server::store::{SqliteStore, Store, StoreError};
use citadel_identity::serial::Serial;
use citadel_ledger::VerifierKey;

use crate::exit::Failure;

/// A verifier key is shorter than this.
const MAX_KEY: u64 = 4096;

/// Where the log is, and what verifies it.
// clap shows these comments as they are: no Markdown in them.
#[allow(clippy::doc_markdown)]
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct SourceArgs {
    /// The store, such as sqlite:/var/lib/citadel/citadel.db.
    #[arg(
        long,
        global = true,
        value_name = "STORE",
        env = "CITADEL_STORE",
        default_value = "sqlite:/var/lib/citadel/citadel.db",
        hide_default_value = false
    )]
    store: String,

    /// The log's public key: a file or the key itself, NAME+ID+KEY. [default: log.pub beside
    /// the store]
    #[arg(long, global = true, value_name = "FILE|KEY")]
    key: Option<String>,
}

impl SourceArgs {
    /// The store's file.
    pub(super) fn path(&self) -> Result<PathBuf, Failure> {
        match self.store.strip_prefix("sqlite:") {
            Some(path) if !path.is_empty() => Ok(PathBuf::from(path)),
            _ => Err(Failure::usage(format!(
                "--store {}: this release reads sqlite:PATH",
                self.store
            ))),
        }
    }

    /// Opens the store for reading.
    pub(crate) async fn open(&self) -> Result<Arc<dyn Store>, Failure> {
        let path = self.path()?;
        if !path.exists() {
            return Err(Failure::local(format!("{} does not exist", path.display()))
                .next("Name the CA's store with --store sqlite:PATH."));
        }
        match SqliteStore::open_read_only(&path).await {
            Ok(store) => Ok(Arc::new(store)),
            Err(error) => Err(store_failure(&error)),
        }
    }

    /// The log's public key.
    pub(crate) fn key(&self) -> Result<VerifierKey, Failure> {
        let text = match &self.key {
            Some(key) if key.contains('+') && !Path::new(key).exists() => key.clone(),
            Some(file) => read_key(Path::new(file))?,
            None => read_key(&self.path()?.with_file_name("log.pub"))?,
        };
        text.trim()
            .parse()
            .map_err(|error| Failure::usage(format!("--key: {error}")))
    }
}

fn read_key(path: &Path) -> Result<String, Failure> {
    let failed = |error: &dyn std::fmt::Display| {
        Failure::local(format!("{}: {error}", path.display())).next(
            "Give the log's public key with --key: the CA keeps it as log.pub in its data_dir.",
        )
    };
    let size = fs::metadata(path).map_err(|error| failed(&error))?.len();
    if size > MAX_KEY {
        return Err(failed(&"too long for a key"));
    }
    fs::read_to_string(path).map_err(|error| failed(&error))
}

/// A serial as people have it: hex, with or without colons, in either case.
pub(crate) fn parse_serial(text: &str) -> Result<Serial, String> {
    let plain: String = text.chars().filter(|c| *c != ':').collect();
    plain
        .to_ascii_lowercase()
        .parse()
        .map_err(|_| "a serial is written in hex, as the CA and openssl print it".to_owned())
}

pub(crate) fn store_failure(error: &StoreError) -> Failure {
    match error {
        StoreError::Corrupt(_) | StoreError::MissingTile(_) => Failure::check(error.to_string()),
        _ => Failure::local(error.to_string()),
    }
}

pub(crate) fn log_failure(error: &LogError) -> Failure {
    match error {
        LogError::Store(error) => store_failure(error),
        other => Failure::check(other.to_string()),
    }
}

/// A certificate's entry, or a clear word that there is none.
pub(crate) async fn issued(
    store: &dyn Store,
    serial: &Serial,
) -> Result<citadel_ca_server::store::StoredEntry, Failure> {
    store
        .issued_by_serial(serial.as_bytes())
        .await
        .map_err(|error| store_failure(&error))?
        .ok_or_else(|| Failure::check(format!("serial {serial} is not in the log")))
}
