//! Servers and databases that the store does not take, each with its reason.

use citadel_tests::postgres::Postgres;

use super::contract::{Sample, fill, within_deadline};
use super::{PostgresStore, Store, StoreError, open, options, shared};

/// `ALTER SYSTEM`, where a reload suffices, and waits for it.
async fn reload(postgres: &Postgres, setting: &str, value: &str) {
    postgres
        .query(&format!("ALTER SYSTEM SET {setting} = {value}"))
        .await;
    postgres.query("SELECT pg_reload_conf()").await;
    let show = format!("SHOW {setting}");
    within_deadline(async {
        while postgres.query(&show).await != value {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_setting_under_which_a_commit_is_not_durable_is_refused_and_named() {
    let postgres = Postgres::start().await;
    for setting in ["fsync", "full_page_writes", "synchronous_commit"] {
        reload(&postgres, setting, "off").await;
        let error = open(&postgres).await.unwrap_err();
        assert!(
            matches!(&error, StoreError::NotDurable { setting: named, found, .. }
                if *named == setting && found == "off"),
            "{error}"
        );
        assert!(error.to_string().contains(setting), "{error}");
        reload(&postgres, setting, "on").await;
    }
    // `local` is the local disk: enough where there is no standby that may take over.
    reload(&postgres, "synchronous_commit", "local").await;
    let store = open(&postgres).await.unwrap();
    fill(&store, 0..3).await;
    store.close().await;
    reload(&postgres, "synchronous_standby_names", "standby").await;
    let error = open(&postgres).await.unwrap_err();
    assert!(
        matches!(
            &error,
            StoreError::NotDurable {
                setting: "synchronous_commit",
                ..
            }
        ),
        "{error}"
    );
}

/// Settings change under an open connection as well.
#[tokio::test]
async fn a_setting_that_changes_later_stops_the_next_answer() {
    let postgres = Postgres::start().await;
    let store = open(&postgres).await.unwrap();
    fill(&store, 0..3).await;
    reload(&postgres, "fsync", "off").await;
    // The connection's own process takes the reload up a moment later.
    let error = within_deadline(async {
        for n in 100.. {
            if let Err(error) = store.append(vec![Sample(n).entry()]).await {
                return error;
            }
        }
        unreachable!("a number without an end");
    })
    .await;
    assert!(
        matches!(
            error,
            StoreError::NotDurable {
                setting: "fsync",
                ..
            }
        ),
        "{error}"
    );
    assert!(!store.health().is_ready());
    let again = store.append(vec![Sample(9).entry()]).await.unwrap_err();
    assert!(matches!(again, StoreError::NotDurable { .. }), "{again}");
    reload(&postgres, "fsync", "on").await;
    within_deadline(async {
        while store.append(vec![Sample(9).entry()]).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    store.close().await;
}

#[tokio::test]
async fn a_newer_schema_is_refused_and_left_alone() {
    let postgres = shared().await;
    let url = postgres.url_of(&postgres.database().await);
    let database = url.rsplit('/').next().unwrap().split('?').next().unwrap();
    let store = PostgresStore::open(options(postgres, &url)).await.unwrap();
    fill(&store, 0..3).await;
    store.close().await;
    let of_tomorrow = "INSERT INTO _sqlx_migrations \
        (version, description, success, checksum, execution_time) \
        VALUES (4711, 'of tomorrow', true, '', 0)";
    postgres.query_in(database, of_tomorrow).await;
    let error = PostgresStore::open(options(postgres, &url))
        .await
        .unwrap_err();
    assert_eq!(
        error,
        StoreError::NewerSchema {
            found: 4711,
            known: 5
        }
    );
    let size = postgres.query_in(database, "SELECT size FROM head").await;
    assert_eq!(size, "3");
}

#[tokio::test]
async fn a_log_that_lost_entries_is_refused() {
    let postgres = shared().await;
    for (cut, complaint) in [
        (
            "DELETE FROM entries WHERE idx = 29",
            "has 29 entries, and its head says 30",
        ),
        ("DELETE FROM entries WHERE idx = 0", "begins with entry 1"),
        (
            "UPDATE head SET size = 29",
            "has 30 entries, and its head says 29",
        ),
        ("DELETE FROM head", "has no head"),
    ] {
        let database = postgres.database().await;
        let options = options(postgres, &postgres.url_of(&database));
        let store = PostgresStore::open(options.clone()).await.unwrap();
        fill(&store, 0..30).await;
        store.close().await;
        postgres.query_in(&database, cut).await;
        let error = PostgresStore::open(options).await.unwrap_err();
        assert!(matches!(error, StoreError::Corrupt(_)), "{error}");
        assert!(error.to_string().contains(complaint), "{error}");
    }
}

#[tokio::test]
async fn who_does_not_get_in_is_told_why_and_never_sees_the_password() {
    let postgres = Postgres::start().await;
    let wrong = postgres.dir().write("wrong", "hunter2");
    let mut options = options(&postgres, &postgres.url());
    options.password_file = Some(wrong);
    let error = PostgresStore::open(options.clone()).await.unwrap_err();
    let text = format!("{error} {error:?} {options:?}");
    assert!(text.contains("password authentication failed"), "{text}");
    assert!(!text.contains("hunter2"), "{text}");
    assert!(text.contains(&postgres.address().to_string()), "{text}");

    options.password_file = Some(postgres.password_file());
    let nowhere = citadel_tests::ports::address();
    let url = format!("postgres://citadel@{nowhere}/citadel?sslmode=disable");
    let unreachable = super::options(&postgres, &url);
    let error = PostgresStore::open(unreachable).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
    let text = error.to_string();
    assert!(text.contains(&nowhere.to_string()), "{text}");
    assert!(!text.contains(postgres.password()), "{text}");

    let missing = super::options(&postgres, &postgres.url_of("nothing"));
    let error = PostgresStore::open(missing).await.unwrap_err();
    assert!(error.to_string().contains("\"nothing\""), "{error}");
}

/// TLS with the named server is the default, and a server without TLS does not pass it.
#[tokio::test]
async fn a_server_without_tls_is_refused_by_default() {
    let postgres = shared().await;
    let url = postgres.url().replace("?sslmode=disable", "");
    let error = PostgresStore::open(options(postgres, &url))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("TLS"), "{error}");
}
