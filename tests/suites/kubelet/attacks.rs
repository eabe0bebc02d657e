//! What a hostile pod tries on a real node.

use serde_json::json;

use super::deployed::Deployed;
use super::pods::{account, answer_in_log, container, ids, namespace, pod, script};

const SOCKET: &str = "unix:///run/citadel/agent.sock";

#[tokio::test]
async fn a_pod_that_forges_its_cgroup_and_its_mount_table_gets_what_is_its_own() {
    let cluster = Deployed::shared().await.cluster;
    namespace(cluster, "victim").await;
    namespace(cluster, "forger").await;
    let victim = pod("victim", "web-1", &[container("main")]);
    cluster.apply(&victim.to_string()).await;
    let victim = cluster.ready_pod("victim", "web-1").await;
    let uid = victim["metadata"]["uid"].as_str().expect("a UID");
    let id = victim["status"]["containerStatuses"][0]["containerID"].as_str();
    let id = id.expect("an ID").trim_start_matches("containerd://");
    let name = format!("kubepods/besteffort/pod{uid}/{id}");
    // Privileged within its own container; the agent's node is out of its reach still.
    let text = format!(
        "mkdir -p /tmp/{name} && echo 0::/{name} >/tmp/cgroup && \
         mount --bind /tmp/cgroup /proc/1/cgroup && mount --bind /tmp/{name} /sys/fs/cgroup && \
         exec citadel --output json fetch --watch --socket {SOCKET}"
    );
    let mut forger = script("main", &text);
    forger["securityContext"] = json!({ "capabilities": { "add": ["SYS_ADMIN"] } });
    let made = pod("forger", "web-1", &[forger]);
    cluster.apply(&made.to_string()).await;
    let got = answer_in_log(cluster, "forger", "web-1", "main").await;
    assert_eq!(ids(&got), [account("forger")]);
}
