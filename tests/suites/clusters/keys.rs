//! The key that verifies a token decides its cluster.

use citadel_tests::client::{Client, Identity};
use citadel_tests::pki::csr;
use citadel_tests::wait;
use std::time::Duration;
use tonic::Code;

use super::{Two, web_id, workload};
use crate::support::{AgentClient, Scene, Workload, certificate_request};

const SEEN: Duration = Duration::from_secs(5);

#[tokio::test]
async fn the_key_that_verifies_decides_the_cluster() {
    let two = Two::shared().await;
    let scene = two.scene("citadel-system", "local", "local").await;
    for (name, api) in [("east", &two.east.api), ("west", &two.west.api)] {
        let web = workload(api, "decides").await;
        let with_header = client(&scene, &web, Some(name));
        for client in [client(&scene, &web, None), with_header] {
            let request = csr::plain();
            let answer = client.issue(&request).await.unwrap();
            let identity = Identity::new(&answer.svid.unwrap(), &request);
            is_of(&scene, &identity, name, &web).await;
            let wanted = certificate_request(&request.pem(), 0);
            let answer = client.create_certificate(wanted).await.unwrap();
            let identity = Identity::of_istio(&answer.cert_chain, &request);
            is_of(&scene, &identity, name, &web).await;

            // A renewal stays in its cluster.
            let renewing = scene.client().identity(&identity).build();
            let answer = renewing.issue(&request).await.unwrap();
            is_of(
                &scene,
                &Identity::new(&answer.svid.unwrap(), &request),
                name,
                &web,
            )
            .await;
        }
    }
}

#[tokio::test]
async fn a_clusterid_that_contradicts_the_key_is_refused() {
    let two = Two::shared().await;
    let scene = two.scene("citadel-system", "local", "local").await;
    let east = workload(&two.east.api, "contradicts").await;
    let west = workload(&two.west.api, "contradicts").await;
    for (web, wrong) in [
        (&east, "west"),
        (&west, "east"),
        (&west, "Kubernetes"),
        (&west, "WEST"),
        (&west, ""),
    ] {
        let client = client(&scene, web, Some(wrong));
        let reason = "clusterid names another cluster than the token's key";
        let request = csr::plain();
        scene
            .refuses(Code::Unauthenticated, reason, client.issue(&request))
            .await;
        let wanted = certificate_request(&request.pem(), 0);
        let call = client.create_certificate(wanted);
        scene.refuses(Code::Unauthenticated, reason, call).await;
    }
}

#[tokio::test]
async fn an_agent_gets_nothing_of_a_node_of_its_name_in_another_cluster() {
    let two = Two::shared().await;
    let scene = two.scene("citadel-system", "local", "local").await;
    let agent = scene.agent("node-agents").await;
    let id = agent.identity.leaf().uris();
    assert_eq!(id, ["spiffe://example.org/citadel/agent/west/node-agents"]);
    let here = scene.pod("agents", "web", "web-1", "node-agents").await;
    let there = workload(&two.east.api, "agents").await;
    assert_eq!(here.node, there.node);
    // The CA's watches show both pods, each in its own cluster.
    client(&scene, &there, None)
        .issue(&csr::plain())
        .await
        .unwrap();
    let svid = wait::until("the pod is seen", SEEN, async || {
        agent.one(AgentClient::pod_item(&here.uid)).await.ok()
    })
    .await;
    assert_eq!(svid.spiffe_id, web_id("west", "agents"));
    let item = AgentClient::pod_item(&there.uid);
    scene
        .refuses_item(Code::PermissionDenied, "is not known on", &agent, item)
        .await;
}

/// A client with the workload's token and, with a name, a `clusterid` header.
fn client(scene: &Scene<'_>, web: &Workload, clusterid: Option<&str>) -> Client {
    let client = scene.client().token(&web.token);
    match clusterid {
        Some(name) => client.header("clusterid", name).build(),
        None => client.build(),
    }
}

/// Panics unless the certificate and its record are this workload's in this cluster.
async fn is_of(scene: &Scene<'_>, identity: &Identity, cluster: &str, web: &Workload) {
    let leaf = identity.leaf();
    assert_eq!(leaf.uris(), [web_id(cluster, &web.namespace)]);
    let record = scene.admin.certificate(&leaf.serial()).await.unwrap();
    assert_eq!(record.caller().cluster, cluster);
    assert_eq!(record.origin().cluster, cluster);
    assert_eq!(record.origin().pod_uid, web.uid);
}
