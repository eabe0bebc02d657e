//! On a real node: what a user applies, and pods as they are.

use citadel_tests::kubernetes::NodeCluster;

#[tokio::test]
async fn a_pod_runs() {
    let cluster = NodeCluster::shared().await;
    cluster.apply("apiVersion: v1\nkind: Pod\nmetadata: {name: x, namespace: default}\nspec:\n  terminationGracePeriodSeconds: 1\n  containers: [{name: a, image: \"citadel.test/pause:1\", imagePullPolicy: Never}]\n").await;
    cluster.ready_pod("default", "x").await;
    println!(
        "{:?}",
        cluster.kubectl(&["get", "pods", "-A", "-o", "wide"]).await
    );
    println!(
        "{:?}",
        cluster.kubectl(&["exec", "x", "--", "sleep", "0"]).await
    );
}
