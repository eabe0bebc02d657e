//! `citadel fetch --watch --write`: files that are always the newest.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use citadel_tests::client::Certificate;
use citadel_tests::dir::TestDir;
use citadel_tests::parts::program;
use citadel_tests::pki::openssl;
use citadel_tests::process::{Launch, Process};
use citadel_tests::{secrets, wait};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::{PATIENCE, mode, text, verify};
use crate::node::{Node, user_entry};

/// Two renewals of certificates of 10 s, which are due after half of it.
const RENEWALS: Duration = Duration::from_secs(40);

/// The updates that were printed, one a line.
fn updates(watcher: &Process) -> Vec<Value> {
    let output = watcher.output();
    let whole = output.rfind('\n').map_or("", |end| &output[..end]);
    let lines = whole.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
        .collect()
}

fn serial_of(update: &Value) -> String {
    update["svids"][0]["serial"]
        .as_str()
        .expect("a serial")
        .to_owned()
}

/// The serial of the certificate in the folder, which a reader finds whole at any time.
fn serial_in(folder: &Path) -> Option<String> {
    let pem = std::fs::read(folder.join("svid.pem")).ok()?;
    let der = openssl::run(&["x509", "-outform", "DER"], &pem);
    Some(
        Certificate::of_der(&der)
            .serial()
            .trim_start_matches("00")
            .to_owned(),
    )
}

#[tokio::test]
async fn a_watcher_sees_each_renewal_and_its_files_are_the_newest() {
    let entry = user_entry("/unix/root", "watched", 0);
    let node = Node::with(
        "watched",
        |ca| ca.set("entries", vec![entry]),
        |agent| agent.set("svid_ttl", "10s"),
    )
    .await;
    let dir = TestDir::new("watch");
    let folder = dir.join("certs");
    let watcher = Launch::new("watcher", program("citadel"))
        .args([
            "fetch",
            "--watch",
            "--output",
            "json",
            "--write",
            text(&folder),
        ])
        .env("SPIFFE_ENDPOINT_SOCKET", node.agent.endpoint())
        .start(&dir);

    // The first and two renewals, each of them written before the next comes.
    let mut written = BTreeSet::new();
    wait::until("two renewals in files", RENEWALS, async || {
        assert!(watcher.is_running(), "it ended: {}", watcher.log());
        // In this order: a certificate is never in the folder before it is shown.
        let in_folder = serial_in(&folder);
        let shown: Vec<_> = updates(&watcher).iter().map(serial_of).collect();
        if let Some(serial) = in_folder {
            assert!(
                shown.contains(&serial),
                "{serial} was never shown: {shown:?}"
            );
            if written.insert(serial) {
                secrets::register_key_file("SVID key", &folder.join("svid_key.pem"));
            }
        }
        (written.len() >= 3).then_some(())
    })
    .await;
    watcher.signal(Signal::SIGINT);
    let ended = watcher.wait(PATIENCE).await;
    assert_eq!(ended.code(), Some(0), "{}", watcher.log());

    let updates = updates(&watcher);
    let serials: Vec<_> = updates.iter().map(serial_of).collect();
    assert!(serials.len() >= 3, "{serials:?}");
    let distinct: BTreeSet<_> = serials.iter().collect();
    assert_eq!(
        distinct.len(),
        serials.len(),
        "a line without news: {serials:?}"
    );
    for update in &updates {
        assert_eq!(
            update["svids"][0]["spiffe_id"],
            "spiffe://example.org/unix/root"
        );
    }
    // It may have been told to end between showing and writing: then the one before.
    let last = serial_in(&folder).unwrap();
    assert!(
        serials[serials.len() - 2..].contains(&last),
        "{last}: {serials:?}"
    );
    assert!(!watcher.output().contains("PRIVATE"));

    // A set that belongs together, and nothing beside it.
    let (svid, key) = (folder.join("svid.pem"), folder.join("svid_key.pem"));
    let bundle = folder.join("svid_bundle.pem");
    secrets::register_key_file("SVID key", &key);
    assert_eq!(
        [mode(&folder), mode(&svid), mode(&key), mode(&bundle)],
        [0o700, 0o644, 0o600, 0o644]
    );
    let of_leaf = openssl::run(
        &["x509", "-noout", "-pubkey"],
        &std::fs::read(&svid).unwrap(),
    );
    let of_key = openssl::run(&["pkey", "-pubout"], &std::fs::read(&key).unwrap());
    assert_eq!(of_leaf, of_key);
    // The last set of before stays for who looked at it a moment ago.
    assert_eq!(
        super::names_in(&folder),
        [
            "..data",
            "..set",
            "..set",
            "svid.pem",
            "svid_bundle.pem",
            "svid_key.pem"
        ]
    );
    // At a time when it was young: it may have ended since.
    let shown = updates.iter().find(|update| serial_of(update) == last);
    let at = shown.expect("it was shown")["svids"][0]["not_before"].clone();
    let at = at.as_str().expect("a time");
    verify(&dir, &[text(&svid), "--bundle", text(&bundle), "--at", at])
        .await
        .success();
}
