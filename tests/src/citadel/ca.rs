//! `citadel-ca`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use serde_json::{Value, json};

use super::{Settings, store};
use crate::dir::TestDir;
use crate::kubernetes::{Access, ApiServer};
use crate::parts::program;
use crate::process::{Launch, Process};
use crate::{http, pki, ports, secrets};

/// From start to ready: the first complete lists, the first JWKS, the keys.
const START: Duration = Duration::from_secs(30);

/// A CA server that has not been started.
pub struct CaBuilder {
    dir: TestDir,
    settings: Settings,
    grpc: SocketAddr,
    admin: SocketAddr,
    public: SocketAddr,
    wrapper: Vec<String>,
    env: Vec<(String, String)>,
}

impl CaBuilder {
    /// One for trust domain `example.org` whose only cluster, `default`, is
    /// this API server, on a fresh store (SQLite, or what the suite is asked to run on),
    /// with its log at the most verbose.
    pub async fn new(api: &ApiServer) -> Self {
        let dir = TestDir::new("ca");
        let access = api.ca_access("citadel-system", &dir).await;
        Self::with_clusters(
            dir,
            json!([{ "name": "default", "kubeconfig": access.kubeconfig }]),
        )
    }

    /// The same with rights of the test's choice.
    pub fn with_access(access: &Access) -> Self {
        Self::with_clusters(
            TestDir::new("ca"),
            json!([{ "name": "default", "kubeconfig": access.kubeconfig }]),
        )
    }

    /// The same with any `clusters`.
    pub fn with_clusters(dir: TestDir, clusters: impl Into<Value>) -> Self {
        let (grpc, admin, public) = (ports::address(), ports::address(), ports::address());
        let data = dir.join("data");
        let settings = Settings::new(json!({
            "trust_domain": "example.org",
            "listen": grpc.to_string(),
            "admin_listen": admin.to_string(),
            "public_listen": public.to_string(),
            "admin_socket": dir.join("ca-admin.sock"),
            "data_dir": data,
            "clusters": clusters.into(),
            "log": { "level": "trace", "format": "json" },
        }));
        Self {
            dir,
            settings,
            grpc,
            admin,
            public,
            wrapper: Vec::new(),
            env: Vec::new(),
        }
    }

    /// Sets a key of the configuration; `limits.queue` steps into a map.
    #[must_use]
    pub fn set(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.settings.set(key, value);
        self
    }

    /// Puts it on SQLite whatever the suite is asked to run on: a test of its files.
    #[must_use]
    pub fn on_sqlite(self) -> Self {
        let file = self.database();
        self.set("store", format!("sqlite:{}", file.display()))
    }

    /// Sets an environment variable of the program.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Starts it through another program; see [`Launch::wrapped`].
    #[must_use]
    pub fn wrapped(mut self, wrapper: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.wrapper = wrapper.into_iter().map(Into::into).collect();
        self
    }

    /// Its folder.
    pub fn dir(&self) -> &TestDir {
        &self.dir
    }

    /// Where its `SQLite` file is, if it has one.
    fn database(&self) -> PathBuf {
        self.dir.join("data/citadel.db")
    }

    /// Starts it and waits until it is ready.
    pub async fn start(self) -> Ca {
        let ca = self.start_unready();
        ca.wait_ready().await;
        ca
    }

    /// Starts it, ready or not: a refusal to start is to be seen as well.
    pub fn start_unready(mut self) -> Ca {
        if self.settings.value("store").is_null() {
            let file = self.database();
            self.settings.set("store", store::fresh(&file));
        }
        let config = self.dir.write("ca.yaml", self.settings.text());
        let launch = Launch::new("citadel-ca", program("citadel-ca"))
            .arg("--config")
            .arg(config)
            .wrapped(&self.wrapper);
        let launch = self
            .env
            .iter()
            .fold(launch, |launch, (name, value)| launch.env(name, value));
        let process = launch.start(&self.dir);
        Ca {
            dir: self.dir,
            settings: self.settings,
            grpc: self.grpc,
            admin: self.admin,
            public: self.public,
            launch,
            process,
        }
    }
}

/// A CA server as a process. Dropping it kills it.
pub struct Ca {
    dir: TestDir,
    settings: Settings,
    grpc: SocketAddr,
    admin: SocketAddr,
    public: SocketAddr,
    launch: Launch,
    process: Process,
}

impl Ca {
    /// Where its gRPC services are.
    pub fn grpc(&self) -> SocketAddr {
        self.grpc
    }

