//! `docs/audit.md`: every command that it shows, as it stands there, on the log of a running
//! CA. Names, places and times of its example are put in place of its own.

use std::process::{Output, Stdio};
use std::time::Duration;

use citadel_tests::dir::TestDir;
use citadel_tests::document::{Here, commands, path, shell_blocks};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

use super::{covered, issue};
use crate::support::Scene;

const DOCUMENT: &str = include_str!("../../../docs/audit.md");
const DEADLINE: Duration = Duration::from_secs(60);

/// A machine of an auditor's: a folder, and where the log is.
struct Auditor<'a> {
    scene: &'a Scene<'a>,
    dir: TestDir,
    /// What stands in the document, and what it is here.
    here: Here,
}

impl<'a> Auditor<'a> {
    fn of(scene: &'a Scene<'a>) -> Self {
        let dir = TestDir::new("auditor");
        let public = scene.ca.public();
        for (name, from) in [
            ("log.pub", scene.ca.data_dir().join("log.pub")),
            ("root-cert.pem", scene.ca.bundle_file()),
        ] {
            std::fs::copy(from, dir.join(name)).unwrap();
        }
        // The name service of the example.
        let resolve = format!("resolve = \"citadel-ca:{}:127.0.0.1\"\n", public.port());
        dir.write(".curlrc", resolve);
        let at = |offset: time::Duration| {
            let at = OffsetDateTime::now_utc() + offset;
            at.replace_nanosecond(0).unwrap().format(&Rfc3339).unwrap()
        };
        let place = |name: &str| dir.join(name).display().to_string();
        std::fs::create_dir(dir.join("restored")).unwrap();
        let here = [
            ("2026-11-26T14:00:00Z", at(-time::Duration::HOUR)),
            ("2026-11-26T15:00:00Z", at(time::Duration::HOUR)),
            (
                "https://citadel-ca:8443",
                format!("https://citadel-ca:{}", public.port()),
            ),
            ("citadel-ca:8443", public.to_string()),
            ("/backup/2026-11-26", place("backup")),
            ("/var/lib/citadel", place("restored")),
        ];
        let here = here.map(|(there, here)| (there.to_owned(), here));
        Self {
            scene,
            dir,
            here: Here(here.into()),
        }
    }

    fn shell(&self, command: &str) -> Command {
        let command = self.here.put(command);
        let store = format!("sqlite:{}", self.scene.ca.database().display());
        let mut shell = Command::new("bash");
        shell
            .args(["-euo", "pipefail", "-c", &command])
            .current_dir(self.dir.path())
            .env("PATH", path(&[]))
            .env("CITADEL_STORE", store)
            .env("CURL_HOME", self.dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        shell
    }

    async fn runs(&self, command: &str) -> String {
        let output: Output = timeout(DEADLINE, self.shell(command).output())
            .await
            .unwrap_or_else(|_| panic!("{command}: no end"))
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command}\n{errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Of a command that goes on for ever: its first line.
    async fn begins(&self, command: &str) -> String {
        let mut running = self.shell(command).spawn().unwrap();
        let mut lines = BufReader::new(running.stdout.take().unwrap()).lines();
        let first = timeout(DEADLINE, lines.next_line()).await;
        first
            .unwrap_or_else(|_| panic!("{command}: no line"))
            .unwrap()
            .unwrap_or_else(|| panic!("{command}: it ended"))
    }
}

#[tokio::test]
async fn every_command_of_the_document_does_what_it_says() {
    let scene = Scene::with(|ca| {
        ca.set("log.public_hashes", true)
            .set("ca.dns_names", vec!["citadel-ca"])
    })
    .await;
    scene.api.create_node("node-7").await;
    let web = scene.pod("shop", "web", "web-1", "node-7").await;
    let svids = issue(&scene, &web, 3).await;
    covered(&scene, svids[2].log_index).await;
    let mut auditor = Auditor::of(&scene);

    let commands = commands(&shell_blocks(DOCUMENT));
    assert!(commands.len() >= 12, "{commands:#?}");
    // What a person reads off the first answer.
    let found = auditor
        .runs(&format!("{} --output json", commands[0]))
        .await;
    let found: Value = serde_json::from_str(&found).unwrap();
    assert_eq!(found.as_array().unwrap().len(), 3);
    let newest = &found[0];
    assert_eq!(newest["serial"], svids[2].serial);
    assert_eq!(newest["origin"]["pod_uid"], web.uid);
    for (there, here) in [
        ("SERIAL", &newest["serial"]),
        ("POD_UID", &newest["origin"]["pod_uid"]),
        ("SHA256", &newest["spki_sha256"]),
    ] {
        let here = here.as_str().unwrap().to_owned();
        auditor.here.0.push((there.to_owned(), here));
    }
    for command in &commands {
        let output = if command.ends_with(" -f") || command.contains(" watch ") {
            auditor.begins(command).await
        } else {
            auditor.runs(command).await
        };
        if command.contains(" search ") && !command.contains("--count") {
            assert!(output.contains(&svids[2].serial), "{command}: {output}");
        }
        let says_nothing = command.contains(" > ") || command.contains("export");
        assert!(says_nothing || !output.trim().is_empty(), "{command}");
    }
    let kept = std::fs::read_to_string(auditor.dir.join("checkpoint")).unwrap();
    assert!(kept.starts_with("example.org/citadel/"), "{kept}");
    let lines = std::fs::read_to_string(auditor.dir.join("entries.jsonl")).unwrap();
    assert_eq!(lines.matches(&web.spiffe_id()).count(), 3);
    for made in [
        "folder/checkpoint",
        "entries.csv",
        "backup/citadel.db",
        "restored/citadel.db",
    ] {
        assert!(auditor.dir.join(made).exists(), "{made}");
    }
}
