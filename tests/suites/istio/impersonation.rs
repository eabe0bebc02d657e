//! ztunnel speaks for the pods of its node.

use std::time::Duration;

use citadel_proto::istio::IstioCertificateRequest;
use citadel_proto::log::Authority;
use citadel_tests::client::Identity;
use citadel_tests::pki::csr;
use citadel_tests::wait;
use serde_json::json;
use tonic::Code;

use crate::support::{Scene, certificate_request, check_leaf, with_metadata};

const DENIED: Code = Code::PermissionDenied;
const SEEN: Duration = Duration::from_secs(5);

async fn scene() -> Scene<'static> {
    Scene::with(|ca| ca.set("impersonation.accounts", json!(["istio-system/ztunnel"]))).await
}

fn wanted(identity: &str, request: &csr::Csr) -> IstioCertificateRequest {
    with_metadata(&request.pem(), 0, &[("ImpersonatedIdentity", identity)])
}

#[tokio::test]
async fn a_trusted_account_gets_the_identities_of_its_node_alone() {
    let scene = scene().await;
    for node in ["mesh-1", "mesh-2"] {
        scene.api.create_node(node).await;
    }
    let ztunnel = scene
        .pod("istio-system", "ztunnel", "ztunnel-1", "mesh-1")
        .await;
    let here = scene.pod("mesh", "web", "web-1", "mesh-1").await;
    let there = scene.pod("mesh", "db", "db-1", "mesh-2").await;
    let other = scene.pod("mesh", "other", "other-1", "mesh-1").await;
    let client = scene.client_of(&ztunnel);

    let request = csr::plain();
    let answer = wait::until("the pod is seen", SEEN, async || {
        client
            .create_certificate(wanted(&here.spiffe_id(), &request))
            .await
            .ok()
    })
    .await;
    // The returned SAN must equal what ztunnel asked for.
    let identity = Identity::of_istio(&answer.cert_chain, &request);
    check_leaf(&identity, &here.spiffe_id(), &request.key_pem);
    let record = scene
        .admin
        .certificate(&identity.leaf().serial())
        .await
        .unwrap();
    assert_eq!(record.origin().authority(), Authority::Impersonation);
    assert_eq!(record.origin().pod_uid, here.uid);
    assert_eq!(record.caller().pod_uid, ztunnel.uid);
    assert_eq!(record.caller().service_account, "ztunnel");

    wait::until("the pod on the other node is seen, too", SEEN, async || {
        scene.client_of(&there).issue(&csr::plain()).await.ok()
    })
    .await;
    let plain = csr::plain();
    for (identity, why) in [
        (
            "spiffe://elsewhere.test/ns/mesh/sa/web",
            "no pod on node mesh-1",
        ),
        (
            "spiffe://example.org/ns/mesh/sa/db",
            "no pod on node mesh-1",
        ),
        (
            "spiffe://example.org/ns/mesh/sa/nobody",
            "no pod on node mesh-1",
        ),
        (
            "spiffe://example.org/citadel/agent/default/mesh-1",
            "no pod on node mesh-1",
        ),
        ("spiffe://example.org/citadel/ca", "no pod on node mesh-1"),
        // Compared whole, never taken apart.
        (
            "spiffe://example.org/ns/mesh/sa/web/",
            "no pod on node mesh-1",
        ),
        (
            "spiffe://EXAMPLE.org/ns/mesh/sa/web",
            "no pod on node mesh-1",
        ),
        (
            "spiffe://example.org/ns/mesh/sa/../sa/web",
            "no pod on node mesh-1",
        ),
        ("web", "no pod on node mesh-1"),
    ] {
        scene
            .refuses(
                DENIED,
                why,
                client.create_certificate(wanted(identity, &plain)),
            )
            .await;
    }

    // A pod of the same account on another node is no reason.
    let unlisted = scene.client_of(&other);
    let call = unlisted.create_certificate(wanted(&here.spiffe_id(), &plain));
    scene
        .refuses(DENIED, "not listed in impersonation.accounts", call)
        .await;
    let call = unlisted.create_certificate(wanted(&other.spiffe_id(), &plain));
    scene
        .refuses(DENIED, "not listed in impersonation.accounts", call)
        .await;

    // ztunnel's own identity, without impersonation.
    let own = certificate_request(&plain.pem(), 0);
    let answer = client.create_certificate(own).await.unwrap();
    check_leaf(
        &Identity::of_istio(&answer.cert_chain, &plain),
        &ztunnel.spiffe_id(),
        &plain.key_pem,
    );
}

#[tokio::test]
async fn an_impersonated_svid_renews_only_through_who_asked_for_it() {
    let scene = scene().await;
    scene.api.create_node("mesh-3").await;
    let ztunnel = scene
        .pod("istio-system", "ztunnel", "ztunnel-3", "mesh-3")
        .await;
    let web = scene.pod("renewing", "web", "web-1", "mesh-3").await;
    let client = scene.client_of(&ztunnel);
    let request = csr::plain();
    let answer = wait::until("the pod is seen", SEEN, async || {
        client
            .create_certificate(wanted(&web.spiffe_id(), &request))
            .await
            .ok()
    })
    .await;
    let stolen = Identity::of_istio(&answer.cert_chain, &request);
    let itself = scene.client().identity(&stolen).build();
    let why = "renews only through the account";
    scene
        .refuses(DENIED, why, itself.issue(&csr::plain()))
        .await;
    let call = itself.create_certificate(certificate_request(&csr::plain().pem(), 0));
    scene.refuses(DENIED, why, call).await;
    client
        .create_certificate(wanted(&web.spiffe_id(), &csr::plain()))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_pod_that_has_ended_is_impersonated_no_more() {
    let scene = scene().await;
    scene.api.create_node("mesh-4").await;
    let ztunnel = scene
        .pod("istio-system", "ztunnel", "ztunnel-4", "mesh-4")
        .await;
    let web = scene.pod("ended", "web", "web-1", "mesh-4").await;
    let client = scene.client_of(&ztunnel);
    let plain = csr::plain();
    let ask = async || {
        client
            .create_certificate(wanted(&web.spiffe_id(), &plain))
            .await
    };
    wait::until("the pod is seen", SEEN, async || ask().await.ok()).await;
    scene.api.set_pod_phase("ended", "web-1", "Failed").await;
    wait::until("its end is seen", SEEN, async || ask().await.err()).await;
    scene.refuses(DENIED, "no pod on node mesh-4", ask()).await;
}

#[tokio::test]
async fn nobody_impersonates_by_default() {
    let scene = Scene::start().await;
    scene.api.create_node("mesh-5").await;
    let ztunnel = scene
        .pod("istio-system", "ztunnel", "ztunnel-5", "mesh-5")
        .await;
    let web = scene.pod("default-off", "web", "web-1", "mesh-5").await;
    let plain = csr::plain();
    let client = scene.client_of(&ztunnel);
    let call = client.create_certificate(wanted(&web.spiffe_id(), &plain));
    scene
        .refuses(DENIED, "not listed in impersonation.accounts", call)
        .await;
}
