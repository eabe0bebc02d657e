//! `docs/agent.md`, a machine outside of Kubernetes: each command and file as it stands there.

use std::process::Stdio;

use citadel_tests::citadel::{CaBuilder, citadel_ca};
use citadel_tests::dir::TestDir;
use citadel_tests::document::{Here, blocks, commands, path};
use citadel_tests::process::Launch;
use citadel_tests::{http, ports, secrets};
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::time::timeout;

use super::{DEADLINE, content};

const DOCUMENT: &str = include_str!("../../../docs/agent.md");
const HEADING: &str = "A machine outside of Kubernetes";

#[tokio::test]
async fn a_machine_joins_and_ends_as_the_document_says() {
    let (operator, machine) = (TestDir::new("operator"), TestDir::new("machine"));
    let [entries, agent, rules, by_certificate] =
        <[String; 4]>::try_from(blocks(DOCUMENT, HEADING, "yaml")).unwrap();
    let commands = commands(&blocks(DOCUMENT, HEADING, "sh"));
    let [create, join, start, list, tokens, evict, admit] =
        <[String; 7]>::try_from(commands).unwrap();

    let entries: Value = serde_saphyr::from_str(&entries.replace(":26", ":0")).unwrap();
    let ca = CaBuilder::with_clusters(TestDir::new("ca"), json!([]))
        .set("entries", entries["entries"].clone())
        .start()
        .await;
    let socket = ca.admin_socket().display().to_string();
    // What it shows of certificates is a good configuration (`x509pop.rs` runs the like).
    let roots = machine.write("roots.pem", std::fs::read(ca.bundle_file()).unwrap());
    let roots = roots.display().to_string();
    let rules = rules.replace("/etc/citadel/machines-ca.pem", &roots);
    let ca_config = operator.write("ca.yaml", format!("trust_domain: example.org\n{rules}"));
    let config = ["--check-config", "--config", ca_config.to_str().unwrap()];
    citadel_ca(&operator, config, DEADLINE).await.success();
    let agent_config = by_certificate.replace("/var/lib/citadel-agent", "/nowhere/state");
    let agent_config = operator.write("agent.yaml", agent_config);
    let here = Here(
        [
            ("ca.example.org:15012", ca.grpc().to_string()),
            ("/run/citadel-ca/admin.sock", socket),
            (
                "/var/lib/citadel-agent",
                machine.join("state").display().to_string(),
            ),
        ]
        .map(|(there, here)| (there.to_owned(), here))
        .into(),
    );
    let run = async |dir: &TestDir, command: &str| {
        let mut shell = Command::new("bash");
        shell
            .args(["-euo", "pipefail", "-c", &here.put(command)])
            .current_dir(dir.path())
            .env("PATH", path(&[]))
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let output = timeout(DEADLINE, shell.output())
            .await
            .expect("an end")
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    };
    let check = format!(
        "citadel-agent --check-config --config {}",
        agent_config.display()
    );
    run(&operator, &check).await;
    run(&operator, &create).await;
    let token = std::fs::read_to_string(operator.join("token")).unwrap();
    let content = content(token.trim());
    secrets::register_token("join token", content["secret"].as_str().unwrap());
    // It is carried over.
    std::fs::rename(operator.join("token"), machine.join("token")).unwrap();
    let joined = run(&machine, &join).await;
    assert!(joined.contains("/citadel/agent/external/vm-1,"), "{joined}");

    machine.write("citadel-agent.yaml", here.put(&agent));
    let admin = ports::address();
    let launch = Launch::new("citadel-agent", "bash")
        .args([
            "-c",
            &format!("cd {} && exec {start}", machine.path().display()),
        ])
        .env("PATH", path(&[]))
        .env("CITADEL_AGENT_SOCKET", machine.join("run/agent.sock"))
        .env(
            "CITADEL_AGENT_ADMIN_SOCKET",
            machine.join("admin/agent.sock"),
        )
        .env("CITADEL_AGENT_ADMIN_LISTEN", admin.to_string());
    let process = launch.start(&machine);
    process
        .ready(DEADLINE, async || {
            let answer = http::get(admin, "/readyz").await;
            answer.is_some_and(|answer| answer.status == 200)
        })
        .await;
    let endpoint = format!("unix://{}", machine.join("run/agent.sock").display());
    let fetched = run(&machine, &format!("citadel fetch --socket {endpoint}")).await;
    assert!(fetched.contains("spiffe://example.org/db"), "{fetched}");

    let listed = run(&operator, &list).await;
    assert!(
        listed.contains("vm-1") && listed.contains("joined"),
        "{listed}"
    );
    assert!(run(&operator, &tokens).await.contains("used"));
    run(&operator, &evict).await;
    assert!(run(&operator, &list).await.contains("evicted"));
    run(&operator, &admit).await;
    assert!(!run(&operator, &list).await.contains("vm-1"));
}
