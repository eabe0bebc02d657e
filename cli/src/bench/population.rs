//! The cluster that the bench pretends to be: nodes, accounts and live pods, with the
//! tokens that an API server would mint for them.

use serde_json::{Value, json};

use crate::uid::uid;

/// As dense as a node may be by default (the kubelet's 110), rounded.
const PODS_PER_NODE: usize = 100;
/// Accounts are shared by the replicas of a workload.
const PODS_PER_ACCOUNT: usize = 10;
const ACCOUNTS_PER_NAMESPACE: usize = 50;

/// Where the agents live, and as whom: the CA's default.
const AGENT_NAMESPACE: &str = "citadel-system";
const AGENT_ACCOUNT: &str = "citadel-agent";

/// What an API server calls itself in tokens.
pub(crate) const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
/// The audience of every token.
const AUDIENCE: &str = "citadel";
/// Tokens live longer than any bench; the kubelet's live an hour.
const TOKEN_LIFETIME: i64 = 24 * 3_600;

/// A node.
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) uid: String,
}

/// A service account.
pub(crate) struct Account {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
}

/// A running pod; `node` and `account` are places in the population's lists.
pub(crate) struct Pod {
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) node: usize,
    pub(crate) account: usize,
}

/// Everything that lives in the cluster.
pub(crate) struct Population {
    pub(crate) nodes: Vec<Node>,
    pub(crate) accounts: Vec<Account>,
    /// First the workloads' pods, in order of their nodes; then an agent's on each node.
    pub(crate) pods: Vec<Pod>,
    workloads: usize,
    per_node: usize,
}

impl Population {
    /// A cluster with this many workload pods, on nodes as dense as they usually are.
    pub(crate) fn new(workloads: usize) -> Self {
        Self::dense(workloads, PODS_PER_NODE)
    }

    /// The same with `per_node` pods on each node.
    pub(crate) fn dense(workloads: usize, per_node: usize) -> Self {
        let nodes: Vec<Node> = (0..workloads.div_ceil(per_node))
            .map(|n| Node {
                name: format!("node-{n:04}"),
                uid: uid(),
            })
            .collect();
        let mut accounts: Vec<Account> = (0..workloads.div_ceil(PODS_PER_ACCOUNT))
            .map(|n| Account {
                namespace: format!("team-{:03}", n / ACCOUNTS_PER_NAMESPACE),
                name: format!("app-{:02}", n % ACCOUNTS_PER_NAMESPACE),
                uid: uid(),
            })
            .collect();
        let mut pods: Vec<Pod> = (0..workloads)
            .map(|n| {
                // Replicas are spread over nodes, not packed onto one.
                let account = n % accounts.len();
                Pod {
                    name: format!("{}-{}", accounts[account].name, &uid()[..8]),
                    uid: uid(),
                    node: n / per_node,
                    account,
                }
            })
            .collect();
        let agent = accounts.len();
        accounts.push(Account {
            namespace: AGENT_NAMESPACE.into(),
            name: AGENT_ACCOUNT.into(),
            uid: uid(),
        });
        pods.extend((0..nodes.len()).map(|node| Pod {
            name: format!("{AGENT_ACCOUNT}-{}", &uid()[..5]),
            uid: uid(),
            node,
            account: agent,
        }));
        Self {
            nodes,
            accounts,
            pods,
            workloads,
            per_node,
        }
    }

    /// The workloads' pods.
    pub(crate) fn workloads(&self) -> &[Pod] {
        &self.pods[..self.workloads]
    }

    /// The workloads' pods of one node.
    pub(crate) fn on_node(&self, node: usize) -> &[Pod] {
        let first = node * self.per_node;
        &self.pods[first..(first + self.per_node).min(self.workloads)]
    }

    /// The agent's pod of one node.
    pub(crate) fn agent(&self, node: usize) -> &Pod {
        &self.pods[self.workloads + node]
    }

    /// A pod of a workload that is about to be bound to `node`.
    pub(crate) fn another(&self, node: usize, account: usize) -> Pod {
        Pod {
            name: format!("{}-{}", self.accounts[account].name, &uid()[..8]),
            uid: uid(),
            node,
            account,
        }
    }

