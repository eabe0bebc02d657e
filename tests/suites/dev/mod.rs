//! `citadel dev`, `fetch` and `verify`, as a newcomer types them.

mod output;
mod watch;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use citadel_tests::citadel::{Finished, citadel};
use citadel_tests::dir::TestDir;
use citadel_tests::foreign::Foreign;
use citadel_tests::kubernetes::ApiServer;
use citadel_tests::parts::program;
use citadel_tests::pki::openssl;
use citadel_tests::process::Launch;
use citadel_tests::secrets;
use serde_json::Value;

/// A debug build makes two servers' keys first, on a machine that may be busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// `citadel dev --data-dir DIR/data OPTIONS… -- COMMAND…`, its log at the most
/// verbose, so that the search for secrets has something to search.
async fn dev(dir: &TestDir, options: &[&str], command: &[&str]) -> Finished {
    let data = dir.join("data");
    let always = ["dev", "--log-level", "trace", "--data-dir", text(&data)];
    let args = [&always[..], options, &["--"], command].concat();
    citadel(dir, args, &[], PATIENCE).await
}

/// Runs `citadel fetch --write` inside `citadel dev`; the folder with the files.
async fn fetched(dir: &TestDir) -> PathBuf {
    let folder = dir.join("certs");
    let path = folder.to_str().expect("a plain path");
    dev(dir, &[], &["citadel", "fetch", "--write", path])
        .await
        .success();
    secrets::register_key_file("SVID key", &folder.join("svid_key.pem"));
    folder
}

