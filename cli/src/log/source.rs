//! Where the log is, and what verifies it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use citadel_ca_server::log::LogError;
use citadel_ca_server::store::{PostgresOptions, PostgresStore, SqliteStore, Store, StoreError};
use citadel_identity::serial::Serial;
use citadel_ledger::VerifierKey;

use super::auditor::{Auditor, Local, Remote};
use super::server::ServerArgs;
use crate::exit::Failure;

/// A verifier key is shorter than this.
const MAX_KEY: u64 = 4096;

/// Where the log is, and what verifies it.
// clap shows these comments as they are: no Markdown in them.
#[allow(clippy::doc_markdown)]
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct SourceArgs {
    /// The store: sqlite:PATH, or postgres://user@host:5432/database.
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
    /// the store on SQLite]
    #[arg(long, global = true, value_name = "FILE|KEY")]
    key: Option<String>,

    /// A running CA in place of its store: host:port of its gRPC, or unix:///path of its local
    /// administrators' socket. For search, show, prove, tail and stats.
    #[arg(long = "server", global = true, value_name = "ADDRESS")]
    server_address: Option<String>,

    #[command(flatten)]
    pub(super) server: ServerArgs,

    /// File with the password for PostgreSQL. Without it: PGPASSWORD, the file that PGPASSFILE
    /// names, or ~/.pgpass.
    #[arg(long, global = true, value_name = "FILE")]
    password_file: Option<PathBuf>,

    /// Schema of the log's tables in PostgreSQL. [default: the first of the role's
    /// search_path]
    #[arg(long, global = true, value_name = "NAME")]
    schema: Option<String>,
}

/// A store by its kind.
pub(super) enum Place {
    Sqlite(PathBuf),
    Postgres(Box<PostgresOptions>),
}

impl SourceArgs {
    /// Where the store is.
    pub(super) fn place(&self) -> Result<Place, Failure> {
        if let Some(path) = self.store.strip_prefix("sqlite:")
            && !path.is_empty()
        {
            return match (&self.password_file, &self.schema) {
                (None, None) => Ok(Place::Sqlite(PathBuf::from(path))),
                _ => Err(Failure::usage(
                    "--password-file and --schema are for a store in PostgreSQL",
                )),
            };
        }
        if !self.store.starts_with("postgres") {
            // Never shown: it may hold a password.
            return Err(Failure::usage(
                "--store: write sqlite:PATH or postgres://user@host:5432/database",
            ));
        }
        let mut options = PostgresOptions::from_url(&self.store)
            .map_err(|error| Failure::usage(format!("--store: {error}")))?;
        if let Some(schema) = &self.schema
            && !PostgresOptions::is_schema_name(schema)
        {
            return Err(Failure::usage(
                "--schema: up to 63 lower-case letters, digits and underscores",
            ));
        }
        options.schema.clone_from(&self.schema);
        options.password_file.clone_from(&self.password_file);
        Ok(Place::Postgres(Box::new(options)))
    }

    /// A file that the CA keeps beside a store on SQLite; `None` where that is elsewhere.
    pub(super) fn beside(&self, name: &str) -> Result<Option<PathBuf>, Failure> {
        Ok(match self.place()? {
            Place::Sqlite(path) => Some(path.with_file_name(name)),
            Place::Postgres(_) => None,
        })
    }

    /// The log, on a running server where one is named.
    pub(super) async fn auditor(&self) -> Result<Box<dyn Auditor>, Failure> {
        Ok(match &self.server_address {
            Some(address) => Box::new(Remote::new(
                self.server.channel(address)?,
                self.server.authorization()?,
            )),
            None => Box::new(Local(self.open().await?)),
        })
    }

    /// Opens the store for reading.
    pub(crate) async fn open(&self) -> Result<Arc<dyn Store>, Failure> {
        if self.server_address.is_some() {
            return Err(Failure::usage(
                "this command reads a store: give --store, not --server",
            ));
        }
        let opened: Result<Arc<dyn Store>, StoreError> = match self.place()? {
            Place::Sqlite(path) => {
                exists(&path)?;
                SqliteStore::open_read_only(&path)
                    .await
                    .map(|store| Arc::new(store) as _)
            }
            Place::Postgres(options) => PostgresStore::open_read_only(*options)
                .await
                .map(|store| Arc::new(store) as _),
        };
        opened.map_err(|error| store_failure(&error))
    }

    /// The log's public key, where the command line has it.
    pub(super) fn given_key(&self) -> Result<Option<VerifierKey>, Failure> {
        let text = match &self.key {
            None => return Ok(None),
            Some(key) if key.contains('+') && !Path::new(key).exists() => key.clone().into_bytes(),
            Some(file) => read_key(Path::new(file))?,
        };
        parse_key(&text).map(Some)
    }

    /// The log's public key.
    pub(crate) fn key(&self) -> Result<VerifierKey, Failure> {
        if let Some(key) = self.given_key()? {
            return Ok(key);
        }
        match self.beside("log.pub")? {
            Some(file) => parse_key(&read_key(&file)?),
            None => Err(Failure::usage(
                "--key is needed with a store in PostgreSQL: the log's public key, which each \
                 server keeps as log.pub in its data_dir",
            )),
        }
    }
}

/// A verifier key as `log.pub` has it.
pub(super) fn parse_key(text: &[u8]) -> Result<VerifierKey, Failure> {
    String::from_utf8_lossy(text)
        .trim()
        .parse()
        .map_err(|error| Failure::usage(format!("the log's public key: {error}")))
}

/// A clear word where a file is missing: SQLite's own is none.
pub(super) fn exists(path: &Path) -> Result<(), Failure> {
    if path.exists() {
        return Ok(());
    }
    Err(Failure::local(format!("{} does not exist", path.display()))
        .next("Name the CA's store with --store sqlite:PATH."))
}

fn read_key(path: &Path) -> Result<Vec<u8>, Failure> {
    read_bounded(path, MAX_KEY).map_err(|failure| {
        failure.next(
            "Give the log's public key with --key: the CA keeps it as log.pub in its data_dir.",
        )
    })
}

/// A file of at most so many bytes; `-` is standard input.
pub(super) fn read_bounded(path: &Path, most: u64) -> Result<Vec<u8>, Failure> {
    use std::io::Read as _;
    let failed = |error| Failure::local(format!("{}: {error}", path.display()));
    let mut bytes = Vec::new();
    if path == Path::new("-") {
        std::io::stdin().take(most + 1).read_to_end(&mut bytes)
    } else {
        fs::File::open(path).and_then(|file| file.take(most + 1).read_to_end(&mut bytes))
    }
    .map_err(failed)?;
    if bytes.len() as u64 > most {
        return Err(Failure::usage(format!(
            "{}: longer than {most} bytes",
            path.display()
        )));
    }
    Ok(bytes)
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
        StoreError::Busy(_) | StoreError::Unavailable(_) => Failure::unavailable(error.to_string()),
        _ => Failure::local(error.to_string()),
    }
}

pub(crate) fn log_failure(error: &LogError) -> Failure {
    match error {
        LogError::Store(error) => store_failure(error),
        other => Failure::check(other.to_string()),
    }
}