    /// Where the log is over HTTPS.
    pub fn public(&self) -> SocketAddr {
        self.public
    }

    /// Where `/livez`, `/readyz` and `/metrics` are.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// The socket of its administrators.
    pub fn admin_socket(&self) -> PathBuf {
        self.dir.join("ca-admin.sock")
    }

    /// Its folder, with the logs, the configuration and `data/`.
    pub fn dir(&self) -> &TestDir {
        &self.dir
    }

    /// Its data folder.
    pub fn data_dir(&self) -> PathBuf {
        PathBuf::from(self.settings.value("data_dir").as_str().expect("a path"))
    }

    /// Its configuration file.
    pub fn config(&self) -> PathBuf {
        self.dir.join("ca.yaml")
    }

    /// What its `store` is, for another CA on the same one.
    pub fn store(&self) -> Value {
        self.settings.value("store").clone()
    }

    /// The folder with the files to which the store writes first: of `SQLite` the CA's own,
    /// of a database server its log.
    pub fn store_folder(&self) -> PathBuf {
        match self.store()["postgres"]["password_file"].as_str() {
            None => self.data_dir(),
            Some(beside) => Path::new(beside).with_file_name("data/pg_wal"),
        }
    }

    /// The `SQLite` file.
    pub fn database(&self) -> PathBuf {
        let store = self.settings.value("store").as_str().expect("a store");
        PathBuf::from(store.strip_prefix("sqlite:").expect("a store on SQLite"))
    }

    /// The process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Its trust bundle in PEM.
    pub fn bundle_file(&self) -> PathBuf {
        self.data_dir().join("root-cert.pem")
    }

    /// SHA-256 of its root certificate's DER, in hex: a first trust.
    pub fn root_sha256(&self) -> String {
        let pem = std::fs::read(self.bundle_file()).expect("the CA's trust bundle");
        let der = pki::openssl::run(&["x509", "-outform", "DER"], &pem);
        hex::encode(pki::openssl::run(&["dgst", "-sha256", "-binary"], &der))
    }

    /// Changes a key for the next start, or for [`Self::rewrite`].
    pub fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.settings.set(key, value);
    }

    /// Writes the configuration as it was set, beside the server that may run.
    pub fn rewrite(&self) {
        self.dir.write("ca.yaml", self.settings.text());
    }

    /// Starts it again, after it ended, on its data and its addresses.
    pub async fn start_again(&mut self) {
        assert!(!self.process.is_running(), "citadel-ca still runs");
        self.rewrite();
        self.process = self.launch.start(&self.dir);
        self.wait_ready().await;
    }

    /// SIGKILL, then a start on the same data.
    pub async fn kill_and_start_again(&mut self) {
        self.process.kill().await;
        self.start_again().await;
    }

    /// SIGTERM, and waits for its end.
    pub async fn terminate(&self) -> ExitStatus {
        self.process.terminate(Duration::from_secs(30)).await
    }

    /// Waits until `/readyz` says so.
    pub async fn wait_ready(&self) {
        self.process
            .ready(START, async || self.is_ready().await)
            .await;
        for key in ["ca-key.pem", "root-key.pem", "log.key"] {
            register_if_there("CA key", &self.data_dir().join(key));
        }
    }

    /// Whether `/readyz` says so now.
    pub async fn is_ready(&self) -> bool {
        self.readyz()
            .await
            .is_some_and(|answer| answer.status == 200)
    }

    /// What `/readyz` says; `None` when nobody answers.
    pub async fn readyz(&self) -> Option<http::Answer> {
        http::get(self.admin, "/readyz").await
    }

    /// What `/livez` says; `None` when nobody answers.
    pub async fn livez(&self) -> Option<http::Answer> {
        http::get(self.admin, "/livez").await
    }

    /// What `/metrics` says.
    pub async fn metrics(&self) -> String {
        http::get(self.admin, "/metrics")
            .await
            .expect("the CA's metrics")
            .body
    }

    /// Its log.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// The refusals in its log, oldest first: one JSON line each.
    pub fn refusals(&self) -> Vec<Value> {
        let lines = self.log();
        let parsed = lines
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        parsed
            .filter(|line| line["target"] == "citadel::refused")
            .collect()
    }
}

/// A CA on `cacerts` files has no such key of its own.
fn register_if_there(label: &str, path: &Path) {
    if path.exists() {
        secrets::register_key_file(label, path);
    }
}
