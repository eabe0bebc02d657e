//! What a run of kills is to do, and what it keeps: by itself for as long as it takes, or in
//! a folder where the next run goes on.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use citadel_ca_server::log::{Verified, Witness, verify};
use citadel_ca_server::store::{PostgresOptions, PostgresStore, SqliteStore, Store};
use citadel_ledger::VerifierKey;
use citadel_tests::citadel::{Ca, CaBuilder};
use citadel_tests::dir::TestDir;
use citadel_tests::kubernetes::ApiServer;
use citadel_tests::postgres::Postgres;
use serde::{Deserialize, Serialize};

/// Where the log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Engine {
    Sqlite,
    Postgres,
}

/// How many kills of a CA on which store.
pub(super) struct Plan {
    engine: Engine,
    pub(super) kills: usize,
    /// Kept after the run, and used by the next one.
    state: Option<PathBuf>,
    /// No round begins after this.
    end: Option<Instant>,
}

/// What was done until now, by this run and the ones before it.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(super) struct Progress {
    /// Kills, each with all that is checked after it.
    pub(super) kills: usize,
    /// Certificates that clients received, each of which was found in the log.
    pub(super) certificates: usize,
    /// Receipts that were verified.
    pub(super) receipts: usize,
    /// Seconds, without what was lost with an interrupted round.
    pub(super) seconds: f64,
}

/// The folder with the store and all that has to outlive an interruption.
pub(super) struct Kept {
    pub(super) dir: TestDir,
    postgres: Option<Postgres>,
}

impl Plan {
    /// So many, unless the environment says otherwise: `CITADEL_TEST_KILLS`,
    /// `CITADEL_TEST_STATE` (a folder), `CITADEL_TEST_SECONDS` (for this run).
    pub(super) fn of(engine: Engine, kills: usize) -> Self {
        let number = |name: &str| {
            let text = std::env::var(name).ok()?;
            Some(
                text.parse()
                    .unwrap_or_else(|_| panic!("{name} is a number")),
            )
        };
        let seconds = number("CITADEL_TEST_SECONDS").map(Duration::from_secs);
        Self {
            engine,
            kills: number("CITADEL_TEST_KILLS").map_or(kills, |kills: u64| {
                usize::try_from(kills).expect("a number of kills")
            }),
            state: std::env::var_os("CITADEL_TEST_STATE").map(PathBuf::from),
            end: seconds.map(|seconds| Instant::now() + seconds),
        }
    }

    /// For what it makes on the API server that its suite shares.
    pub(super) fn name(&self) -> &'static str {
        match self.engine {
            Engine::Sqlite => "crash-sqlite",
            Engine::Postgres => "crash-postgres",
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.end.is_some_and(|end| Instant::now() >= end)
    }

    /// Opens what is kept.
    pub(super) async fn open(&self) -> Kept {
        let dir = match &self.state {
            Some(state) => TestDir::at(state),
            None => TestDir::new("crash"),
        };
        std::fs::create_dir_all(dir.join("checkpoints")).expect("a folder for checkpoints");
        let postgres = match self.engine {
            Engine::Sqlite => None,
            Engine::Postgres => {
                let folder = TestDir::at(dir.join("pg"));
                Some(Postgres::start_in(folder, &[]).await)
            }
        };
        Kept { dir, postgres }
    }
}

impl Kept {
    /// The CA on this store.
    pub(super) async fn ca(&self) -> Ca {
        let data = self.dir.join("ca");
        let path = data.to_str().expect("a plain path");
        let store = match &self.postgres {
            None => format!("sqlite:{path}/citadel.db").into(),
            Some(postgres) => postgres.store(),
        };
        CaBuilder::new(ApiServer::shared().await)
            .await
            .set("data_dir", path)
            .set("store", store)
            // What it says of each request is for other suites; here it is to be quick.
            .set("log.level", "info")
            .start()
            .await
    }

    pub(super) fn received(&self) -> PathBuf {
        self.dir.join("received")
    }

    pub(super) fn progress(&self) -> Progress {
        match std::fs::read(self.dir.join("progress.json")) {
            Ok(bytes) => serde_json::from_slice(&bytes).expect("progress.json"),
            Err(_) => Progress::default(),
        }
    }

    /// Keeps a round: its checkpoint, and what was done with it.
    pub(super) fn keep(&self, progress: Progress, checkpoint: &str) {
        let name = format!("checkpoints/{:06}", progress.kills);
        self.dir.write(name, checkpoint);
        let text = serde_json::to_vec(&progress).expect("JSON");
        let new = self.dir.write("progress.new", text);
        std::fs::rename(new, self.dir.join("progress.json")).expect("a renamed file");
    }

    /// Verifies the whole log: each entry, each tile, and each checkpoint that was kept.
    pub(super) async fn verify(&self, key: &VerifierKey) -> (Verified, usize) {
        let store: Arc<dyn Store> = match &self.postgres {
            None => {
                let path = self.dir.join("ca/citadel.db");
                Arc::new(SqliteStore::open_read_only(path).await.expect("the store"))
            }
            Some(postgres) => {
                let mut options = PostgresOptions::from_url(&postgres.url()).expect("a URL");
                options.password_file = Some(postgres.password_file());
                Arc::new(PostgresStore::open(options).await.expect("the store"))
            }
        };
        let files = std::fs::read_dir(self.dir.join("checkpoints")).expect("the folder");
        let witnesses: Vec<_> = files
            .map(|file| {
                let path = file.expect("an entry").path();
                Witness {
                    from: path.display().to_string(),
                    note: std::fs::read_to_string(path).expect("a checkpoint"),
                }
            })
            .collect();
        let verified = verify(&store, key, &witnesses, |_| {})
            .await
            .unwrap_or_else(|broken| panic!("{broken}"));
        store.close().await;
        (verified, witnesses.len())
    }
}
