//! Agents' identities serve the agents' RPCs alone, and workloads' never there.

use citadel_proto::v1::HoldersReport;
use citadel_tests::pki::csr;
use serde_json::json;
use tonic::Code;

use crate::support::{AgentClient, Scene, certificate_request, with_metadata};

const DENIED: Code = Code::PermissionDenied;

#[tokio::test]
async fn a_workloads_svid_or_token_opens_no_rpc_of_the_agents() {
    let scene = Scene::start().await;
    let web = scene.workload("no-agent").await;
    let identity = scene.identity_of(&web).await;
    for (client, why) in [
        (
            scene.client().identity(&identity).build(),
            "a workload's SVID does not make an agent",
        ),
        (scene.client_of(&web), "not listed in agents.accounts"),
    ] {
        scene
            .refuses(DENIED, why, client.attest(&csr::plain()))
            .await;
        let items = vec![AgentClient::pod_item(&web.uid)];
        scene
            .refuses(DENIED, "the caller is no agent", client.batch(items))
            .await;
        scene
            .refuses(DENIED, "the caller is no agent", client.entries())
            .await;
        scene
            .refuses(DENIED, "the caller is no agent", client.bundles())
            .await;
        let report = client.report_holders(HoldersReport::default());
        scene
            .refuses(DENIED, "the caller is no agent", report)
            .await;
    }
}

#[tokio::test]
async fn an_agents_token_alone_is_no_agents_svid() {
    let scene = Scene::start().await;
    let agent = scene.agent("role-1").await;
    let by_token = scene.client().token(&agent.pod.token).build();
    let items = vec![AgentClient::pod_item(&agent.pod.uid)];
    scene
        .refuses(DENIED, "the caller is no agent", by_token.batch(items))
        .await;
    // Beside its SVID it is, since both name one caller.
    let both = scene
        .client()
        .identity(&agent.identity)
        .token(&agent.pod.token)
        .build();
    both.batch(vec![AgentClient::pod_item(&agent.pod.uid)])
        .await
        .unwrap();
    let other = scene.agent("role-2").await;
    let mixed = scene
        .client()
        .identity(&agent.identity)
        .token(&other.pod.token)
        .build();
    let items = vec![AgentClient::pod_item(&agent.pod.uid)];
    scene
        .refuses(
            Code::Unauthenticated,
            "different callers",
            mixed.batch(items),
        )
        .await;
}

#[tokio::test]
async fn an_agents_svid_opens_no_rpc_of_the_workloads() {
    let scene = Scene::with(|ca| {
        // Not even where its account may impersonate.
        ca.set(
            "impersonation.accounts",
            json!(["citadel-system/citadel-agent"]),
        )
    })
    .await;
    let agent = scene.agent("role-3").await;
    let why = "for the agent RPCs alone";
    scene
        .refuses(DENIED, why, agent.client.issue(&csr::plain()))
        .await;
    let request = certificate_request(&csr::plain().pem(), 0);
    scene
        .refuses(DENIED, why, agent.client.create_certificate(request))
        .await;
    let wanted = "spiffe://example.org/ns/citadel-system/sa/citadel-agent";
    let request = with_metadata(&csr::plain().pem(), 0, &[("ImpersonatedIdentity", wanted)]);
    scene
        .refuses(DENIED, why, agent.client.create_certificate(request))
        .await;
}

#[tokio::test]
async fn nobody_administers_over_the_network_unless_named() {
    let scene = Scene::with(|ca| {
        ca.set(
            "admin.auditor",
            json!(["spiffe://example.org/ns/auditors/sa/web"]),
        )
    })
    .await;
    let agent = scene.agent("role-4").await;
    let (web, auditor) = (
        scene.workload("commoners").await,
        scene.workload("auditors").await,
    );
    for (who, client) in [
        ("agent", agent.client.clone()),
        (
            "workload",
            scene
                .client()
                .identity(&scene.identity_of(&web).await)
                .build(),
        ),
        // The identity is named, so its certificate counts; not its account's token.
        ("auditor's token", scene.client_of(&auditor)),
    ] {
        let status = scene
            .refuses(DENIED, "neither in admin.auditor", client.server_info())
            .await;
        assert!(status.message().contains("role"), "{who}: {status:?}");
        scene
            .refuses(DENIED, "neither in admin.auditor", client.holders())
            .await;
    }
    let nobody = scene.client().build();
    scene
        .refuses(Code::Unauthenticated, "no credential", nobody.server_info())
        .await;
    let identity = scene.identity_of(&auditor).await;
    let auditor = scene.client().identity(&identity).build();
    auditor.server_info().await.unwrap();
    auditor.holders().await.unwrap();
}

/// A report names no node: it is of the agent that sends it.
#[tokio::test]
async fn a_report_of_holders_is_of_its_agent_s_node_and_replaces_the_last_one() {
    let scene = Scene::with(|ca| {
        ca.set(
            "admin.auditor",
            json!(["spiffe://example.org/ns/listeners/sa/web"]),
        )
    })
    .await;
    let report = |behind| HoldersReport {
        bundle_sha256: "ab".repeat(32),
        behind,
        complete: true,
        ..HoldersReport::default()
    };
    let (one, two) = (scene.agent("report-1").await, scene.agent("report-2").await);
    one.client.report_holders(report(1)).await.unwrap();
    one.client.report_holders(report(2)).await.unwrap();
    two.client.report_holders(report(3)).await.unwrap();
    let long = HoldersReport {
        bundle_sha256: "x".repeat(1000),
        ..report(4)
    };
    let refused = scene
        .refuses(
            Code::InvalidArgument,
            "longer than any is",
            two.client.report_holders(long),
        )
        .await;
    assert!(refused.message().contains("report"), "{refused:?}");
    let web = scene.workload("listeners").await;
    let identity = scene.identity_of(&web).await;
    let listed = scene.client().identity(&identity).build().holders().await;
    let listed = listed.unwrap();
    let mut behind: Vec<_> = listed
        .nodes
        .iter()
        .map(|node| (node.node.as_str(), node.report.as_ref().unwrap().behind))
        .collect();
    behind.sort_unstable();
    assert_eq!(behind, [("report-1", 2), ("report-2", 3)]);
}
