//! The log as the writer sees it.
//!
//! A batch is one statement and its own transaction. It takes the head row's lock, which
//! numbers the entries of several servers without a gap, and its answer (the end of the
//! implicit transaction) comes after the commit is on the disk. One statement, so that
//! the lock is held for no round trip, and nothing is left open when we vanish.

use std::sync::Arc;

use async_trait::async_trait;
use sqlx::{AssertSqlSafe, PgConnection, Row as _};
use tokio::time::{Duration, Instant, sleep, timeout};

use super::{
    connect,
    errors::Outcome,
    head::{Head, Newest},
    nodes::{self, Applied},
    options::{PostgresOptions, Role},
    tree,
};
use crate::store::{
    Growth, NewEntry, NodeChange, StoreError,
    queue::Append,
    shared::Shared,
    writer::{Failure, Log, no_minimum, to_row},
};

/// First and longest pause between two tries.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));

pub(super) struct PostgresLog {
    options: Arc<PostgresOptions>,
    head: Arc<Head>,
    shared: Arc<Shared>,
    connection: Option<PgConnection>,
    newest: Option<Newest>,
    /// The last failure to connect, and when it was.
    away: Option<(Instant, StoreError)>,
    append: Arc<str>,
}

/// Why one try failed.
enum Try {
    Duplicate,
    /// Nothing was recorded: the same may work a moment later.
    Again(StoreError),
    /// There is no sense in another try, or what happened is unknown.
    Final(StoreError),
}

// === impl PostgresLog ===

impl PostgresLog {
    pub(super) fn new(
        options: Arc<PostgresOptions>,
        head: Arc<Head>,
        shared: Arc<Shared>,
        connection: PgConnection,
    ) -> Self {
        // Settings are looked at in the commit's own statement as well: a reload can change
        // them under an open connection.
        let append = format!(
            "WITH grown AS ( \
               UPDATE head SET size = size + $1 WHERE log_id = $2 AND size >= $3 \
               RETURNING size - $1 AS first \
             ), added AS ( \
               INSERT INTO entries (idx, serial, bytes) \
               SELECT grown.first + new.place - 1, new.serial, new.bytes \
               FROM grown CROSS JOIN \
                    unnest($4::bytea[], $5::bytea[]) WITH ORDINALITY AS new (serial, bytes, place) \
               ORDER BY new.place \
             ) \
             SELECT first, {} FROM grown",
            connect::DURABLE
        );
        Self {
            options,
            head,
            shared,
            connection: Some(connection),
            newest: None,
            away: None,
            append: append.into(),
        }
    }