async fn verify(dir: &TestDir, args: &[&str]) -> Finished {
    let args = ["verify"].iter().chain(args).copied();
    citadel(dir, args, &[], PATIENCE).await
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

fn mode(path: &Path) -> u32 {
    let metadata = std::fs::metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    metadata.permissions().mode() & 0o7777
}

/// The names in a folder of certificates; of a set's own, the beginning.
fn names_in(folder: &Path) -> Vec<String> {
    let name = |entry: std::io::Result<std::fs::DirEntry>| {
        let name = entry.unwrap().file_name().into_string().unwrap();
        match name.split_once("..set-") {
            Some(_) => "..set".to_owned(),
            None => name,
        }
    };
    let mut names: Vec<_> = std::fs::read_dir(folder).unwrap().map(name).collect();
    names.sort();
    names
}

#[tokio::test]
async fn the_first_command_leads_to_an_svid_that_others_accept() {
    let dir = TestDir::new("dev");
    let certs = fetched(&dir).await;
    let (svid, key) = (certs.join("svid.pem"), certs.join("svid_key.pem"));
    let bundle = certs.join("svid_bundle.pem");

    assert_eq!(mode(&certs), 0o700);
    assert_eq!(
        [mode(&svid), mode(&key), mode(&bundle)],
        [0o644, 0o600, 0o644]
    );
    assert_eq!(
        names_in(&certs),
        [
            "..data",
            "..set",
            "svid.pem",
            "svid_bundle.pem",
            "svid_key.pem"
        ]
    );

    // State is where it was asked for, and closed to others.
    let data = dir.join("data");
    assert!(data.join("citadel.db").is_file());
    assert_eq!(
        [mode(&data), mode(&data.join("ca-key.pem"))],
        [0o700, 0o600]
    );
    assert_eq!(mode(&data.join("root-key.pem")), 0o600);
    for key in ["ca-key.pem", "root-key.pem"] {
        secrets::register_key_file("CA key", &data.join(key));
    }

    for purpose in ["sslserver", "sslclient"] {
        let args = [
            "verify",
            "-x509_strict",
            "-no-CApath",
            "-no-CAstore",
            "-purpose",
            purpose,
            "-CAfile",
            text(&bundle),
            "-untrusted",
            text(&svid),
            text(&svid),
        ];
        let (accepted, output, errors) = openssl::attempt(&args, b"");
        assert!(accepted, "{}{errors}", String::from_utf8_lossy(&output));
    }
    let verified = Foreign::verify(&dir, &svid, &key, &bundle).await.unwrap();
    assert_eq!(verified["id"], "spiffe://example.org/user/root");
    assert_eq!(verified["chain"], 2);
}

#[tokio::test]
async fn the_program_s_end_is_the_command_s() {
    let dir = TestDir::new("exit");
    assert_eq!(dev(&dir, &[], &["sh", "-c", "exit 7"]).await.code, Some(7));
    assert_eq!(
        dev(&dir, &[], &["sh", "-c", "kill -TERM $$"]).await.code,
        Some(143)
    );
    assert_eq!(dev(&dir, &[], &["no-such-program"]).await.code, Some(127));
    let shown = dev(&dir, &[], &["sh", "-c", "echo $SPIFFE_ENDPOINT_SOCKET"])
        .await
        .success();
    assert!(
        shown.starts_with("unix:///") && shown.trim_end().ends_with("agent.sock"),
        "{shown}"
    );
    // What dev itself has to say is not on the program's output.
    assert_eq!(shown.lines().count(), 1, "{shown}");
}

#[tokio::test]
async fn a_second_start_keeps_authority_and_record() {
    let dir = TestDir::new("again");
    let certs = fetched(&dir).await;
    let read = |name: &str| std::fs::read_to_string(certs.join(name)).unwrap();
    let (bundle, svid) = (read("svid_bundle.pem"), read("svid.pem"));
    let grown = |then: u64| {
        std::fs::metadata(dir.join("data/citadel.db"))
            .unwrap()
            .len()
            >= then
    };
    let size = std::fs::metadata(dir.join("data/citadel.db"))
        .unwrap()
        .len();
    fetched(&dir).await;
    assert_eq!(read("svid_bundle.pem"), bundle, "another authority");
    assert_ne!(read("svid.pem"), svid, "the same certificate");
    assert!(size > 0 && grown(size));

    // The first certificate is still good.
    let first = dir.write("first.pem", svid);
    let bundle = certs.join("svid_bundle.pem");
    let good = verify(&dir, &[text(&first), "--bundle", text(&bundle)]).await;
    good.success();

    // A folder of another trust domain is not taken over.
    let refused = dev(&dir, &["--trust-domain", "other.example"], &["true"]).await;
    assert_eq!(refused.code, Some(2), "{}", refused.errors);
    assert!(refused.errors.contains("example.org"), "{}", refused.errors);
}

#[tokio::test]
async fn one_folder_has_one_dev_which_ends_when_told() {
    let dir = TestDir::new("one");
    let data = dir.join("data");
    let first = Launch::new("dev", program("citadel"))
        .args(["dev", "-o", "json", "--data-dir", text(&data)])
        .start(&dir);
    let facts = first
        .output_line("its facts", PATIENCE, |line| line.starts_with('{'))
        .await;
    let facts: Value = serde_json::from_str(&facts).unwrap();
    assert_eq!(facts["trust_domain"], "example.org");
    assert_eq!(facts["store"], text(&data.join("citadel.db")));

    let second = dev(&dir, &[], &["true"]).await;
    assert_eq!(second.code, Some(5), "{}", second.errors);
    assert!(
        second.errors.contains(&first.pid().to_string()),
        "{}",
        second.errors
    );

    // Another terminal's fetch, with what dev printed.
    let endpoint = facts["endpoint"].as_str().unwrap();
    let variable = [("SPIFFE_ENDPOINT_SOCKET", endpoint)];
    let output = citadel(&dir, ["fetch", "--output", "json"], &variable, PATIENCE)
        .await
        .success();
    let fetched: Value = serde_json::from_str(&output).unwrap();
    assert_eq!(fetched["svids"][0]["spiffe_id"], facts["spiffe_id"]);
    assert!(!output.contains("PRIVATE"));

    assert_eq!(
        first.terminate(PATIENCE).await.code(),
        Some(0),
        "{}",
        first.log()
    );
    let gone = citadel(&dir, ["fetch", "--timeout", "1s"], &variable, PATIENCE).await;
    assert_eq!(gone.code, Some(3), "{}", gone.errors);
}

#[tokio::test]
async fn verify_says_what_is_wrong() {
    let (dir, other) = (TestDir::new("verify"), TestDir::new("other"));
    let (certs, foreign) = (fetched(&dir).await, fetched(&other).await);
    let (svid, bundle) = (certs.join("svid.pem"), foreign.join("svid_bundle.pem"));

    // The bundle beside it is found by itself; both places of --output.
    for args in [
        ["-o", "json", "verify", text(&svid)],
        ["verify", text(&svid), "-o", "json"],
    ] {
        let output = citadel(&dir, args, &[], PATIENCE).await.success();
        let verdict: Value = serde_json::from_str(&output).unwrap();
        assert_eq!(verdict["valid"], true);
        assert_eq!(verdict["spiffe_id"], "spiffe://example.org/user/root");
    }
    let wrong = [
        (vec!["--bundle", text(&bundle)], "authorit"),
        (
            vec!["--id", "spiffe://example.org/user/other"],
            "spiffe://example.org/user/other",
        ),
        (vec!["--at", "2001-01-01T00:00:00Z"], "not valid before"),
        (vec!["--at", "2101-01-01T00:00:00Z"], "expired"),
    ];
    for (options, reason) in wrong {
        let args: Vec<_> = [text(&svid)].into_iter().chain(options).collect();
        let bad = verify(&dir, &args).await;
        assert_eq!(bad.code, Some(1), "{args:?}: {}", bad.errors);
        assert!(bad.errors.contains(reason), "{args:?}: {}", bad.errors);
        let json = verify(&dir, &[&args[..], &["-o", "json"]].concat()).await;
        assert_eq!(json.code, Some(1));
        let verdict: Value = serde_json::from_str(&json.output).unwrap();
        assert_eq!(verdict["valid"], false, "{args:?}");
    }
    // An authority is nobody's identity (SPIFFE requirement 9).
    let authority = certs.join("svid_bundle.pem");
    let bad = verify(&dir, &[text(&authority), "--bundle", text(&authority)]).await;
    assert_eq!(bad.code, Some(1), "{}", bad.errors);
}

#[tokio::test]
async fn a_real_api_server_takes_the_local_issuer_s_place() {
    let api = ApiServer::shared().await;
    let dir = TestDir::new("real");
    let access = api.ca_access("citadel-system", &dir).await;
    let agent = api.create_agent("dev-node").await;
    let token = dir.write("token", &agent.token);
    let options = [
        "--kubeconfig",
        text(&access.kubeconfig),
        "--token-file",
        text(&token),
    ];
    let shown = dev(&dir, &options, &["citadel", "fetch", "-o", "json"])
        .await
        .success();
    let fetched: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(
        fetched["svids"][0]["spiffe_id"],
        "spiffe://example.org/user/root"
    );
}
