//! `citadel-agent`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::{Ca, Settings};
use crate::dir::TestDir;
use crate::parts::program;
use crate::process::{Launch, Process};
use crate::{http, ports};

/// From start to ready: its own identity and its node's entries.
const START: Duration = Duration::from_secs(30);

/// A node agent that has not been started.
pub struct AgentBuilder {
    dir: TestDir,
    settings: Settings,
    admin: SocketAddr,
    wrapper: Vec<String>,
    env: Vec<(String, String)>,
}

impl AgentBuilder {
    /// One for this CA, whose first trust is the CA's bundle file, with
    /// `token` as its own credential and its log at the most verbose.
    pub fn new(ca: &Ca, token: &str) -> Self {
        let bundle = ca.bundle_file();
        Self::for_address(&ca.grpc().to_string(), token)
            .set("ca.bundle_file", bundle.to_str().expect("a plain path"))
    }

    /// One for a CA at any address. Its first trust has yet to be set:
    /// `ca.bundle_file` or `ca.root_sha256`.
    pub fn for_address(address: &str, token: &str) -> Self {
        let dir = TestDir::new("agent");
        let admin = ports::address();
        let settings = Settings::new(json!({
            "trust_domain": "example.org",
            "ca": { "addresses": [address] },
            "cluster": "default",
            "token_file": dir.write("token", token),
            "socket": dir.join("agent.sock"),
            "admin_socket": dir.join("admin/agent.sock"),
            "admin_listen": admin.to_string(),
            "log": { "level": "trace", "format": "json" },
        }));
        Self {
            dir,
            settings,
            admin,
            wrapper: Vec::new(),
            env: Vec::new(),
        }
    }

    /// One of a node outside Kubernetes, whose configuration says no more than where its state
    /// is.
    pub fn outside(state_dir: &Path) -> Self {
        let dir = TestDir::new("agent");
        let admin = ports::address();
        let settings = Settings::new(json!({
            "external": { "state_dir": state_dir },
            "socket": dir.join("agent.sock"),
            "admin_socket": dir.join("admin/agent.sock"),
            "admin_listen": admin.to_string(),
            "log": { "level": "trace", "format": "json" },
        }));
        Self {
            dir,
            settings,
            admin,
            wrapper: Vec::new(),
            env: Vec::new(),
        }
    }

    /// Sets a key of the configuration; `ca.root_sha256` steps into a map.
    #[must_use]
    pub fn set(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.settings.set(key, value);
        self
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

    /// Starts it and waits until it is ready.
    pub async fn start(self) -> Agent {
        let agent = self.start_unready();
        agent.wait_ready().await;
        agent
    }

    /// Starts it, ready or not.
    pub fn start_unready(self) -> Agent {
        let config = self.dir.write("agent.yaml", self.settings.text());
        let launch = Launch::new("citadel-agent", program("citadel-agent"))
            .arg("--config")
            .arg(config)
            .wrapped(&self.wrapper);
        let launch = self
            .env
            .iter()
            .fold(launch, |launch, (name, value)| launch.env(name, value));
        let process = launch.start(&self.dir);
        Agent {
            dir: self.dir,
            settings: self.settings,
            admin: self.admin,
            launch,
            process,
        }
    }
}

/// A node agent as a process. Dropping it kills it.
pub struct Agent {
    dir: TestDir,
    settings: Settings,
    admin: SocketAddr,
    launch: Launch,
    process: Process,
}

impl Agent {
    /// The socket of SDS and the Workload API.
    pub fn socket(&self) -> PathBuf {
        PathBuf::from(self.settings.value("socket").as_str().expect("a path"))
    }

    /// The socket for administrators.
    pub fn admin_socket(&self) -> PathBuf {
        PathBuf::from(
            self.settings
                .value("admin_socket")
                .as_str()
                .expect("a path"),
        )
    }

    /// What `SPIFFE_ENDPOINT_SOCKET` has to be for its clients.
    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// Where `/livez`, `/readyz` and `/metrics` are.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// Its folder, with the logs and the configuration.
    pub fn dir(&self) -> &TestDir {
        &self.dir
    }

    /// The process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Replaces its own token, as the kubelet does.
    pub fn replace_token(&self, token: &str) {
        let fresh = self.dir.write("token.new", token);
        std::fs::rename(fresh, self.dir.join("token")).expect("a new token");
    }

    /// Changes a key for the next start.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.settings.set(key, value);
    }

    /// Starts it again, after it ended.
    pub async fn start_again(&mut self) {
        assert!(!self.process.is_running(), "citadel-agent still runs");
        self.dir.write("agent.yaml", self.settings.text());
        self.process = self.launch.start(&self.dir);
        self.wait_ready().await;
    }

    /// Starts another one beside it, with more flags and log files of its own.
    pub fn start_beside(&self, flags: &[&str]) -> Process {
        let launch = self.launch.clone().args(flags).in_new_files();
        launch.start(&self.dir)
    }

    /// Starts another one beside it, which takes over; the first one ends.
    pub async fn upgrade(&mut self) {
        self.dir.write("agent.yaml", self.settings.text());
        let successor = self.launch.start(&self.dir);
        let before = std::mem::replace(&mut self.process, successor);
        let ended = before.wait(START).await;
        assert!(ended.success(), "{ended:?}\n{}", self.log());
        self.wait_ready().await;
    }

    /// Waits until `/readyz` says so.
    pub async fn wait_ready(&self) {
        self.process
            .ready(START, async || self.is_ready().await)
            .await;
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

    /// What `/metrics` says.
    pub async fn metrics(&self) -> String {
        http::get(self.admin, "/metrics")
            .await
            .expect("the agent's metrics")
            .body
    }

    /// Its log.
    pub fn log(&self) -> String {
        self.process.log()
    }
}
