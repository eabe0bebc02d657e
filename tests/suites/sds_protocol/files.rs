//! Secrets in files, under the names that istio-proxy has for them.

use citadel_tests::dir::TestDir;
use citadel_tests::wait;
use rcgen::{CertificateParams, KeyPair, SerialNumber};

use super::script::{ID, PROMPT, RENEWAL, Script, node};
use crate::node::{Node, user_entry};

/// Writes a certificate of this serial with its key.
fn write_pair(dir: &TestDir, serial: u64) {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::default();
    params.serial_number = Some(SerialNumber::from(serial));
    let made = params.self_signed(&key).expect("a certificate");
    citadel_tests::secrets::register_key_pem("a key in a file", &key.serialize_pem());
    dir.write("chain.pem", made.pem());
    dir.write("key.pem", key.serialize_pem());
}

fn names(dir: &TestDir) -> [String; 2] {
    let path = |name: &str| dir.join(name).display().to_string();
    [
        format!("file-cert:{}~{}", path("chain.pem"), path("key.pem")),
        format!("file-root:{}", path("chain.pem")),
    ]
}

#[tokio::test]
async fn sds_req_20_files_are_served_where_the_configuration_says_so_and_followed() {
    let dir = TestDir::new("sds-files");
    write_pair(&dir, 7);
    let entry = user_entry("/unix/root", "sds-files", 0);
    let rule = serde_json::json!([{ "folder": dir.join(""), "spiffe_ids": [ID] }]);
    let node = Node::with(
        "sds-files",
        |ca| ca.set("entries", vec![entry]),
        |agent| agent.set("sds_files", rule),
    )
    .await;
    let [pair, roots] = names(&dir);
    let wanted = [pair.as_str(), &roots, "default"];
    let mut script = Script::open(&node, &wanted).await;
    let mut pushed = script.next().await;
    while pushed.names.len() < 3 {
        script.ack(&pushed, &wanted);
        pushed = script.next().await;
    }
    assert_eq!(pushed.names, ["default", &pair, &roots]);
    assert_eq!(pushed.serials[1], "07");
    script.ack(&pushed, &wanted);
    write_pair(&dir, 9);
    let replaced = script.within(RENEWAL).await;
    assert_eq!(replaced.serials[1], "09");
    assert_eq!(replaced.serials[0], pushed.serials[0]);
}

#[tokio::test]
async fn sds_req_20_without_it_no_path_that_a_workload_names_is_read() {
    let dir = TestDir::new("sds-no-files");
    write_pair(&dir, 7);
    let node = node("sds-no-files", "1h").await;
    let [pair, roots] = names(&dir);
    let shadow = "file-root:/etc/shadow";
    let wanted = [pair.as_str(), &roots, shadow, "default"];
    let mut script = Script::open(&node, &wanted).await;
    let first = script.next().await;
    assert_eq!(first.names, ["default"]);
    script.ack(&first, &[&wanted[..], &["ROOTCA"]].concat());
    assert_eq!(script.next().await.names, ["ROOTCA", "default"]);
    let refused = wait::until("the refusals are logged", PROMPT, async || {
        let lines = node.refusals();
        (lines.len() >= 3).then_some(lines)
    })
    .await;
    for name in [&*pair, &roots, shadow] {
        let told: Vec<_> = refused.iter().filter(|line| line["name"] == name).collect();
        assert_eq!(told.len(), 1, "{name}: {refused:?}");
        let problem = told[0]["problem"].as_str().unwrap_or_default();
        assert!(problem.contains("sds_files"), "{problem}");
    }
}
