//! `kill -9` at any instant under load: what a client received is in the log and proven,
//! no serial was given twice, no index is skipped.
//!
//! `tests/long-run` runs the same tests with many more kills, on a store that it keeps.

mod dice;
mod kept;
mod kills;

use kept::{Engine, Plan};

#[tokio::test]
async fn on_sqlite_what_a_client_received_is_proven_after_each_of_50_kills() {
    kills::run(Plan::of(Engine::Sqlite, 50)).await;
}

#[tokio::test]
async fn on_postgres_what_a_client_received_is_proven_after_each_of_40_kills() {
    kills::run(Plan::of(Engine::Postgres, 40)).await;
}
