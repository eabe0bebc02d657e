//! Connections: what they ask of the server, and the schema.

use std::time::Duration;

use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, PgConnection, PgPool,
    migrate::{MigrateError, Migrator},
    postgres::PgPoolOptions,
};
use tokio::time::timeout;

use super::options::{PostgresOptions, Role};
use crate::store::StoreError;

static MIGRATIONS: Migrator = sqlx::migrate!("../migrations/postgres");

/// Readers at once.
const READERS: u32 = 4;

/// PostgreSQL 15, as `server_version_num` has it.
const LEAST_VERSION: i32 = 150_000;

/// Whether what commits now is on the disk when the commit is answered: the condition on
/// which every append rests, as SQL.
///
/// With `synchronous_commit = local` the commit is on this server's disk too, but it is
/// not waited for on a synchronous standby, to which such a cluster then fails over.
pub(super) const DURABLE: &str = "(current_setting('fsync') = 'on' \
     AND current_setting('full_page_writes') = 'on' \
     AND (current_setting('synchronous_commit') IN ('on', 'remote_apply', 'remote_write') \
          OR (current_setting('synchronous_commit') = 'local' \
              AND current_setting('synchronous_standby_names') = '')))";

/// Opens a connection within the deadline of a request, and refuses a server that is too
/// old, a standby, or one whose commits would not be durable.
pub(super) async fn connect(
    options: &PostgresOptions,
    role: Role,
) -> Result<PgConnection, StoreError> {
    connect_within(options.deadline, options, role).await
}

/// The same with the patience of a start.
pub(super) async fn connect_at_start(
    options: &PostgresOptions,
    role: Role,
) -> Result<PgConnection, StoreError> {
    connect_within(options.patience(Role::Start), options, role).await
}

/// The connection goes on under the limits of this role.
pub(super) async fn take_role(
    options: &PostgresOptions,
    role: Role,
    connection: &mut PgConnection,
) -> Result<(), StoreError> {
    let (names, values): (Vec<_>, Vec<_>) = options.session(role).into_iter().unzip();
    sqlx::query(
        "SELECT set_config(name, value, false) FROM unnest($1::text[], $2::text[]) s (name, value)",
    )
    .bind(names)
    .bind(values)
    .execute(connection)
    .await?;
    Ok(())
}

async fn connect_within(
    limit: Duration,
    options: &PostgresOptions,
    role: Role,
) -> Result<PgConnection, StoreError> {
    let settings = options.connect_options(role)?;
    let connecting = async {
        let mut connection = settings.connect().await?;
        check(&mut connection).await?;
        Ok::<_, StoreError>(connection)
    };
    match timeout(limit, connecting).await {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(error)) => Err(at(options, error)),
        Err(_) => Err(StoreError::Unavailable(format!(
            "{options}: no connection within {limit:?}"
        ))),
    }
}

/// Says which database it is about, where the operator has to look there.
fn at(options: &PostgresOptions, error: StoreError) -> StoreError {
    match error {
        StoreError::Unavailable(reason) => StoreError::Unavailable(format!("{options}: {reason}")),
        other => other,
    }
}

/// What durability and completeness rest on is asked for, not assumed.
async fn check(connection: &mut PgConnection) -> Result<(), StoreError> {
    check_server(connection).await?;
    check_durable(connection).await
}

/// What completeness rests on.
async fn check_server(connection: &mut PgConnection) -> Result<(), StoreError> {
    let (version, name, standby): (i32, String, bool) = sqlx::query_as(
        "SELECT current_setting('server_version_num')::integer, \
                current_setting('server_version'), pg_is_in_recovery()",
    )
    .fetch_one(&mut *connection)
    .await?;
    if version < LEAST_VERSION {
        return Err(StoreError::OldServer {
            found: name,
            wanted: "15",
        });
    }
    if standby {
        return Err(StoreError::Unavailable(
            "the server is a standby: name the primary".into(),
        ));
    }
    Ok(())
}

/// Names the setting under which a commit would not be durable, if there is one.
pub(super) async fn check_durable(connection: &mut PgConnection) -> Result<(), StoreError> {
    let (fsync, full_page_writes, synchronous_commit, durable): (String, String, String, bool) =
        sqlx::query_as(AssertSqlSafe(format!(
            "SELECT current_setting('fsync'), current_setting('full_page_writes'), \
                    current_setting('synchronous_commit'), {DURABLE}"
        )))
        .fetch_one(connection)
        .await?;
    if durable {
        return Ok(());
    }
    for (setting, found) in [("fsync", fsync), ("full_page_writes", full_page_writes)] {
        if found != "on" {
            return Err(StoreError::NotDurable {
                setting,
                found,
                wanted: "on",
            });
        }
    }
    Err(StoreError::NotDurable {
        setting: "synchronous_commit",
        found: synchronous_commit,
        wanted: "on",
    })
}

