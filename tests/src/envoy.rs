//! A real Envoy.

use std::net::SocketAddr;
use std::time::Duration;

use crate::dir::TestDir;
use crate::http;
use crate::parts::part;
use crate::process::{Launch, Process};

const START: Duration = Duration::from_secs(90);

/// A running Envoy. Dropping it kills it.
pub struct Envoy {
    admin: SocketAddr,
    process: Process,
}

impl Envoy {
    /// Starts one from a bootstrap file's text, whose admin address has to be
    /// `admin`, and waits until the admin page says LIVE. Listeners may still
    /// wait for their secrets then.
    pub async fn start(name: &str, dir: &TestDir, bootstrap: &str, admin: SocketAddr) -> Self {
        Self::start_wrapped(name, dir, bootstrap, admin, &[]).await
    }

    /// The same through another program; see [`Launch::wrapped`].
    pub async fn start_wrapped(
        name: &str,
        dir: &TestDir,
        bootstrap: &str,
        admin: SocketAddr,
        wrapper: &[String],
    ) -> Self {
        Self::with_log(name, dir, bootstrap, admin, wrapper, "debug").await
    }

    /// The same without a log of all that it does: of hundreds of listeners under load it
    /// would be most of the work.
    pub async fn start_quietly(
        name: &str,
        dir: &TestDir,
        bootstrap: &str,
        admin: SocketAddr,
        wrapper: &[String],
    ) -> Self {
        Self::with_log(name, dir, bootstrap, admin, wrapper, "warning").await
    }

    async fn with_log(
        name: &str,
        dir: &TestDir,
        bootstrap: &str,
        admin: SocketAddr,
        wrapper: &[String],
        level: &str,
    ) -> Self {
        let config = dir.write(format!("{name}.yaml"), bootstrap);
        let process = Launch::new(name, part("ENVOY"))
            .arg("--config-path")
            .arg(config)
            .args(["--concurrency", "1", "--log-level", level])
            // Two Envoys on one machine would meet in shared memory.
            .arg("--disable-hot-restart")
            .wrapped(wrapper)
            .start(dir);
        let envoy = Self { admin, process };
        envoy
            .process
            .ready(START, async || {
                envoy
                    .get("/server_info")
                    .await
                    .is_some_and(|text| text.contains("\"LIVE\""))
            })
            .await;
        envoy
    }

    /// The process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Its admin page.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// A page of its admin server, if it answers with 200.
    pub async fn get(&self, path: &str) -> Option<String> {
        let answer = http::get(self.admin, path).await?;
        (answer.status == 200).then_some(answer.body)
    }

    /// A counter or gauge; 0 when Envoy has none of that name.
    pub async fn stat(&self, name: &str) -> u64 {
        let text = self
            .get("/stats?usedonly")
            .await
            .expect("Envoy's admin page answers");
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        line.map_or(0, |value| value.trim().parse().expect("a number"))
    }
}
