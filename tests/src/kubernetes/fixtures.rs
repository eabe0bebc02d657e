//! What most tests need: a workload, and a node with an agent on it.

use super::{ApiServer, Pod};

/// Where the agents' accounts are, by the CA's defaults.
const AGENT_NAMESPACE: &str = "citadel-system";
const AGENT_ACCOUNT: &str = "citadel-agent";

/// A pod of the node agent, as its `DaemonSet` would make it.
#[derive(Clone, Debug)]
pub struct AgentPod {
    /// The pod's name, in namespace `citadel-system`.
    pub name: String,
    /// The pod's UID.
    pub uid: String,
    /// The node's UID.
    pub node_uid: String,
    /// Its token, for audience `citadel`.
    pub token: String,
}

impl ApiServer {
    /// Makes the Node object, the agents' account unless it is there, and an
    /// agent's pod on that node.
    pub async fn create_agent(&self, node: &str) -> AgentPod {
        let node_uid = self.create_node(node).await;
        self.ensure_namespace(AGENT_NAMESPACE).await;
        self.ensure_account(AGENT_NAMESPACE, AGENT_ACCOUNT).await;
        let name = format!("citadel-agent-{node}");
        let uid = self
            .create_pod(&Pod::new(AGENT_NAMESPACE, &name, AGENT_ACCOUNT).on(node))
            .await;
        let token = self.token(AGENT_NAMESPACE, AGENT_ACCOUNT, &name).await;
        AgentPod {
            name,
            uid,
            node_uid,
            token,
        }
    }

    /// Makes a pod of `account` on `node`, with the namespace and the account
    /// unless they are there; the pod's UID.
    pub async fn create_workload(
        &self,
        namespace: &str,
        account: &str,
        pod: &str,
        node: &str,
    ) -> String {
        self.ensure_namespace(namespace).await;
        self.ensure_account(namespace, account).await;
        self.create_pod(&Pod::new(namespace, pod, account).on(node))
            .await
    }
}
