//! `docs/agent.md`: every recipe that it shows, as it stands there, with the real server, over
//! two renewals. Places, ports and users of its examples are put in place of the testbed's.

mod recipes;

use std::process::{Output, Stdio};
use std::time::Duration;

use citadel_tests::dir::TestDir;
use citadel_tests::parts::part;
use citadel_tests::{document, ports, wait};
use tokio::process::Command;
use tokio::time::timeout;

/// A debug build's renewals, on a machine that may be busy.
const DEADLINE: Duration = Duration::from_secs(60);

const DOCUMENT: &str = include_str!("../../../docs/agent.md");

/// The first block of a language under a heading of the document.
fn first(heading: &str, language: &str) -> String {
    document::first(DOCUMENT, heading, language)
}

/// `PATH` with this workspace's programs and the servers.
fn path() -> String {
    document::path(&[part("POSTGRES"), part("SERVERS")])
}

/// Runs a command of the document to its end.
async fn shell(dir: &TestDir, command: &str, env: &[(&str, &str)]) -> Result<String, String> {
    let mut shell = Command::new("bash");
    shell
        .args(["-euo", "pipefail", "-c", command])
        .current_dir(dir.path())
        .env("PATH", path())
        .envs(env.iter().copied())
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output: Output = timeout(DEADLINE, shell.output())
        .await
        .unwrap_or_else(|_| panic!("{command}: no end"))
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(text(&output.stderr))
    }
}

/// The serial number of the certificate that a server shows, by OpenSSL.
async fn serial(dir: &TestDir, port: u16, options: &str) -> Option<String> {
    let command = format!(
        "openssl s_client -connect 127.0.0.1:{port} {options} </dev/null 2>/dev/null \
         | openssl x509 -noout -serial"
    );
    shell(dir, &command, &[]).await.ok()
}

/// Waits until the server shows another certificate, twice.
async fn renews_twice(dir: &TestDir, port: u16, options: &str) {
    let mut last = wait::until("the server answers", DEADLINE, async || {
        serial(dir, port, options).await
    })
    .await;
    for _ in 0..2 {
        last = wait::until("another certificate", DEADLINE, async || {
            let now = serial(dir, port, options).await;
            now.filter(|now| *now != last)
        })
        .await;
    }
}

/// A port that nobody listens on.
fn port() -> u16 {
    ports::address().port()
}
