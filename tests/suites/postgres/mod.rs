//! The store on a real PostgreSQL server: the contract of every store, and what a server
//! can do to it.

mod audit;
mod ca;
#[path = "../../../ca-server/src/store/contract.rs"]
mod contract;
mod faults;
mod lossy;
mod migrations;
mod refused;
mod replicas;
mod retention;
mod tls;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
// What the contract finds in its parent in the store's own tests as well.
use citadel_ca_server::store::{
    ExternalNode, Filter, IndexRow, JoinToken, LogIndex, MAX_APPEND, MAX_ENTRY_BYTES,
    MAX_SERIAL_BYTES, NewEntry, NodeChange, PostgresOptions, PostgresStore, Query, Store,
    StoreError, StoredEntry, UsedBy,
};
use citadel_tests::postgres::Postgres;
use futures::future::join_all;
use tokio::runtime::Runtime;
use tokio::sync::OnceCell;

use self::contract::Database;

/// How the tests open a store: the index keeps up quickly.
fn options(postgres: &Postgres, url: &str) -> PostgresOptions {
    let mut options = PostgresOptions::from_url(url).unwrap();
    options.password_file = Some(postgres.password_file());
    options.index_delay = Duration::from_millis(50);
    options
}

/// A store on the server's database `citadel`.
async fn open(postgres: &Postgres) -> Result<PostgresStore, StoreError> {
    PostgresStore::open(options(postgres, &postgres.url())).await
}

/// Three stores at once on a new database of the server: on an empty one each would make the
/// schema.
async fn three(postgres: &Postgres) -> Vec<Arc<PostgresStore>> {
    let options = options(postgres, &postgres.url_of(&postgres.database().await));
    let opened = join_all((0..3).map(|_| PostgresStore::open(options.clone()))).await;
    opened
        .into_iter()
        .map(|store| Arc::new(store.unwrap()))
        .collect()
}

/// A server that no test stops; each has databases of its own on it.
async fn shared() -> &'static Postgres {
    static SHARED: OnceCell<Postgres> = OnceCell::const_new();
    SHARED.get_or_init(Postgres::start).await
}

struct Fresh(PostgresOptions);

#[async_trait]
impl Database for Fresh {
    async fn open(&self) -> Arc<dyn Store> {
        Arc::new(PostgresStore::open(self.0.clone()).await.unwrap())
    }
}

#[test]
fn keeps_the_contract() {
    let runtime = Runtime::new().unwrap();
    let postgres = runtime.block_on(Postgres::start());
    contract::run(|| {
        let name = runtime.block_on(postgres.database());
        Fresh(options(&postgres, &postgres.url_of(&name)))
    });
}

/// The same in a schema of its own, which the store makes.
#[test]
fn keeps_the_contract_in_a_schema_of_its_own() {
    let runtime = Runtime::new().unwrap();
    let postgres = runtime.block_on(Postgres::start());
    let number = std::cell::Cell::new(0);
    contract::run(|| {
        number.set(number.get() + 1);
        let mut options = options(&postgres, &postgres.url());
        options.schema = Some(format!("log_{}", number.get()));
        Fresh(options)
    });
    let public = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'";
    assert_eq!(runtime.block_on(postgres.query(public)), "0");
}
