//! Pods that mount the agent's socket, and what programs in them get.

use std::collections::BTreeMap;

use citadel_tests::kubernetes::{NodeCluster, POD};
use citadel_tests::wait;
use serde_json::{Value, json};

use super::deployed::WORKLOAD;

/// The one change that a pod needs.
pub(crate) fn socket_mount() -> Value {
    json!([{ "name": "citadel", "mountPath": "/run/citadel", "readOnly": true }])
}

/// A container that does nothing, with the socket.
pub(crate) fn container(name: &str) -> Value {
    json!({
        "name": name,
        "image": WORKLOAD,
        "imagePullPolicy": "Never",
        "volumeMounts": socket_mount(),
    })
}

/// One that runs this script.
pub(crate) fn script(name: &str, text: &str) -> Value {
    let mut made = container(name);
    made["command"] = json!(["sh", "-c", text]);
    made
}

/// A pod of account `web` with the socket's folder.
pub(crate) fn pod(namespace: &str, name: &str, containers: &[Value]) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "namespace": namespace, "name": name },
        "spec": {
            "serviceAccountName": "web",
            "terminationGracePeriodSeconds": 1,
            "containers": containers,
            "volumes": [{ "name": "citadel", "hostPath": { "path": "/run/citadel", "type": "Directory" } }],
        },
    })
}

/// Makes a namespace with an account `web`.
pub(crate) async fn namespace(cluster: &NodeCluster, name: &str) {
    cluster.api.ensure_namespace(name).await;
    cluster.api.ensure_account(name, "web").await;
}

/// The identity of the account `web`.
pub(crate) fn account(namespace: &str) -> String {
    format!("spiffe://example.org/ns/{namespace}/sa/web")
}

/// What `citadel fetch`, started in a container by `kubectl exec`, got: serials by SPIFFE ID.
pub(crate) async fn fetched(
    cluster: &NodeCluster,
    namespace: &str,
    pod: &str,
    container: &str,
) -> Result<BTreeMap<String, String>, String> {
    let args = [
        "exec",
        "-n",
        namespace,
        pod,
        "-c",
        container,
        "--",
        "citadel",
        "--output",
        "json",
        "fetch",
        "--timeout",
        "20s",
        "--socket",
        "unix:///run/citadel/agent.sock",
    ];
    let text = cluster.kubectl(&args).await?;
    Ok(serials(&text))
}

/// Serials by SPIFFE ID in what `citadel fetch` printed.
pub(crate) fn serials(text: &str) -> BTreeMap<String, String> {
    let answer: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{text}: {e}"));
    let svids = answer["svids"].as_array().expect("SVIDs");
    let text = |svid: &Value, key: &str| svid[key].as_str().expect("a text").to_owned();
    svids
        .iter()
        .map(|svid| (text(svid, "spiffe_id"), text(svid, "serial")))
        .collect()
}

/// Waits for a line of a container's log that begins with `{`, as `citadel fetch` prints it.
pub(crate) async fn answer_in_log(
    cluster: &NodeCluster,
    namespace: &str,
    pod: &str,
    container: &str,
) -> BTreeMap<String, String> {
    let line = wait::until(
        &format!("{container} of {pod} has its SVID"),
        POD,
        async || {
            let log = cluster.pod_log(namespace, pod, container).await;
            let line = log.lines().find(|line| line.starts_with('{'));
            line.map(str::to_owned)
        },
    )
    .await;
    serials(&line)
}

/// The IDs alone.
pub(crate) fn ids(fetched: &BTreeMap<String, String>) -> Vec<&str> {
    fetched.keys().map(String::as_str).collect()
}
