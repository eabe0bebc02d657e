//! An agent that reads the pods of its node from the kubelet.

use citadel_tests::kubernetes::NodeCluster;
use serde_json::{Value, json};

use super::deployed::{Deployed, SYSTEM};
use super::pods::{account, container, fetched, ids, namespace, pod};

/// A second agent beside the first, on a socket of its own.
async fn second_agent(cluster: &NodeCluster) {
    let of_account =
        json!([{ "kind": "ServiceAccount", "name": "reads-kubelet", "namespace": SYSTEM }]);
    let rules = json!([{ "apiGroups": [""], "resources": ["nodes/pods"], "verbs": ["get"] }]);
    let config = "trust_domain: example.org\nca: {bundle_file: /etc/citadel-bundle/root-cert.pem}\n\
                  pods: {source: kubelet}\nlog: {format: json}\n";
    let path = format!("/apis/apps/v1/namespaces/{SYSTEM}/daemonsets/citadel-agent");
    let shipped = cluster.get(&path).await.expect("the agent");
    let mut set = json!({
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": { "namespace": SYSTEM, "name": "reads-kubelet" },
        "spec": { "selector": { "matchLabels": { "app": "reads-kubelet" } }, "template": shipped["spec"]["template"] },
    });
    let template = &mut set["spec"]["template"];
    template["metadata"] = json!({ "labels": { "app": "reads-kubelet" } });
    template["spec"]["serviceAccountName"] = json!("reads-kubelet");
    template["spec"]["serviceAccount"] = Value::Null;
    for volume in template["spec"]["volumes"].as_array_mut().expect("volumes") {
        match volume["name"].as_str() {
            Some("config") => volume["configMap"]["name"] = json!("reads-kubelet"),
            Some("socket") => volume["hostPath"]["path"] = json!("/run/citadel-2"),
            // Else it would ask the first one to hand over.
            Some("admin") => volume["hostPath"]["path"] = json!("/run/citadel-admin-2"),
            _ => {}
        }
    }
    let role = |kind: &str| {
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": { "name": "reads-kubelet" },
        })
    };
    let (mut rights, mut binding) = (role("ClusterRole"), role("ClusterRoleBinding"));
    rights["rules"] = rules;
    binding["subjects"] = of_account;
    binding["roleRef"] = json!({ "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "reads-kubelet" });
    for object in [
        json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "namespace": SYSTEM, "name": "reads-kubelet" } }),
        json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "namespace": SYSTEM, "name": "reads-kubelet" },
                "data": { "agent.yaml": config } }),
        rights,
        binding,
        set,
    ] {
        cluster.apply(&object.to_string()).await;
    }
    cluster.ready_app(SYSTEM, "reads-kubelet").await;
}

#[tokio::test]
async fn an_agent_that_reads_its_kubelet_tells_containers_apart_with_no_right_but_that() {
    let cluster = Deployed::shared().await.cluster;
    second_agent(cluster).await;
    namespace(cluster, "duo-2").await;
    let mut made = pod("duo-2", "web-1", &[container("app"), container("other")]);
    made["spec"]["volumes"][0]["hostPath"]["path"] = json!("/run/citadel-2");
    cluster.apply(&made.to_string()).await;
    cluster.ready_pod("duo-2", "web-1").await;
    let own = account("duo-2");
    let app = fetched(cluster, "duo-2", "web-1", "app").await.unwrap();
    assert_eq!(ids(&app), ["spiffe://example.org/duo-2/app", &own]);
    let other = fetched(cluster, "duo-2", "web-1", "other").await.unwrap();
    assert_eq!(ids(&other), [own.as_str()]);
    let agent = cluster.ready_app(SYSTEM, "reads-kubelet").await;
    let name = agent["metadata"]["name"].as_str().expect("a name");
    let log = cluster.pod_log(SYSTEM, name, "agent").await;
    assert!(!log.contains("can't be read"), "{log}");
    let account = format!("system:serviceaccount:{SYSTEM}:reads-kubelet");
    let may = [
        "auth",
        "can-i",
        "list",
        "pods",
        "--as",
        &account,
        "--all-namespaces",
    ];
    assert!(cluster.kubectl(&may).await.is_err());
}
