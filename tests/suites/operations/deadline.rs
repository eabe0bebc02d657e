//! A request that can't be served in time.

use std::time::Duration;

use citadel_tests::kubernetes::ApiServer;
use citadel_tests::pki::csr;
use citadel_tests::wait;
use serde_json::json;
use tonic::Code;

use crate::support::{Scene, certificate_request, shows_refusal};

const RECOVERY: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_request_ends_with_its_deadline_whoever_keeps_it_waiting() {
    let api = ApiServer::start().await;
    let dir = citadel_tests::dir::TestDir::new("ca");
    let access = api.ca_access("citadel-system", &dir).await;
    // The API server may take far longer than a request.
    let cluster = json!([{
        "name": "default", "kubeconfig": access.kubeconfig,
        "mode": "token_review", "api_deadline": "10s",
    }]);
    let limits = json!({ "in_flight": 1, "request_deadline": "1s" });
    let scene = Scene::on(&api, |ca| ca.set("clusters", cluster).set("limits", limits)).await;
    let web = scene.workload("deadline").await;
    let client = scene.client_of(&web);
    let (size, lines) = (scene.admin.size().await, scene.ca.refusals().len());

    api.pause().await;
    // One has the only turn, the others wait for it: the deadline is everybody's.
    let request = csr::plain();
    let by_istio = client.create_certificate(certificate_request(&request.pem(), 0));
    let (one, other, third) =
        tokio::join!(client.issue(&request), client.issue(&request), by_istio);
    for status in [
        one.unwrap_err(),
        other.unwrap_err(),
        third.map(|_| ()).unwrap_err(),
    ] {
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        assert!(
            status.message().contains("not served in time"),
            "{status:?}"
        );
        let again = status.metadata().get("grpc-retry-pushback-ms");
        assert!(again.is_some(), "{status:?}");
    }
    let refusals = scene.ca.refusals();
    let new = &refusals[lines..];
    assert_eq!(new.len(), 3, "{new:#?}");
    for line in new {
        shows_refusal(line, "Unavailable", "the request deadline of 1s");
    }
    assert_eq!(scene.admin.size().await, size);

    // The turn is free again.
    api.resume().await;
    wait::until("it recovers", RECOVERY, async || {
        client.issue(&csr::plain()).await.ok()
    })
    .await;
}
