//! Workloads' own tokens, relayed by the agent of their node.

use std::time::Duration;

use citadel_proto::log::{AuthenticationMethod, Authority};
use citadel_proto::v1::issue_item::Subject;
use citadel_proto::v1::{IssueItem, RelayedToken};
use citadel_tests::client::Identity;
use citadel_tests::kubernetes::{TokenRequest, claims_of};
use citadel_tests::pki::csr;
use citadel_tests::wait;
use tonic::Code;

use crate::support::{AgentClient, Scene, check_leaf};

const DENIED: Code = Code::PermissionDenied;
const UNAUTHENTICATED: Code = Code::Unauthenticated;

#[tokio::test]
async fn a_relayed_token_counts_for_its_own_pod_on_the_agents_node() {
    let scene = Scene::start().await;
    let (here, there) = (scene.agent("relay-1").await, scene.agent("relay-2").await);
    let web = scene.pod("relayed", "web", "web-1", "relay-1").await;
    let neighbour = scene.pod("relayed", "web", "web-2", "relay-1").await;
    let foreign = scene.pod("relayed", "web", "web-3", "relay-2").await;
    scene.seen_by(&here, &neighbour).await;
    scene.seen_by(&there, &foreign).await;

    // With the pod that the agent attested, and without (a peer outside any pod).
    for attested in [web.uid.as_str(), ""] {
        let request = csr::plain();
        let svid = here
            .one(item(&web.token, attested, &request))
            .await
            .unwrap();
        check_leaf(
            &Identity::new(&svid, &request),
            &web.spiffe_id(),
            &request.key_pem,
        );
        let record = scene.admin.certificate(&svid.serial).await.unwrap();
        let origin = record.origin();
        assert_eq!(origin.authority(), Authority::RelayedToken);
        assert_eq!(origin.method(), AuthenticationMethod::Jwks);
        assert_eq!(origin.pod_uid, web.uid);
        assert_eq!(
            record.caller().spiffe_id,
            "spiffe://example.org/citadel/agent/default/relay-1"
        );
        assert_eq!(
            record.caller().token_id,
            "",
            "the agent's evidence is its certificate"
        );
        let signature = web.token.rsplit('.').next().unwrap().as_bytes();
        assert!(
            !record
                .bytes
                .windows(signature.len())
                .any(|part| part == signature)
        );
    }

    let plain = csr::plain();
    let of_another_node = item(&foreign.token, "", &plain);
    scene
        .refuses_item(DENIED, "is of node default/relay-2", &here, of_another_node)
        .await;
    let of_another_pod = item(&web.token, &neighbour.uid, &plain);
    scene
        .refuses_item(DENIED, "the agent attested pod", &here, of_another_pod)
        .await;
}

#[tokio::test]
async fn a_relayed_token_is_checked_like_any_other() {
    let scene = Scene::start().await;
    let agent = scene.agent("relay-3").await;
    let web = scene.pod("checked", "web", "web-1", "relay-3").await;
    scene.seen_by(&agent, &web).await;
    let plain = csr::plain();

    let elsewhere = TokenRequest::for_pod("checked", "web", "web-1").audiences(&["elsewhere"]);
    let elsewhere = scene.api.request_token(&elsewhere).await.unwrap();
    let mut claims = claims_of(&web.token);
    claims["exp"] = 1_700_000_000.into();
    let expired = scene.api.sign_token(&claims);
    let unbound = scene
        .api
        .request_token(&TokenRequest::unbound("checked", "web"))
        .await
        .unwrap();
    for (token, why) in [
        (elsewhere.as_str(), "audience"),
        (&expired, "expired"),
        (&unbound, "bound to no pod"),
        ("no token", "compact"),
        ("", "compact"),
    ] {
        scene
            .refuses_item(UNAUTHENTICATED, why, &agent, item(token, "", &plain))
            .await;
    }

    scene.api.delete_pod("checked", "web-1").await;
    wait::until("the CA has noticed", Duration::from_secs(5), async || {
        agent.one(item(&web.token, "", &plain)).await.err()
    })
    .await;
    scene
        .refuses_item(
            UNAUTHENTICATED,
            "is gone",
            &agent,
            item(&web.token, "", &plain),
        )
        .await;
}

#[tokio::test]
async fn the_agents_own_credential_is_never_the_relayed_one() {
    let scene = Scene::start().await;
    let agent = scene.agent("relay-4").await;
    let web = scene.pod("own", "web", "web-1", "relay-4").await;
    scene.seen_by(&agent, &web).await;
    // In `authorization` it would be the agent's own, and so another caller.
    let confused = scene
        .client()
        .identity(&agent.identity)
        .token(&web.token)
        .build();
    let items = vec![AgentClient::pod_item(&web.uid)];
    scene
        .refuses(UNAUTHENTICATED, "different callers", confused.batch(items))
        .await;
}

fn item(token: &str, attested: &str, request: &csr::Csr) -> IssueItem {
    AgentClient::item_for(
        Subject::RelayedToken(RelayedToken {
            token: token.into(),
            pod_uid: attested.into(),
        }),
        request,
    )
}