    /// The claims of a token that is bound to `pod`, as the API server makes them.
    pub(crate) fn claims(&self, pod: &Pod, now: i64) -> Value {
        let account = &self.accounts[pod.account];
        let node = &self.nodes[pod.node];
        json!({
            "aud": [AUDIENCE],
            "exp": now + TOKEN_LIFETIME,
            "iat": now,
            "iss": ISSUER,
            "jti": uid(),
            "kubernetes.io": {
                "namespace": account.namespace,
                "node": { "name": node.name, "uid": node.uid },
                "pod": { "name": pod.name, "uid": pod.uid },
                "serviceaccount": { "name": account.name, "uid": account.uid },
            },
            "nbf": now,
            "sub": format!("system:serviceaccount:{}:{}", account.namespace, account.name),
        })
    }

    /// A pod as the API server shows it: what a CA reads, and the kind of things beside
    /// it that it has to skip.
    pub(crate) fn pod_object(&self, pod: &Pod, version: u64) -> Value {
        let account = &self.accounts[pod.account];
        let app = &account.name;
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": pod.name, "namespace": account.namespace, "uid": pod.uid,
                "resourceVersion": version.to_string(),
                "generateName": format!("{app}-"),
                "creationTimestamp": "2026-01-01T00:00:00Z",
                "labels": { "app": app, "pod-template-hash": "5d8f7c9b64", "tier": "backend" },
                "annotations": { "prometheus.io/scrape": "true" },
                "ownerReferences": [{
                    "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("{app}-5d8f7c9b64"),
                    "uid": account.uid, "controller": true, "blockOwnerDeletion": true,
                }],
            },
            "spec": {
                "serviceAccountName": app, "nodeName": self.nodes[pod.node].name,
                "restartPolicy": "Always", "dnsPolicy": "ClusterFirst",
                "containers": [
                    { "name": "main", "image": format!("registry.example/{app}:1.4.2"),
                      "ports": [{ "containerPort": 8080, "protocol": "TCP" }],
                      "resources": { "requests": { "cpu": "100m", "memory": "128Mi" } } },
                    { "name": "proxy", "image": "registry.example/envoy:1.40", "resources": {} },
                ],
                "volumes": [{ "name": "token", "projected": { "sources": [] } }],
            },
            "status": {
                "phase": "Running", "podIP": "10.0.0.1", "startTime": "2026-01-01T00:00:00Z",
                "conditions": [{ "type": "Ready", "status": "True" }],
            },
        })
    }

    pub(crate) fn account_object(account: &Account, version: u64) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {
                "name": account.name, "namespace": account.namespace, "uid": account.uid,
                "resourceVersion": version.to_string(),
                "creationTimestamp": "2026-01-01T00:00:00Z",
            },
        })
    }

    pub(crate) fn node_object(node: &Node, version: u64) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": node.name, "uid": node.uid, "resourceVersion": version.to_string(),
                "creationTimestamp": "2026-01-01T00:00:00Z",
                "labels": { "kubernetes.io/hostname": node.name },
            },
            "spec": {},
            "status": { "capacity": { "pods": "110" } },
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn each_node_has_its_pods_and_one_agent() {
        let population = Population::new(250);
        assert_eq!(population.nodes.len(), 3);
        assert_eq!(population.workloads().len(), 250);
        let counts: Vec<usize> = (0..3).map(|node| population.on_node(node).len()).collect();
        assert_eq!(counts, [100, 100, 50]);
        for node in 0..3 {
            assert!(population.on_node(node).iter().all(|pod| pod.node == node));
            let agent = population.agent(node);
            assert_eq!(agent.node, node);
            assert_eq!(population.accounts[agent.account].name, AGENT_ACCOUNT);
        }
        let uids: HashSet<_> = population.pods.iter().map(|pod| &pod.uid).collect();
        assert_eq!(uids.len(), 253);
    }

    #[test]
    fn claims_name_the_pod_its_account_and_its_node() {
        let population = Population::new(100);
        let pod = &population.workloads()[7];
        let claims = population.claims(pod, 1_000);
        let bound = &claims["kubernetes.io"];
        assert_eq!(bound["pod"]["uid"], pod.uid);
        assert_eq!(bound["node"]["uid"], population.nodes[0].uid);
        let account = &population.accounts[pod.account];
        assert_eq!(bound["serviceaccount"]["uid"], account.uid);
        let subject = format!(
            "system:serviceaccount:{}:{}",
            account.namespace, account.name
        );
        assert_eq!(claims["sub"], subject);
        assert_ne!(claims["jti"], population.claims(pod, 1_000)["jti"]);
    }
}
