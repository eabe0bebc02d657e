//! Who is the agent of a node.

use std::time::Duration;

use citadel_proto::log::{AuthenticationMethod, CertificateUse};
use citadel_tests::client::Identity;
use citadel_tests::kubernetes::{Pod, TokenRequest, claims_of};
use citadel_tests::pki::csr;
use citadel_tests::wait;
use tonic::Code;

use crate::support::{AgentClient, Scene, check_leaf};

const DENIED: Code = Code::PermissionDenied;
const SEEN: Duration = Duration::from_secs(5);

#[tokio::test]
async fn an_agent_gets_the_identity_of_its_node_and_renews_it() {
    let scene = Scene::start().await;
    let agent = scene.agent("attest-1").await;
    let id = "spiffe://example.org/citadel/agent/default/attest-1";
    check_leaf(&agent.identity, id, &agent.identity.key_pem);
    let first = scene
        .admin
        .certificate(&agent.identity.leaf().serial())
        .await
        .unwrap();
    assert_eq!(first.issued.r#use(), CertificateUse::Agent);
    let origin = first.origin();
    assert_eq!(
        (&origin.pod_uid, &origin.node, &origin.node_uid),
        (&agent.pod.uid, &agent.node, &agent.pod.node_uid)
    );

    let request = csr::plain();
    let renewed = agent.client.attest(&request).await.unwrap();
    let identity = Identity::new(&renewed.svid.unwrap(), &request);
    check_leaf(&identity, id, &request.key_pem);
    let second = scene
        .admin
        .certificate(&identity.leaf().serial())
        .await
        .unwrap();
    assert_eq!(
        second.caller().method(),
        AuthenticationMethod::ClientCertificate
    );
    assert_eq!(second.origin(), origin);
    assert_eq!(renewed.bundles[0].trust_domain, "example.org");
}

#[tokio::test]
async fn an_ordinary_pod_is_no_agent() {
    let scene = Scene::start().await;
    let web = scene.workload("ordinary").await;
    // Its token has a node claim as well.
    assert_eq!(
        claims_of(&web.token)["kubernetes.io"]["node"]["name"],
        web.node.as_str()
    );
    let client = scene.client_of(&web);
    scene
        .refuses(
            DENIED,
            "not listed in agents.accounts",
            client.attest(&csr::plain()),
        )
        .await;
    // Nor does the right name in another namespace help.
    let lookalike = scene
        .pod("ordinary", "citadel-agent", "agent-1", &web.node)
        .await;
    let client = scene.client_of(&lookalike);
    scene
        .refuses(
            DENIED,
            "not listed in agents.accounts",
            client.attest(&csr::plain()),
        )
        .await;
    let nobody = scene.client().build();
    let plain = csr::plain();
    let call = nobody.attest(&plain);
    scene
        .refuses(Code::Unauthenticated, "no credential", call)
        .await;
}

#[tokio::test]
async fn an_agents_token_has_to_be_bound_to_a_pod_on_a_node() {
    let scene = Scene::with(|ca| {
        ca.set(
            "allow_unbound",
            serde_json::json!(["citadel-system/citadel-agent"]),
        )
    })
    .await;
    let agent = scene.agent("attest-2").await;
    let unbound = TokenRequest::unbound("citadel-system", "citadel-agent");
    let token = scene.api.request_token(&unbound).await.unwrap();
    let client = scene.client().token(&token).build();
    scene
        .refuses(
            DENIED,
            "must be bound to its pod",
            client.attest(&csr::plain()),
        )
        .await;

    // A pod of the agents' account that no scheduler has put anywhere.
    scene
        .api
        .create_pod(&Pod::new("citadel-system", "nowhere-2", "citadel-agent"))
        .await;
    let token = scene
        .api
        .token("citadel-system", "citadel-agent", "nowhere-2")
        .await;
    let client = scene.client().token(&token).build();
    scene
        .refuses(DENIED, "must name its node", client.attest(&csr::plain()))
        .await;

    // A token that names another node than its pod's.
    let mut claims = claims_of(&agent.pod.token);
    claims["kubernetes.io"]["node"]["name"] = "attest-elsewhere".into();
    let client = scene.client().token(&scene.api.sign_token(&claims)).build();
    let plain = csr::plain();
    let call = client.attest(&plain);
    scene
        .refuses(Code::Unauthenticated, "runs on node attest-2", call)
        .await;
    // A token that names another Node object of that name.
    let mut claims = claims_of(&agent.pod.token);
    claims["kubernetes.io"]["node"]["uid"] = "00000000-0000-4000-8000-000000000000".into();
    let client = scene.client().token(&scene.api.sign_token(&claims)).build();
    scene
        .refuses(
            DENIED,
            "deleted and made again",
            client.attest(&csr::plain()),
        )
        .await;
}

#[tokio::test]
async fn an_agents_svid_dies_with_its_node_object() {
    let scene = Scene::start().await;
    let agent = scene.agent("attest-3").await;
    let web = scene
        .pod("dies-with-node", "web", "web-1", "attest-3")
        .await;
    scene.seen_by(&agent, &web).await;
    let mut bundles = agent.client.bundles().await.unwrap();
    bundles
        .message()
        .await
        .unwrap()
        .expect("the bundles at once");

    scene.api.delete_node("attest-3").await;
    scene.api.create_node("attest-3").await;
    wait::until("the CA has noticed", SEEN, async || {
        agent.client.attest(&csr::plain()).await.err()
    })
    .await;
    let gone = "node attest-3 with UID";
    let unauthenticated = Code::Unauthenticated;
    scene
        .refuses(unauthenticated, gone, agent.client.attest(&csr::plain()))
        .await;
    let batch = agent.client.batch(vec![AgentClient::pod_item(&web.uid)]);
    scene.refuses(unauthenticated, gone, batch).await;
    scene
        .refuses(unauthenticated, gone, agent.client.entries())
        .await;
    scene
        .refuses(unauthenticated, gone, agent.client.bundles())
        .await;
    // Its old token names the old Node object.
    let by_token = scene.client().token(&agent.pod.token).build();
    scene
        .refuses(
            DENIED,
            "deleted and made again",
            by_token.attest(&csr::plain()),
        )
        .await;
    // A stream that was open is looked at again every 10 s.
    let ended = tokio::time::timeout(Duration::from_secs(15), bundles.message()).await;
    assert_eq!(
        ended.expect("the stream ends").unwrap_err().code(),
        unauthenticated
    );
}

#[tokio::test]
async fn an_agents_svid_dies_with_its_pod() {
    let scene = Scene::start().await;
    let agent = scene.agent("attest-4").await;
    scene
        .api
        .delete_pod("citadel-system", &agent.pod.name)
        .await;
    wait::until("the CA has noticed", SEEN, async || {
        agent.client.attest(&csr::plain()).await.err()
    })
    .await;
    let plain = csr::plain();
    let call = agent.client.attest(&plain);
    scene.refuses(Code::Unauthenticated, "is gone", call).await;
}