/// Readers. They are checked as the writer is: a standby would answer with what was. An
/// auditor's commit nothing.
pub(super) fn readers(options: &PostgresOptions, role: Role) -> Result<PgPool, StoreError> {
    Ok(PgPoolOptions::new()
        .max_connections(READERS)
        .acquire_timeout(options.deadline)
        .after_connect(move |connection, _| {
            Box::pin(async move {
                let checked = match role {
                    Role::Auditor => check_server(connection).await,
                    _ => check(connection).await,
                };
                checked.map_err(|error| sqlx::Error::Configuration(Box::new(error)))
            })
        })
        .connect_lazy_with(options.connect_options(role)?))
}

/// Brings the schema to this program's version; refuses a newer one untouched. Of several
/// servers that start at once, sqlx's advisory lock lets one go first.
///
/// Through a pool of one connection, because of sqlx's signature: the compiler does not
/// see that the future over a borrowed connection is `Send`.
pub(super) async fn migrate(options: &PostgresOptions) -> Result<(), StoreError> {
    // The whole check first, with its deadline and its own words for what is wrong.
    let mut connection = connect_at_start(options, Role::Migration).await?;
    make_schema(options, &mut connection).await?;
    close(connection).await;
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .acquire_timeout(options.patience(Role::Start))
        .connect_lazy_with(options.connect_options(Role::Migration)?);
    let outcome = timeout(options.patience(Role::Migration), MIGRATIONS.run(&pool)).await;
    pool.close().await;
    match outcome {
        Ok(migrated) => migrated.map_err(schema_error),
        Err(_) => Err(StoreError::Unavailable(
            "the schema was not brought up to date in time".into(),
        )),
    }
}

/// Makes the schema where one is named and missing: a role that may not do that can still
/// use one that is there.
async fn make_schema(
    options: &PostgresOptions,
    connection: &mut PgConnection,
) -> Result<(), StoreError> {
    let Some(schema) = &options.schema else {
        return Ok(());
    };
    let there = "SELECT current_schema() IS NOT NULL";
    if sqlx::query_scalar(there)
        .fetch_one(&mut *connection)
        .await?
    {
        return Ok(());
    }
    // The name was checked to need no quotes.
    let made = sqlx::query(AssertSqlSafe(format!("CREATE SCHEMA \"{schema}\"")))
        .execute(&mut *connection)
        .await;
    match made {
        // Another server was faster.
        Err(_)
            if sqlx::query_scalar(there)
                .fetch_one(&mut *connection)
                .await? =>
        {
            Ok(())
        }
        Err(error) => Err(StoreError::Settings(format!(
            "the schema `{schema}` is not there and can't be made: {error}"
        ))),
        Ok(_) => Ok(()),
    }
}

fn schema_error(error: MigrateError) -> StoreError {
    match error {
        MigrateError::VersionMissing(found) => StoreError::NewerSchema {
            found,
            known: newest(),
        },
        MigrateError::Execute(e) | MigrateError::ExecuteMigration(e, _) => e.into(),
        other => StoreError::Corrupt(other.to_string()),
    }
}

/// For who only reads: the schema must be this program's.
pub(super) async fn check_schema(connection: &mut PgConnection) -> Result<(), StoreError> {
    let there = "SELECT to_regclass('_sqlx_migrations') IS NOT NULL";
    if !sqlx::query_scalar(there)
        .fetch_one(&mut *connection)
        .await?
    {
        return Err(StoreError::NoLog);
    }
    let found: Option<i64> = sqlx::query_scalar("SELECT max(version) FROM _sqlx_migrations")
        .fetch_one(connection)
        .await?;
    StoreError::of_schema(found, newest())
}

fn newest() -> i64 {
    MIGRATIONS
        .iter()
        .map(|migration| migration.version)
        .max()
        .unwrap_or(0)
}

/// Closes a connection of which nothing more is expected.
pub(super) async fn close(connection: PgConnection) {
    if let Err(error) = connection.close().await {
        tracing::debug!(%error, "closing a database connection failed");
    }
}
