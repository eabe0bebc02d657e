//! Nodes outside Kubernetes: the writer changes them, readers look at them.

use sqlx::{Connection as _, SqliteConnection, SqlitePool};

use crate::store::{
    ExternalNode, JoinToken, NewEntry, NodeChange, StoreError,
    nodes::{self, Arg, NodeRow, TokenRow},
};

/// One change with its entry at `index`, all of it or nothing; false where it does not apply.
pub(super) async fn apply(
    connection: &mut SqliteConnection,
    change: &NodeChange,
    index: i64,
    entry: &NewEntry,
) -> Result<bool, sqlx::Error> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    for step in change.steps() {
        let statement = step
            .args
            .iter()
            .fold(sqlx::query(step.sql), |query, arg| match arg {
                Arg::Text(text) => query.bind(*text),
                Arg::Bytes(bytes) => query.bind(*bytes),
                Arg::Int(number) => query.bind(*number),
            });
        let done = statement.execute(&mut *transaction).await?;
        if step.must && done.rows_affected() == 0 {
            transaction.rollback().await?;
            return Ok(false);
        }
    }
    sqlx::query("INSERT INTO entries (idx, serial, bytes) VALUES ($1, $2, $3)")
        .bind(index)
        .bind(entry.serial.as_deref())
        .bind(entry.bytes.as_slice())
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await?;
    Ok(true)
}

pub(super) async fn token(log: &SqlitePool, id: &[u8]) -> Result<Option<JoinToken>, StoreError> {
    let row: Option<TokenRow> = sqlx::query_as(nodes::TOKEN)
        .bind(id)
        .fetch_optional(log)
        .await?;
    Ok(row.map(JoinToken::from))
}

pub(super) async fn tokens(log: &SqlitePool) -> Result<Vec<JoinToken>, StoreError> {
    let rows: Vec<TokenRow> = sqlx::query_as(nodes::TOKENS)
        .bind(nodes::MAX_ROWS)
        .fetch_all(log)
        .await?;
    Ok(rows.into_iter().map(JoinToken::from).collect())
}

pub(super) async fn node(log: &SqlitePool, name: &str) -> Result<Option<ExternalNode>, StoreError> {
    let row: Option<NodeRow> = sqlx::query_as(nodes::NODE)
        .bind(name)
        .fetch_optional(log)
        .await?;
    Ok(row.map(ExternalNode::from))
}

pub(super) async fn list(log: &SqlitePool, after: &str) -> Result<Vec<ExternalNode>, StoreError> {
    let rows: Vec<NodeRow> = sqlx::query_as(nodes::NODES)
        .bind(after)
        .bind(nodes::MAX_ROWS)
        .fetch_all(log)
        .await?;
    Ok(rows.into_iter().map(ExternalNode::from).collect())
}
