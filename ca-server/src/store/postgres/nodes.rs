//! Nodes outside Kubernetes: the writer changes them, readers look at them.

use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use super::{connect, head::Head, select::Reader};
use crate::store::{
    ExternalNode, JoinToken, NewEntry, NodeChange, StoreError,
    nodes::{self, Arg, NodeRow, TokenRow},
    writer::to_row,
};

/// What became of a change.
pub(super) enum Applied {
    /// It is committed, with its entry at this index.
    At(u64),
    /// Nothing was changed: it does not apply.
    No,
    /// Nothing was changed: the log is not the one that was known.
    NoHead,
    /// It is committed under a setting by which it may not last.
    NotDurable,
}

/// One change with its entry, all of it or nothing. The rows of nodes and tokens come first,
/// the head's lock last, as long as appends need it.
pub(super) async fn apply(
    connection: &mut PgConnection,
    change: &NodeChange,
    head: &Head,
    entry: &NewEntry,
) -> Result<Applied, StoreError> {
    let known = to_row(head.known())?;
    let mut transaction = connection.begin().await?;
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
            return Ok(Applied::No);
        }
    }
    let append = format!(
        "WITH grown AS ( \
           UPDATE head SET size = size + 1 WHERE log_id = $1 AND size >= $2 \
           RETURNING size - 1 AS first \
         ), added AS ( \
           INSERT INTO entries (idx, serial, bytes) SELECT first, $3, $4 FROM grown \
         ) \
         SELECT first, {} FROM grown",
        connect::DURABLE
    );
    let row: Option<(i64, bool)> = sqlx::query_as(AssertSqlSafe(append))
        .bind(head.log_id())
        .bind(known)
        .bind(entry.serial.as_deref())
        .bind(entry.bytes.as_slice())
        .fetch_optional(&mut *transaction)
        .await?;
    let Some((first, durable)) = row else {
        transaction.rollback().await?;
        return Ok(Applied::NoHead);
    };
    transaction.commit().await?;
    Ok(if durable {
        Applied::At(first.unsigned_abs())
    } else {
        Applied::NotDurable
    })
}

impl Reader {
    pub(super) async fn token(&self, id: &[u8]) -> Result<Option<JoinToken>, StoreError> {
        let mut lease = self.lease().await?;
        let question = sqlx::query_as(nodes::TOKEN)
            .bind(id)
            .fetch_optional(lease.connection()?);
        let row: Option<TokenRow> = self.within(question).await??;
        lease.give_back();
        Ok(row.map(JoinToken::from))
    }

    pub(super) async fn tokens(&self) -> Result<Vec<JoinToken>, StoreError> {
        let mut lease = self.lease().await?;
        let question = sqlx::query_as(nodes::TOKENS)
            .bind(nodes::MAX_ROWS)
            .fetch_all(lease.connection()?);
        let rows: Vec<TokenRow> = self.within(question).await??;
        lease.give_back();
        Ok(rows.into_iter().map(JoinToken::from).collect())
    }

    pub(super) async fn node(&self, name: &str) -> Result<Option<ExternalNode>, StoreError> {
        let mut lease = self.lease().await?;
        let question = sqlx::query_as(nodes::NODE)
            .bind(name)
            .fetch_optional(lease.connection()?);
        let row: Option<NodeRow> = self.within(question).await??;
        lease.give_back();
        Ok(row.map(ExternalNode::from))
    }

    pub(super) async fn nodes(&self, after: &str) -> Result<Vec<ExternalNode>, StoreError> {
        let mut lease = self.lease().await?;
        let question = sqlx::query_as(nodes::NODES)
            .bind(after)
            .bind(nodes::MAX_ROWS)
            .fetch_all(lease.connection()?);
        let rows: Vec<NodeRow> = self.within(question).await??;
        lease.give_back();
        Ok(rows.into_iter().map(ExternalNode::from).collect())
    }
}
