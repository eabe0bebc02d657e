//! Namespaces, accounts, nodes and pods.

use http::Method;
use serde_json::{Map, Value, json};

use super::ApiServer;

/// A Pod object. No kubelet runs it; nothing but its object exists.
#[derive(Clone, Debug)]
pub struct Pod {
    namespace: String,
    name: String,
    account: Option<String>,
    node: Option<String>,
    labels: Map<String, Value>,
    annotations: Map<String, Value>,
    containers: Vec<Value>,
    host_paths: Vec<String>,
}

impl Pod {
    /// A pod of `account`, on no node.
    pub fn new(namespace: &str, name: &str, account: &str) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
            account: Some(account.into()),
            node: None,
            labels: Map::new(),
            annotations: Map::new(),
            containers: Vec::new(),
            host_paths: Vec::new(),
        }
    }

    /// The mirror of a static pod: the annotation that makes it one, and no
    /// account, as `NodeRestriction` has it.
    pub fn mirror(namespace: &str, name: &str, node: &str, config_hash: &str) -> Self {
        let mut pod = Self::new(namespace, name, "");
        pod.account = None;
        pod.on(node)
            .annotation("kubernetes.io/config.mirror", config_hash)
    }

    /// Puts it on a node, as the scheduler would.
    #[must_use]
    pub fn on(mut self, node: &str) -> Self {
        self.node = Some(node.into());
        self
    }

    /// Adds a label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }

    /// Adds an annotation.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(key.into(), value.into());
        self
    }

    /// Adds a container; without any there is one, `main` of `example/web:1`.
    #[must_use]
    pub fn container(mut self, name: &str, image: &str) -> Self {
        self.containers
            .push(json!({ "name": name, "image": image }));
        self
    }

    /// Adds a volume that is a folder of its node.
    #[must_use]
    pub fn host_path(mut self, folder: &std::path::Path) -> Self {
        self.host_paths.push(folder.display().to_string());
        self
    }

    fn object(&self) -> Value {
        let mut containers = self.containers.clone();
        if containers.is_empty() {
            containers.push(json!({ "name": "main", "image": "example/web:1" }));
        }
        let mut spec = json!({ "containers": containers });
        if !self.host_paths.is_empty() {
            let volume = |(at, path): (usize, &String)| json!({ "name": format!("folder-{at}"), "hostPath": { "path": path } });
            spec["volumes"] = self.host_paths.iter().enumerate().map(volume).collect();
        }
        if let Some(account) = &self.account {
            spec["serviceAccountName"] = json!(account);
        }
        if let Some(node) = &self.node {
            spec["nodeName"] = json!(node);
        }
        json!({
            "metadata": { "name": self.name, "labels": self.labels, "annotations": self.annotations },
            "spec": spec,
        })
    }
}

impl ApiServer {
    /// Makes a namespace.
    pub async fn create_namespace(&self, name: &str) {
        self.post(
            "/api/v1/namespaces",
            &json!({ "metadata": { "name": name } }),
        )
        .await;
    }

    /// Makes a namespace unless it is there.
    pub async fn ensure_namespace(&self, name: &str) {
        self.ensure(
            "/api/v1/namespaces",
            &json!({ "metadata": { "name": name } }),
        )
        .await;
    }

    /// Makes a service account unless it is there.
    pub async fn ensure_account(&self, namespace: &str, name: &str) {
        self.ensure(
            &accounts(namespace),
            &json!({ "metadata": { "name": name } }),
        )
        .await;
    }

    /// Makes a service account; its UID.
    pub async fn create_account(&self, namespace: &str, name: &str) -> String {
        uid(&self
            .post(
                &accounts(namespace),
                &json!({ "metadata": { "name": name } }),
            )
            .await)
    }

    /// Deletes a service account.
    pub async fn delete_account(&self, namespace: &str, name: &str) {
        self.delete(&format!("{}/{name}", accounts(namespace)))
            .await;
    }

    /// Makes a Node object; its UID.
    pub async fn create_node(&self, name: &str) -> String {
        uid(&self
            .post("/api/v1/nodes", &json!({ "metadata": { "name": name } }))
            .await)
    }

    /// Deletes a Node object; pods on it stay.
    pub async fn delete_node(&self, name: &str) {
        self.delete(&format!("/api/v1/nodes/{name}")).await;
    }

    /// Makes a Pod object, in phase Pending; its UID.
    pub async fn create_pod(&self, pod: &Pod) -> String {
        uid(&self.post(&pods(&pod.namespace), &pod.object()).await)
    }

    /// Sets a pod's phase, as its kubelet would.
    pub async fn set_pod_phase(&self, namespace: &str, name: &str, phase: &str) {
        let path = format!("{}/{name}/status", pods(namespace));
        let patch = json!({ "status": { "phase": phase } });
        self.request(Method::PATCH, &path, Some(&patch))
            .await
            .unwrap_or_else(|e| panic!("PATCH {path}: {e:?}"));
    }

    /// Deletes a pod at once.
    pub async fn delete_pod(&self, namespace: &str, name: &str) {
        self.delete(&format!("{}/{name}?gracePeriodSeconds=0", pods(namespace)))
            .await;
    }

    /// Begins a graceful deletion. It never ends, since no kubelet confirms
    /// it: the pod keeps its `deletionTimestamp`.
    pub async fn begin_pod_deletion(&self, namespace: &str, name: &str) {
        self.delete(&format!("{}/{name}?gracePeriodSeconds=30", pods(namespace)))
            .await;
    }

    async fn delete(&self, path: &str) {
        self.request(Method::DELETE, path, None)
            .await
            .unwrap_or_else(|e| panic!("DELETE {path}: {e:?}"));
    }
}

fn accounts(namespace: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/serviceaccounts")
}

fn pods(namespace: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/pods")
}

fn uid(object: &Value) -> String {
    object["metadata"]["uid"]
        .as_str()
        .expect("an object has a UID")
        .to_owned()
}
