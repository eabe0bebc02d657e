//! The program on go-spiffe and gRPC-Go in `testbed/foreign`: a client that shares no
//! code with ours.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::dir::TestDir;
use crate::parts::part;
use crate::process::{Launch, Process};

/// The program, started for one of its commands.
pub struct Foreign {
    process: Process,
}

impl Foreign {
    /// Starts `foreign ARGS…` against a Workload API, whose address goes into
    /// `SPIFFE_ENDPOINT_SOCKET`.
    pub fn start(name: &str, dir: &TestDir, endpoint: &str, args: &[&str]) -> Self {
        let launch = Launch::new(name, part("FOREIGN"))
            .args(args)
            .env("SPIFFE_ENDPOINT_SOCKET", endpoint);
        Self {
            process: launch.start(dir),
        }
    }

    /// `foreign verify`: go-spiffe's parser and verifier on three PEM files.
    /// The verified line, or what go-spiffe objects to.
    pub async fn verify(
        dir: &TestDir,
        svid: &Path,
        key: &Path,
        bundle: &Path,
    ) -> Result<Value, String> {
        let launch = Launch::new("foreign-verify", part("FOREIGN"))
            .arg("verify")
            .arg(svid)
            .arg(key)
            .arg(bundle);
        outcome(launch, dir, Duration::from_secs(20)).await
    }

    /// `foreign log`: Go's checksum database packages on a log. The line about it, or
    /// what they object to.
    pub async fn verify_log(
        dir: &TestDir,
        args: &[&str],
        deadline: Duration,
    ) -> Result<Value, String> {
        let launch = Launch::new("foreign-log", part("FOREIGN")).arg("log");
        outcome(launch.args(args), dir, deadline).await
    }

    /// `foreign provider`: gRPC-Go's certificate providers of a bootstrap file, until they
    /// have had so many certificates of this ID. A line for each.
    pub async fn provided(
        dir: &TestDir,
        bootstrap: &Path,
        id: &str,
        certificates: usize,
        deadline: Duration,
    ) -> Vec<Value> {
        let launch = Launch::new("foreign-provider", part("FOREIGN"))
            .args(["provider", "--expect-id", id, "--updates"])
            .arg(certificates.to_string())
            .arg(format!("--timeout={}s", deadline.as_secs()))
            .arg("--bootstrap")
            .arg(bootstrap);
        let process = launch.start(dir);
        let status = process.wait(deadline + Duration::from_secs(5)).await;
        assert!(status.success(), "{}", process.log());
        Self { process }.events("provided")
    }

    /// The process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// The lines that it has printed so far.
    pub fn lines(&self) -> Vec<Value> {
        let output = self.process.output();
        let whole = output.rfind('\n').map_or("", |end| &output[..end]);
        whole
            .lines()
            .map(|line| serde_json::from_str(line).expect("a line of JSON"))
            .collect()
    }

    /// The lines of one event: `update`, `ok`, `failed`, `error`, …
    pub fn events(&self, event: &str) -> Vec<Value> {
        self.lines()
            .into_iter()
            .filter(|line| line["event"] == event)
            .collect()
    }

    /// Waits for a line of this event.
    pub async fn event(&self, event: &str, deadline: Duration) -> Value {
        crate::wait::until(
            &format!("the foreign program's event {event}"),
            deadline,
            async || self.events(event).into_iter().next(),
        )
        .await
    }
}

/// The one line that a command prints, or what it says when it fails.
async fn outcome(launch: Launch, dir: &TestDir, deadline: Duration) -> Result<Value, String> {
    let process = launch.in_new_files().start(dir);
    let status = process.wait(deadline).await;
    if !status.success() {
        return Err(process.log());
    }
    Ok(serde_json::from_str(process.output().trim()).expect("a line of JSON"))
}
