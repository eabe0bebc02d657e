//! Three CAs on one database, and what they have to show at the end.

use std::sync::Arc;
use std::time::Duration;

use citadel_ca_server::log::{Witness, verify};
use citadel_ca_server::store::{PostgresOptions, PostgresStore, Store};
use citadel_ledger::VerifierKey;
use citadel_tests::citadel::{Ca, CaBuilder};
use citadel_tests::client::Admin;
use citadel_tests::dir::TestDir;
use citadel_tests::kubernetes::ApiServer;
use citadel_tests::postgres::Postgres;
use citadel_tests::wait;

use super::callers::Callers;
use super::watcher::Watcher;
use crate::cacerts::made::Plan;
use crate::support::LogOf;

/// From a replica or a database that is back to certificates that arrive through it.
pub(super) const FLOWING: Duration = Duration::from_secs(30);

/// Whatever became of one replica, the others go on after this time at most.
pub(super) const GO_ON: Duration = Duration::from_secs(5);

/// How many there are.
pub(super) const REPLICAS: usize = 3;

/// Three CAs with one key on one database, each with clients of its own.
pub(super) struct Cluster {
    pub(super) postgres: Postgres,
    pub(super) cas: Vec<Ca>,
    pub(super) callers: Vec<Callers>,
    watcher: Watcher,
    _cacerts: TestDir,
}

impl Cluster {
    /// Starts all of it; returns when each replica issues.
    pub(super) async fn start(name: &str) -> Self {
        let postgres = Postgres::start().await;
        let cacerts = Plan::new("P-256").make().write();
        let roots = std::fs::read(cacerts.join("root-cert.pem")).expect("the root");
        let mut cas: Vec<Ca> = Vec::new();
        for number in 0..REPLICAS {
            let mut store = postgres.store();
            // By this name the database's own tables tell them apart.
            let url = format!("{}&application_name={}", postgres.url(), name_of(number));
            store["postgres"]["url"] = url.into();
            let ca = CaBuilder::new(ApiServer::shared().await)
                .await
                .set("store", store)
                .set("log.level", "info")
                .set("ca.cacerts_dir", cacerts.path().to_str().expect("a path"));
            if let Some(first) = cas.first() {
                // The checkpoints of all are signed with one key.
                let data = ca.dir().join("data");
                std::fs::create_dir_all(&data).expect("a folder");
                std::fs::copy(first.data_dir().join("log.key"), data.join("log.key"))
                    .expect("the log's key");
            }
            cas.push(ca.start().await);
        }
        let mut callers = Vec::new();
        for (number, ca) in cas.iter().enumerate() {
            callers.push(Callers::start(ca, &roots, &format!("{name}-{number}")).await);
        }
        let this = Self {
            watcher: Watcher::start(&cas),
            postgres,
            cas,
            callers,
            _cacerts: cacerts,
        };
        for number in 0..REPLICAS {
            this.issues(number, FLOWING).await;
        }
        this
    }

    /// Waits until certificates arrive through this replica that were asked for from now on.
    pub(super) async fn issues(&self, number: usize, deadline: Duration) {
        let callers = &self.callers[number];
        let before = callers.answers();
        wait::until(
            &format!("certificates arrive through replica {number}"),
            deadline,
            async || (callers.answers() > before + callers.count()).then_some(()),
        )
        .await;
    }

    /// All but this one issue within the time that the loss of one may take.
    pub(super) async fn others_go_on(&self, lost: usize) {
        let others = (0..REPLICAS).filter(|number| *number != lost);
        futures::future::join_all(others.map(|number| self.issues(number, GO_ON))).await;
    }

    /// The newest checkpoint that a replica showed covers what the log holds now: whoever
    /// signs has been replaced, if need be.
    pub(super) async fn checkpoint_follows(&self) {
        let size: u64 = self
            .postgres
            .query("SELECT size FROM head")
            .await
            .parse()
            .expect("a size");
        wait::until("a checkpoint covers it", 2 * GO_ON, async || {
            (self.watcher.newest() >= size).then_some(())
        })
        .await;
    }

    /// Ends the load: one gapless log with all that arrived, checkpoints of which each goes
    /// on from the ones before, and nothing told to a client that it can't try again.
    pub(super) async fn finish(self) {
        let mut arrived = Vec::new();
        let mut broken = 0;
        for callers in self.callers {
            let seen = callers.stop().await;
            assert!(
                seen.final_refusals.is_empty(),
                "not to be tried again: {:?}",
                seen.final_refusals
            );
            println!(
                "retryable: {:?}; connections broke: {}",
                seen.retryable, seen.broken
            );
            broken += seen.broken;
            arrived.extend(seen.serials);
        }
        let mut logs = Vec::new();
        for ca in &self.cas {
            let mut log = LogOf::default();
            log.read_on(&Admin::of(ca)).await;
            for serial in &arrived {
                assert!(log.serials.contains(serial), "{serial} is not in the log");
            }
            logs.push(log.serials);
            for refusal in ca.refusals() {
                let code = refusal["code"].as_str().unwrap_or_default();
                assert!(
                    super::RETRYABLE.iter().any(|c| format!("{c:?}") == code),
                    "{refusal}"
                );
            }
        }
        assert!(logs.windows(2).all(|pair| pair[0] == pair[1]), "two logs");
        let info = Admin::of(&self.cas[0]).info().await;
        let key: VerifierKey = info.log_key.parse().expect("a key");
        for ca in &self.cas {
            ca.terminate().await;
        }
        let witnesses: Vec<Witness> = self.watcher.stop().await;
        let mut options = PostgresOptions::from_url(&self.postgres.url()).expect("a URL");
        options.password_file = Some(self.postgres.password_file());
        let store = PostgresStore::open(options).await.expect("the store");
        let store: Arc<dyn Store> = Arc::new(store);
        let verified = verify(&store, &key, &witnesses, |_| {})
            .await
            .unwrap_or_else(|broken| panic!("{broken}"));
        store.close().await;
        assert_eq!(verified.size, verified.covered);
        println!(
            "{} certificates arrived, {broken} connections broke, {} entries, {} checkpoints seen",
            arrived.len(),
            verified.size,
            witnesses.len()
        );
    }
}

/// What a replica is called in the database's own tables.
pub(super) fn name_of(number: usize) -> String {
    format!("replica-{number}")
}
