//! `citadel log reindex`.

use std::sync::Arc;
use std::time::Duration;

use citadel_ca_server::store::{PostgresStore, SqliteOptions, SqliteStore, Store, StoreError};
use serde_json::json;

use super::source::{Place, SourceArgs, store_failure};
use crate::exit::{Ended, Failure, Outcome};
use crate::output::{self, Format};
use crate::progress::Progress;

/// How often the bar moves.
const LOOK: Duration = Duration::from_millis(250);

/// Drops the index and derives it anew from the log.
///
/// On SQLite it needs the store for itself: stop the server first. On PostgreSQL servers go
/// on; until it is done they answer questions from the log, which is slow.
#[derive(Debug, clap::Args)]
pub(crate) struct ReindexArgs {}

impl ReindexArgs {
    pub(crate) async fn run(self, source: &SourceArgs, format: Format) -> Result<Outcome, Ended> {
        // Nothing is made and no schema changed by this command.
        source.open().await?.close().await;
        let opened: Result<Arc<dyn Store>, StoreError> = match source.place()? {
            Place::Sqlite(path) => SqliteStore::open(SqliteOptions::new(path))
                .await
                .map(|store| Arc::new(store) as _),
            Place::Postgres(options) => PostgresStore::open(*options)
                .await
                .map(|store| Arc::new(store) as _),
        };
        let store = opened.map_err(|error| match error {
            StoreError::AnotherWriter { .. } => Failure::local(error.to_string())
                .next("Stop the server first: reindex needs the store for itself."),
            other => store_failure(&other),
        })?;
        let outcome = rebuild(store.as_ref()).await;
        store.close().await;
        let entries = outcome?;
        match format {
            Format::Json => output::json(&json!({ "entries_in_index": entries }))?,
            Format::Text => output::text(&format!("{entries} entries in the index\n"))?,
        }
        Ok(Outcome::Done)
    }
}

async fn rebuild(store: &dyn Store) -> Result<u64, Failure> {
    let size = store.size().await.map_err(|error| store_failure(&error))?;
    let progress = Progress::new("indexing", size);
    let mut ticks = tokio::time::interval(LOOK);
    let rebuilding = store.reindex();
    tokio::pin!(rebuilding);
    loop {
        tokio::select! {
            outcome = &mut rebuilding => {
                outcome.map_err(|error| store_failure(&error))?;
                return Ok(store.stats().indexed);
            }
            () = crate::interrupted() => {
                return Err(Failure::local("interrupted: the index is not complete")
                    .next("The server goes on with it when it starts."));
            }
            _ = ticks.tick() => progress.at(store.stats().indexed, String::new()),
        }
    }
}
