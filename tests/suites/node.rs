//! A node with an agent on it and pods in real cgroups, and the CA behind it.

use citadel_tests::cgroup::{Cgroup, Version};
use citadel_tests::citadel::{Agent, AgentBuilder, Ca, CaBuilder};
use citadel_tests::kubernetes::ApiServer;
use serde_json::Value;

/// A CA with one node's agent. The node is called as the namespace of its pods.
pub(crate) struct Node {
    pub(crate) ca: Ca,
    pub(crate) agent: Agent,
}

/// A pod object whose processes the test starts itself.
pub(crate) struct NodePod {
    pub(crate) namespace: String,
    pub(crate) account: String,
    pub(crate) uid: String,
}

impl NodePod {
    /// Makes pods `ACCOUNT-1` of these accounts, on the node `NAMESPACE`.
    pub(crate) async fn create(namespace: &str, accounts: &[&str]) -> Vec<Self> {
        Self::create_on(ApiServer::shared().await, namespace, accounts).await
    }

    /// The same on another API server.
    pub(crate) async fn create_on(
        api: &ApiServer,
        namespace: &str,
        accounts: &[&str],
    ) -> Vec<Self> {
        let mut pods = Vec::new();
        for account in accounts {
            let uid = api
                .create_workload(namespace, account, &format!("{account}-1"), namespace)
                .await;
            let (namespace, account) = (namespace.into(), (*account).into());
            pods.push(Self {
                namespace,
                account,
                uid,
            });
        }
        pods
    }

    /// The identity of its account.
    pub(crate) fn spiffe_id(&self) -> String {
        format!(
            "spiffe://example.org/ns/{}/sa/{}",
            self.namespace, self.account
        )
    }

    /// A container's cgroup of this pod.
    pub(crate) fn cgroup(&self, version: Version) -> Cgroup {
        Cgroup::of_pod(version, &self.uid)
    }

    /// A token for audience `citadel`.
    pub(crate) async fn token(&self) -> String {
        let api = ApiServer::shared().await;
        api.token(
            &self.namespace,
            &self.account,
            &format!("{}-1", self.account),
        )
        .await
    }

    /// Deletes the pod object, at once.
    pub(crate) async fn delete(&self) {
        let api = ApiServer::shared().await;
        api.delete_pod(&self.namespace, &format!("{}-1", self.account))
            .await;
    }
}

impl Node {
    /// Starts both, on the suite's API server. The pods have to be there before: an
    /// agent takes the CA's word for a pod that it does not know.
    pub(crate) async fn start(name: &str, ttl: &str) -> Self {
        Self::with(name, |ca| ca, |agent| agent.set("svid_ttl", ttl)).await
    }

    /// The same with other settings.
    pub(crate) async fn with(
        name: &str,
        ca: impl FnOnce(CaBuilder) -> CaBuilder,
        agent: impl FnOnce(AgentBuilder) -> AgentBuilder,
    ) -> Self {
        Self::on(ApiServer::shared().await, name, ca, agent).await
    }

    /// The same on another API server.
    pub(crate) async fn on(
        api: &ApiServer,
        name: &str,
        ca: impl FnOnce(CaBuilder) -> CaBuilder,
        agent: impl FnOnce(AgentBuilder) -> AgentBuilder,
    ) -> Self {
        let pod = api.create_agent(name).await;
        let ca = ca(CaBuilder::new(api).await).start().await;
        let agent = agent(AgentBuilder::new(&ca, &pod.token)).start().await;
        Self { ca, agent }
    }

    /// The refusals in the agent's log, oldest first.
    pub(crate) fn refusals(&self) -> Vec<Value> {
        let log = self.agent.log();
        let lines = log
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines
            .filter(|line| line["target"] == "citadel::refused")
            .collect()
    }
}

/// An entry for every process of this user on this node.
pub(crate) fn user_entry(id: &str, node: &str, uid: u32) -> Value {
    serde_json::json!({
        "id": id,
        "nodes": [format!("default/{node}")],
        "selectors": [format!("unix:uid:{uid}")],
    })
}
