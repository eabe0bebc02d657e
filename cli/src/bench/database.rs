//! The log of the server under test: a fresh one for each run.

use std::path::Path;

use citadel_ca_server::store::{PostgresOptions, PostgresStore};
use serde_json::{Value, json};

use super::args::Store;
use crate::exit::Failure;

/// A log that nobody had before, and that is thrown away.
pub(crate) struct Database {
    store: Store,
    /// In a database of PostgreSQL.
    schema: String,
}

impl Database {
    pub(crate) fn new(store: &Store) -> Self {
        Self {
            store: store.clone(),
            schema: format!("citadel_bench_{:016x}", rand::random::<u64>()),
        }
    }

    /// What the server's configuration has to say; its data lie in this folder.
    pub(crate) fn setting(&self, data: &Path) -> Value {
        match &self.store {
            Store::Sqlite => format!("sqlite:{}", data.join("citadel.db").display()).into(),
            Store::Postgres(url) => json!({ "postgres": { "url": url, "schema": self.schema } }),
        }
    }

    /// Whether it is on the disk of the server's folder.
    pub(crate) fn is_local(&self) -> bool {
        self.store == Store::Sqlite
    }

    /// Takes away what does not go with the folder.
    pub(crate) async fn drop(self) -> Result<(), Failure> {
        let Store::Postgres(url) = &self.store else {
            return Ok(());
        };
        let cannot = |error: &dyn std::fmt::Display| {
            Failure::local(format!("can't drop the schema {}: {error}", self.schema))
                .next("Drop it yourself: DROP SCHEMA … CASCADE.")
        };
        let mut options = PostgresOptions::from_url(url).map_err(|error| cannot(&error))?;
        options.schema = Some(self.schema.clone());
        PostgresStore::drop_schema(&options)
            .await
            .map_err(|error| cannot(&error))
    }
}
