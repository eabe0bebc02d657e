#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

mod faults;
mod files;
mod group_commit;
mod migrations;

use std::{path::Path, sync::Arc, time::Duration};

use async_trait::async_trait;
use sqlx::{ConnectOptions, SqliteConnection, sqlite::SqliteConnectOptions};
use tempfile::TempDir;

use super::{SqliteOptions, SqliteStore};
use crate::store::{
    Store,
    contract::{self, Database},
};

struct Folder(TempDir);

#[async_trait]
impl Database for Folder {
    async fn open(&self) -> Arc<dyn Store> {
        Arc::new(SqliteStore::open(options(self.0.path())).await.unwrap())
    }
}

#[test]
fn keeps_the_contract() {
    contract::run(|| Folder(TempDir::new().unwrap()));
}

/// Options for tests: the index keeps up quickly.
fn options(folder: &Path) -> SqliteOptions {
    SqliteOptions {
        index_delay: Duration::from_millis(50),
        ..SqliteOptions::new(folder.join("citadel.db"))
    }
}

/// A connection of somebody else, with SQLite's own settings.
async fn shell(database: &Path) -> SqliteConnection {
    SqliteConnectOptions::new()
        .filename(database)
        .connect()
        .await
        .unwrap()
}
