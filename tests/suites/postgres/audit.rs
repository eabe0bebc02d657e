//! `citadel log` on a log in PostgreSQL: it reads and verifies all, and writes nothing.

use std::time::Duration;

use citadel_tests::citadel::{Finished, citadel};
use citadel_tests::pki::csr;
use citadel_tests::postgres::Postgres;
use citadel_tests::wait;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::support::Scene;

const DEADLINE: Duration = Duration::from_secs(30);

/// What one command needs to know.
struct Auditor<'a> {
    scene: &'a Scene<'a>,
    postgres: &'a Postgres,
    key: String,
}

impl Auditor<'_> {
    /// Runs it on this database as the owner's role.
    async fn run(&self, database: &str, args: &[&str]) -> Finished {
        let url = self.postgres.url_of(database);
        let password = self.postgres.password_file();
        let common = ["--password-file", password.to_str().unwrap()];
        self.run_as(&url, &[args, &common].concat(), &[]).await
    }

    async fn run_as(&self, url: &str, args: &[&str], env: &[(&str, &str)]) -> Finished {
        let args = ["log", "--store", url, "--key", &self.key]
            .into_iter()
            .chain(args.iter().copied());
        citadel(self.scene.ca.dir(), args, env, DEADLINE).await
    }
}

/// A CA's log with so many certificates, all in a checkpoint and in the index.
async fn issued(
    scene: &Scene<'_>,
    postgres: &Postgres,
    namespace: &str,
    count: usize,
) -> Vec<String> {
    let workload = scene.workload(namespace).await;
    let client = scene.client_of(&workload);
    let mut serials = Vec::new();
    for _ in 0..count {
        let answer = client.issue(&csr::plain()).await.unwrap();
        serials.push(answer.svid.unwrap().serial);
    }
    let behind = "SELECT h.size - least(s.indexed, t.size) FROM head h, index_source s, tree t";
    wait::until("index and tree are there", DEADLINE, async || {
        (postgres.query(behind).await == "0").then_some(())
    })
    .await;
    serials
}

#[tokio::test]
async fn an_auditor_s_role_that_may_only_select_is_enough() {
    let postgres = Postgres::start().await;
    let scene = Scene::with(|ca| ca.set("store", postgres.store())).await;
    let serials = issued(&scene, &postgres, "pg-audit", 5).await;
    let auditor = Auditor {
        scene: &scene,
        postgres: &postgres,
        key: scene.admin.info().await.log_key,
    };
    let role = format!(
        "CREATE ROLE auditor LOGIN PASSWORD '{}'; GRANT SELECT ON ALL TABLES IN SCHEMA public \
         TO auditor",
        postgres.password()
    );
    postgres.query(&role).await;
    let url = postgres.url().replace("citadel@", "auditor@");
    let password = [("PGPASSWORD", postgres.password())];
    let folder = scene.ca.dir().join("exported");
    let folder = folder.to_str().unwrap();
    for (args, shown) in [
        (&["search", "--namespace", "pg-audit", "--count"][..], "5\n"),
        (&["show", &serials[1]], serials[1].as_str()),
        (&["tail", "-n", "2"], serials[4].as_str()),
        (&["stats"], "entries in checkpoint"),
        (&["prove", &serials[2]], "extra "),
        (&["verify"], "in the index"),
        (&["export", "--tiles", folder], ""),
    ] {
        let output = auditor.run_as(&url, args, &password).await.success();
        assert!(output.contains(shown), "{args:?}: {output}");
    }
    // The owner's role could write: the session can't.
    let by_owner = auditor.run("citadel", &["verify"]).await;
    assert!(by_owner.success().contains("valid"), "by the owner");

    // What is not there, or not allowed, is said.
    let no_key = ["log", "--store", &url, "verify"];
    let refused = citadel(scene.ca.dir(), no_key, &password, DEADLINE).await;
    assert_eq!(refused.code, Some(2), "{}", refused.errors);
    assert!(refused.errors.contains("--key"), "{}", refused.errors);
    let wrong = [("PGPASSWORD", "wrong")];
    let refused = auditor.run_as(&url, &["stats"], &wrong).await;
    assert_ne!(refused.code, Some(0));
    let secret = url.replace("auditor@", "auditor:hunter2@");
    let refused = auditor.run_as(&secret, &["stats"], &[]).await;
    assert_eq!(refused.code, Some(2));
    assert!(!refused.errors.contains("hunter2"), "{}", refused.errors);
    let empty = postgres.database().await;
    let refused = auditor.run(&empty, &["stats"]).await;
    assert!(
        refused.errors.contains("holds no log"),
        "{}",
        refused.errors
    );
    let tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'";
    assert_eq!(postgres.query_in(&empty, tables).await, "0");

    scene.ca.terminate().await;
    for (sql, said) in [
        (
            "DELETE FROM _sqlx_migrations WHERE version = (SELECT max(version) FROM _sqlx_migrations)",
            "brings it up to date",
        ),
        (
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, \
             execution_time) VALUES (4711, 'of tomorrow', true, '', 0)",
            "use the newer program",
        ),
    ] {
        postgres.query(sql).await;
        let refused = auditor.run("citadel", &["stats"]).await;
        assert_eq!(refused.code, Some(5), "{}", refused.errors);
        assert!(refused.errors.contains(said), "{}", refused.errors);
    }
}

