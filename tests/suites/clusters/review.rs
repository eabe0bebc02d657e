//! A token that goes on to `TokenReview` is shown to the API server that `clusterid` names, and
//! to no other.

use citadel_tests::client::Client;
use citadel_tests::pki::csr;
use tonic::Code;

use super::{Two, web_id, workload};
use crate::support::{Scene, Workload};

const UNAUTHENTICATED: Code = Code::Unauthenticated;

#[tokio::test]
async fn a_token_is_shown_to_the_named_cluster_only() {
    let two = Two::shared().await;
    let _turn = two.counting().await;
    let home = "citadel-review";
    let scene = two.scene(home, "token_review", "token_review").await;
    let east = workload(&two.east.api, "reviewed").await;
    let west = workload(&two.west.api, "reviewed").await;
    let seen = async || (two.east.reviews(home).await, two.west.reviews(home).await);

    // By nobody, where it is not said by whom.
    for (clusterid, reason) in [
        (None, "no clusterid says which cluster may review it"),
        (Some("north"), "there is no cluster north"),
        (Some(""), "there is no cluster"),
        (Some("East"), "there is no cluster East"),
    ] {
        let client = client(&scene, &west, clusterid);
        scene
            .refuses(UNAUTHENTICATED, reason, client.issue(&csr::plain()))
            .await;
        assert_eq!(seen().await, (0, 0), "{clusterid:?}");
    }

    served(&scene, &west, Some("west"), "west").await;
    assert_eq!(seen().await, (0, 1));
    served(&scene, &east, Some("east"), "east").await;
    assert_eq!(seen().await, (1, 1));

    // The wrong one does not know it, and its word is final: the other is not asked. What that
    // one said of the same token before counts for itself alone.
    let wrong = client(&scene, &west, Some("east"));
    scene
        .refuses(UNAUTHENTICATED, "TokenReview", wrong.issue(&csr::plain()))
        .await;
    assert_eq!(seen().await, (2, 1));
}

/// The east's tokens are checked here, the west's by the west. They name the same issuer.
#[tokio::test]
async fn beside_a_cluster_with_local_validation() {
    let two = Two::shared().await;
    let _turn = two.counting().await;
    let home = "citadel-mixed";
    let scene = two.scene(home, "local", "token_review").await;
    let east = workload(&two.east.api, "mixed").await;
    let west = workload(&two.west.api, "mixed").await;
    let seen = async || (two.east.reviews(home).await, two.west.reviews(home).await);

    served(&scene, &west, Some("west"), "west").await;
    assert_eq!(seen().await, (0, 1));
    served(&scene, &east, None, "east").await;
    served(&scene, &east, Some("east"), "east").await;
    // The key tells whose it is; the west need not be asked, and is not.
    let wrong = client(&scene, &east, Some("west"));
    let reason = "clusterid names another cluster than the token's key";
    scene
        .refuses(UNAUTHENTICATED, reason, wrong.issue(&csr::plain()))
        .await;
    // A key that no cluster here has is final, or not to be told for the moment: with the
    // wrong name and without one.
    for clusterid in [None, Some("east"), Some("north")] {
        let status = client(&scene, &west, clusterid)
            .issue(&csr::plain())
            .await
            .expect_err("nobody's key");
        assert!(
            matches!(status.code(), Code::Unauthenticated | Code::Unavailable),
            "{clusterid:?}: {status:?}"
        );
    }
    assert_eq!(seen().await, (0, 1));
}

/// Panics unless the workload gets its identity of this cluster.
async fn served(scene: &Scene<'_>, web: &Workload, clusterid: Option<&str>, cluster: &str) {
    let answer = client(scene, web, clusterid).issue(&csr::plain()).await;
    let svid = answer.unwrap().svid.unwrap();
    assert_eq!(svid.spiffe_id, web_id(cluster, &web.namespace));
    let record = scene.admin.certificate(&svid.serial).await.unwrap();
    assert_eq!(record.origin().cluster, cluster);
    assert_eq!(record.origin().pod_uid, web.uid);
}

fn client(scene: &Scene<'_>, web: &Workload, clusterid: Option<&str>) -> Client {
    let client = scene.client().token(&web.token);
    match clusterid {
        Some(name) => client.header("clusterid", name).build(),
        None => client.build(),
    }
}