    /// The connection, taken out: only who got a clear answer on it puts it back.
    async fn take_connection(&mut self) -> Result<PgConnection, StoreError> {
        self.head.check()?;
        if let Some(connection) = self.connection.take() {
            return Ok(connection);
        }
        // While the database is known to be away, callers are not kept waiting for it.
        if let Some((when, error)) = &self.away
            && !self.shared.health.borrow().is_ready()
            && when.elapsed() < PAUSES.1
        {
            return Err(error.clone());
        }
        match self.reconnect().await {
            Ok(connection) => {
                self.away = None;
                Ok(connection)
            }
            Err(error) => {
                self.away = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    async fn reconnect(&self) -> Result<PgConnection, StoreError> {
        let mut connection = connect::connect(&self.options, Role::Writer).await?;
        let verify = self.head.verify(&mut connection, self.newest.as_ref());
        timeout(self.options.patience(Role::Writer), verify)
            .await
            .map_err(|_| self.no_answer())??;
        tracing::info!("connected to the database again");
        Ok(connection)
    }

    fn no_answer(&self) -> StoreError {
        StoreError::Unavailable(format!(
            "{}: no answer within {:?}",
            self.options,
            self.options.patience(Role::Writer)
        ))
    }

    async fn try_write(&mut self, appends: &[Append]) -> Result<u64, Try> {
        // Whatever ends this early drops the connection: a question that still runs on it is
        // the server's to end.
        let mut connection = match self.take_connection().await {
            Ok(connection) => connection,
            Err(error) if error.is_retryable() => return Err(Try::Again(error)),
            Err(error) => return Err(Try::Final(error)),
        };
        let entries = || appends.iter().flat_map(|append| &append.entries);
        let serials: Vec<Option<&[u8]>> = entries().map(|entry| entry.serial.as_deref()).collect();
        let bytes: Vec<&[u8]> = entries().map(|entry| entry.bytes.as_slice()).collect();
        let known = self.head.known();
        let count = bytes.len() as u64;
        let rows = || Ok::<_, StoreError>((to_row(count)?, to_row(known)?));
        let (count_row, known_row) = rows().map_err(Try::Final)?;
        let statement = sqlx::query(AssertSqlSafe(Arc::clone(&self.append)))
            .bind(count_row)
            .bind(self.head.log_id())
            .bind(known_row)
            .bind(serials)
            .bind(bytes);
        let answered = timeout(
            self.options.patience(Role::Writer),
            // Drains the answer to its end: success is known only after the commit.
            statement.fetch_optional(&mut connection),
        )
        .await;
        match answered {
            Err(_) => Err(Try::Final(self.no_answer())),
            Ok(Err(error)) => {
                let outcome = Outcome::of(&error);
                let error = StoreError::from(error);
                match outcome {
                    Outcome::Unknown => Err(Try::Final(unknown(&error))),
                    Outcome::Reconnect => Err(Try::Again(error)),
                    Outcome::Duplicate => {
                        self.connection = Some(connection);
                        Err(Try::Duplicate)
                    }
                    Outcome::Again => {
                        self.connection = Some(connection);
                        Err(Try::Again(error))
                    }
                    Outcome::Nothing => {
                        self.connection = Some(connection);
                        Err(Try::Final(error))
                    }
                }
            }
            Ok(Ok(None)) => {
                let seen = self.head.verify(&mut connection, None).await;
                Err(Try::Final(seen.err().unwrap_or_else(|| {
                    StoreError::Corrupt("the log has no head to append at".into())
                })))
            }
            Ok(Ok(Some(row))) => {
                let unreadable = |error: sqlx::Error| Try::Final(error.into());
                let first = row.try_get::<i64, _>(0).map_err(unreadable)?.unsigned_abs();
                if !row.try_get::<bool, _>(1).map_err(unreadable)? {
                    // It is recorded, but perhaps not for long: not to be answered so.
                    let error = connect::check_durable(&mut connection).await.err();
                    return Err(Try::Final(error.unwrap_or_else(|| {
                        StoreError::Unavailable("a setting changed during the commit".into())
                    })));
                }
                if let Some(newest) = entries().last() {
                    self.newest = Some(Newest::new(first + count - 1, &newest.bytes));
                }
                self.connection = Some(connection);
                Ok(first)
            }
        }
    }

    /// One small statement outside of any commit of entries.
    async fn run(
        &mut self,
        statement: sqlx::query::Query<'_, sqlx::Postgres, sqlx::postgres::PgArguments>,
    ) -> Result<u64, StoreError> {
        let mut connection = self.take_connection().await?;
        let answered = timeout(
            self.options.patience(Role::Writer),
            statement.execute(&mut connection),
        )
        .await
        .map_err(|_| self.no_answer())?;
        match answered {
            Ok(done) => {
                self.connection = Some(connection);
                Ok(done.rows_affected())
            }
            Err(error) => {
                if matches!(Outcome::of(&error), Outcome::Nothing | Outcome::Again) {
                    self.connection = Some(connection);
                }
                Err(error.into())
            }
        }
    }
}

fn unknown(error: &StoreError) -> StoreError {
    StoreError::Unavailable(format!("the connection ended during the commit: {error}"))
}

#[async_trait]
impl Log for PostgresLog {
    async fn write(&mut self, appends: &[Append], _entries: usize) -> Result<u64, Failure> {
        // Nobody is kept waiting for a store that is known to fail.
        let patient = self.shared.health.borrow().is_ready();
        let oldest = appends.iter().map(|append| append.queued_at).min();
        let deadline = oldest.unwrap_or_else(Instant::now) + self.options.deadline;
        let mut pause = PAUSES.0;
        loop {
            match self.try_write(appends).await {
                Ok(first) => return Ok(first),
                Err(Try::Duplicate) => return Err(Failure::DuplicateSerial),
                Err(Try::Again(error)) => {
                    if !patient || Instant::now() + pause >= deadline {
                        return Err(Failure::Store(error));
                    }
                    tracing::warn!(%error, "nothing was recorded: trying again");
                }
                Err(Try::Final(error)) => return Err(Failure::Store(error)),
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    async fn change_nodes(
        &mut self,
        change: &NodeChange,
        entry: &NewEntry,
    ) -> Result<u64, StoreError> {
        // Whatever ends this early drops the connection, and with it the transaction.
        let mut connection = self.take_connection().await?;
        let applied = timeout(
            self.options.patience(Role::Writer),
            nodes::apply(&mut connection, change, &self.head, entry),
        )
        .await
        .map_err(|_| self.no_answer())??;
        match applied {
            Applied::At(index) => {
                self.newest = Some(Newest::new(index, &entry.bytes));
                self.connection = Some(connection);
                Ok(index)
            }
            Applied::No => {
                self.connection = Some(connection);
                Err(StoreError::NotApplied)
            }
            Applied::NoHead => {
                let seen = self.head.verify(&mut connection, None).await;
                Err(seen.err().unwrap_or_else(|| {
                    StoreError::Corrupt("the log has no head to append at".into())
                }))
            }
            Applied::NotDurable => {
                let error = connect::check_durable(&mut connection).await.err();
                Err(error.unwrap_or_else(|| {
                    StoreError::Unavailable("a setting changed during the commit".into())
                }))
            }
        }
    }

    async fn probe(&mut self) -> Result<(), StoreError> {
        let known = to_row(self.head.known())?;
        let head = Arc::clone(&self.head);
        let probe =
            sqlx::query("UPDATE head SET probes = probes + 1 WHERE log_id = $1 AND size >= $2")
                .bind(head.log_id())
                .bind(known);
        if self.run(probe).await? > 0 {
            return Ok(());
        }
        // The next connection finds out what it is.
        self.connection = None;
        Err(StoreError::Unavailable(
            "the log's head is not there".into(),
        ))
    }

    async fn bind_issuer(
        &mut self,
        key_id: &[u8],
        replaces: Option<&[u8]>,
    ) -> Result<(), StoreError> {
        let bind = sqlx::query(
            "UPDATE head SET issuer_key_id = $1 \
             WHERE issuer_key_id IS NULL OR issuer_key_id IN ($1, $2)",
        )
        .bind(key_id)
        .bind(replaces);
        if self.run(bind).await? > 0 {
            return Ok(());
        }
        let mut connection = self.take_connection().await?;
        let question =
            sqlx::query_scalar("SELECT issuer_key_id FROM head").fetch_one(&mut connection);
        let active: Option<Vec<u8>> = timeout(self.options.patience(Role::Writer), question)
            .await
            .map_err(|_| self.no_answer())??;
        self.connection = Some(connection);
        Err(StoreError::WrongIssuer {
            active: hex::encode(active.unwrap_or_default()),
            offered: hex::encode(key_id),
        })
    }

    async fn integrate(&mut self, growth: &Growth) -> Result<(), StoreError> {
        match self.run(tree::integrate(growth)).await? {
            0 => {
                let mut connection = self.take_connection().await?;
                connect::check_durable(&mut connection).await?;
                self.connection = Some(connection);
                Err(StoreError::TreeMoved { from: growth.from })
            }
            _ => Ok(()),
        }
    }

    async fn prune(&mut self, minimum: u64) -> Result<u64, StoreError> {
        let row = to_row(minimum)?;
        if self.run(tree::raise(row)).await? == 0 {
            return Err(no_minimum(minimum));
        }
        self.run(tree::prune(row)).await
    }

    async fn lease(&mut self, holder: &str, time: Duration) -> Result<bool, StoreError> {
        Ok(self.run(tree::lease(holder, time)).await? > 0)
    }

    async fn finish(&mut self) {
        if let Some(connection) = self.connection.take() {
            connect::close(connection).await;
        }
    }
}
