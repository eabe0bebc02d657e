//! The root is replaced by its successor while the CA is away: the old one vouches for the
//! new by a cross-certificate, as everyone has the old one alone until the CA is back.

use std::time::UNIX_EPOCH;

use citadel_tests::dir::TestDir;
use citadel_tests::pki::openssl;
use citadel_tests::wait;
use rcgen::Issuer;
use tokio::time::sleep;

use super::workloads::{one, trusted};
use super::{RENEWAL, Scene, TTL};
use crate::cacerts::made::{self, Plan, Set};

/// Old root, then both with the new one issuing, then the new one alone.
#[tokio::test]
async fn the_root_replaced_by_its_successor_during_an_outage() {
    let (old, both, new) = successors();
    let old_key = key_id(&old.certificate);
    let cacerts = old.write();
    let path = cacerts.path().to_str().expect("a plain path").to_owned();
    // First trust, which nobody touches again.
    let known = TestDir::new("known").write("root.pem", &old.root);
    let known = known.to_str().expect("a plain path").to_owned();
    let mut scene = Scene::start(
        "new-root",
        TTL,
        |ca| ca.set("ca.cacerts_dir", path),
        |agent| agent.set("ca.bundle_file", known),
    )
    .await;
    let socket = scene.mesh.node.agent.socket();
    assert_eq!(trusted(&socket).await, ders(&[&old.root]));

    for (set, roots) in [
        (&both, ders(&[&old.root, &new.root])),
        (&new, ders(&[&new.root])),
    ] {
        let before = one(&socket).await.expect("a certificate");
        scene.mesh.node.ca.process().kill().await;
        set.write_into(&cacerts);
        scene.mesh.node.ca.set("ca.replaces_key", old_key.as_str());
        // The outage itself is what is waited for.
        sleep(TTL / 3).await;
        let back = UNIX_EPOCH.elapsed().expect("a clock").as_secs_f64().floor();
        scene.mesh.node.ca.start_again().await;
        scene.all_renewed_since(back).await;
        wait::until("the bundle is the new one", RENEWAL, async || {
            (trusted(&socket).await == roots).then_some(())
        })
        .await;
        let after = one(&socket).await.expect("a certificate");
        assert_ne!(before.serial, after.serial);
        // Both Envoys have what came of it, and a renewal after it.
        scene.renewed().await;
    }
    let seen = scene.stop().await;
    assert!(seen.client_serials.len() >= 4, "{:?}", seen.client_serials);
}

/// The three sets of `cacerts` files of such a replacement.
fn successors() -> (Set, Set, Set) {
    let old_key = made::key("P-256");
    let plan = Plan {
        root_key: old_key.clone(),
        ..Plan::new("P-256")
    };
    let old_params = plan.root.clone();
    let old = plan.make();
    let plan = Plan {
        root: made::ca("new root", None),
        ..Plan::new("P-256")
    };
    let new_key = plan.root_key.clone();
    let new = plan.make();
    let old_issuer = Issuer::new(old_params, made::pair(&old_key));
    let cross = made::ca("new root", None)
        .signed_by(&made::pair(&new_key), &old_issuer)
        .expect("a cross-certificate")
        .pem();
    let both = Set {
        root: format!("{}{}", old.root, new.root),
        chain: format!("{}{cross}", new.certificate),
        ..new.clone()
    };
    (old, both, new)
}

/// The subject key identifier, in hex.
fn key_id(certificate: &str) -> String {
    let args = ["x509", "-noout", "-ext", "subjectKeyIdentifier"];
    let text = openssl::run_text(&args, certificate.as_bytes());
    let id = text.lines().nth(1).expect("a subject key identifier");
    id.trim().replace(':', "")
}

/// Certificates one after the other, as the Workload API has a trust bundle.
fn ders(pems: &[&String]) -> Vec<u8> {
    let der = |pem: &&String| openssl::run(&["x509", "-outform", "DER"], pem.as_bytes());
    pems.iter().flat_map(der).collect()
}
