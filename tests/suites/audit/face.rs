//! The log over HTTPS: Go's own code verifies it from there alone.

use std::time::Duration;

use citadel_ledger::Receipt;
use citadel_tests::foreign::Foreign;
use tonic::Code;

use super::{covered, issue};
use crate::support::Scene;

const DEADLINE: Duration = Duration::from_secs(60);

async fn go(scene: &Scene<'_>, key: &str, more: &[&str]) -> Result<serde_json::Value, String> {
    let source = format!("https://{}", scene.ca.public());
    let roots = scene.ca.bundle_file();
    let mut args = vec!["--source", &source, "--key", key];
    args.extend([
        "--server-name",
        "citadel-ca",
        "--roots",
        roots.to_str().unwrap(),
    ]);
    args.extend(more);
    Foreign::verify_log(scene.ca.dir(), &args, DEADLINE).await
}

#[tokio::test]
async fn go_verifies_checkpoint_and_entries_from_the_tiles_alone() {
    let scene = Scene::with(|ca| {
        ca.set("log.public_hashes", true)
            .set("ca.dns_names", vec!["citadel-ca"])
            .set("admin.auditor", vec!["auditors/web"])
    })
    .await;
    let auditor = scene.workload("auditors").await;
    let web = scene.workload("face").await;
    let svids = issue(&scene, &web, 300).await;
    let last = svids.last().unwrap().log_index;
    let (key, _) = covered(&scene, last).await;
    let key = key.to_string();

    // Hashes are open; entries are not.
    let line = go(&scene, &key, &[]).await.unwrap();
    assert!(line["size"].as_u64().unwrap() > last, "{line}");
    let refused = go(&scene, &key, &["--entries", "1"]).await.unwrap_err();
    assert!(refused.contains("401"), "{refused}");
    let by_workload = ["--entries", "1", "--token", &web.token];
    let refused = go(&scene, &key, &by_workload).await.unwrap_err();
    assert!(refused.contains("403"), "{refused}");
    let by_auditor = ["--entries", "1000", "--token", &auditor.token];
    let line = go(&scene, &key, &by_auditor).await.unwrap();
    assert_eq!(line["entries"], 1000);

    // A key of another log verifies nothing.
    let other = citadel_ledger::LogKey::generate("example.org/citadel/other").unwrap();
    go(&scene, &other.verifier().to_string(), &[])
        .await
        .unwrap_err();
}

#[tokio::test]
async fn without_public_hashes_nothing_is_open() {
    let scene = Scene::with(|ca| ca.set("ca.dns_names", vec!["citadel-ca"])).await;
    let web = scene.workload("closed").await;
    let svids = issue(&scene, &web, 1).await;
    let (key, _) = covered(&scene, svids[0].log_index).await;
    let refused = go(&scene, &key.to_string(), &[]).await.unwrap_err();
    assert!(refused.contains("401"), "{refused}");
    let by_workload = ["--token", web.token.as_str()];
    let refused = go(&scene, &key.to_string(), &by_workload)
        .await
        .unwrap_err();
    assert!(refused.contains("403"), "{refused}");
}

#[tokio::test]
async fn a_receipt_proves_a_certificate_to_whoever_has_the_key() {
    let scene = Scene::start().await;
    let web = scene.workload("receipts").await;
    let svids = issue(&scene, &web, 3).await;
    let (key, _) = covered(&scene, svids[2].log_index).await;
    for svid in &svids {
        let text = scene.admin.receipt(&svid.serial).await.unwrap();
        let receipt = Receipt::parse(text.as_bytes()).unwrap();
        assert_eq!(receipt.index, svid.log_index);
        receipt.verify(std::slice::from_ref(&key)).unwrap();
        let record = scene.admin.certificate(&svid.serial).await.unwrap();
        assert_eq!(receipt.entry, record.bytes);
        assert_eq!(record.issued.certificate, svid.certificate_chain[0]);
    }
    let unknown = scene.admin.receipt("01").await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    // Over the network it is for auditors.
    let client = scene.client_of(&web);
    let status = client.server_info().await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
}