const TRIALS: usize = 40;

/// Columns by what is done to them: one bit of a `bytea`, of a number, of a letter.
const BYTES: [(&str, &str); 6] = [
    ("entries", "bytes"),
    ("entries", "serial"),
    ("tiles", "hashes"),
    ("tree", "checkpoint"),
    ("index_subjects", "digest"),
    ("index_subjects", "issuer_key_id"),
];
const NUMBERS: [(&str, &str); 9] = [
    ("index_issued", "subject"),
    ("index_issued", "not_before"),
    ("index_issued", "not_after"),
    ("index_issued", "epoch"),
    ("index_keys", "spki"),
    ("index_keys", "idx"),
    ("index_epochs", "max_time_ms"),
    ("index_epochs", "min_not_after"),
    ("tree", "size"),
];
const TEXTS: [(&str, &str); 3] = [
    ("index_subjects", "spiffe_id"),
    ("index_subjects", "trust_domain"),
    ("index_subjects", "namespace"),
];

/// SQL that changes one thing.
fn meddle(random: &mut StdRng) -> String {
    let row = |table: &str, column: &str, random: &mut StdRng| {
        let skip: f64 = random.random();
        format!(
            "ctid = (SELECT ctid FROM {table} WHERE length({column}::text) > 0 ORDER BY ctid \
             OFFSET floor({skip} * (SELECT count(*) FROM {table} WHERE length({column}::text) > 0)) \
             LIMIT 1)"
        )
    };
    let bit: u32 = random.random_range(0..1 << 20);
    match random.random_range(0..10) {
        0..=3 => {
            let (table, column) = BYTES[random.random_range(0..BYTES.len())];
            let at = format!("({bit} % (8 * length({column})))");
            format!(
                "UPDATE {table} SET {column} = set_bit({column}, {at}, 1 - get_bit({column}, {at})) \
                 WHERE {}",
                row(table, column, random)
            )
        }
        4..=5 => {
            let (table, column) = NUMBERS[random.random_range(0..NUMBERS.len())];
            format!(
                "UPDATE {table} SET {column} = {column} # (1::bigint << {}) WHERE {}",
                bit % 31,
                row(table, column, random)
            )
        }
        6 => {
            let (table, column) = TEXTS[random.random_range(0..TEXTS.len())];
            let bytes = format!("convert_to({column}, 'UTF8')");
            let at = format!("(8 * ({bit} % length({column})))");
            format!(
                "UPDATE {table} SET {column} = convert_from(set_bit({bytes}, {at}, \
                 1 - get_bit({bytes}, {at})), 'UTF8') WHERE {}",
                row(table, column, random)
            )
        }
        7 => {
            let (table, column) = [
                ("entries", "idx"),
                ("tiles", "id"),
                ("index_issued", "idx"),
                ("index_keys", "idx"),
                ("index_subjects", "id"),
            ][random.random_range(0..5)];
            format!("DELETE FROM {table} WHERE {}", row(table, column, random))
        }
        8 => {
            let (table, column) =
                [("entries", "bytes"), ("index_keys", "spki")][random.random_range(0..2)];
            // The third and the last of the workload's, which differ.
            format!(
                "UPDATE {table} SET {column} = (SELECT {column} FROM {table} b \
                 WHERE b.idx = (CASE {table}.idx WHEN 4 THEN 15 ELSE 4 END)) \
                 WHERE idx IN (4, 15)"
            )
        }
        _ => format!(
            "DELETE FROM entries WHERE idx >= {0}; UPDATE head SET size = {0}",
            random.random_range(3..15)
        ),
    }
}

#[tokio::test]
async fn whatever_is_changed_removed_exchanged_or_cut_off_is_named() {
    let postgres = Postgres::start().await;
    let scene = Scene::with(|ca| ca.set("store", postgres.store())).await;
    issued(&scene, &postgres, "pg-trials", 15).await;
    let auditor = Auditor {
        scene: &scene,
        postgres: &postgres,
        key: scene.admin.info().await.log_key,
    };
    scene.ca.terminate().await;
    let kept = scene.ca.data_dir().join("log.checkpoint");
    let kept = kept.to_str().unwrap();
    let mut random = StdRng::seed_from_u64(5);
    auditor
        .run("citadel", &["verify", "--checkpoint", kept])
        .await
        .success();
    for trial in 0..TRIALS {
        let name = format!("trial_{trial}");
        let copy = format!("CREATE DATABASE {name} TEMPLATE citadel OWNER citadel");
        postgres.query_in("postgres", &copy).await;
        let sql = meddle(&mut random);
        postgres.query_in(&name, &sql).await;
        let refused = auditor.run(&name, &["verify", "--checkpoint", kept]).await;
        assert_eq!(refused.code, Some(1), "{sql}: {}", refused.errors);
        postgres
            .query_in("postgres", &format!("DROP DATABASE {name}"))
            .await;
    }
}
