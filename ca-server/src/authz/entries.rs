//! Registration entries: what a node may hand out beyond an account's own identity.

use std::time::Duration;

use citadel_identity::{SpiffeId, crypto, selector::Selector};
use citadel_proto::v1;

use crate::caller::EXTERNAL_CLUSTER;

/// Where an entry holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryNodes {
    /// On every node of Kubernetes; not allowed beside unix selectors.
    All,
    /// On these nodes, each as cluster and node name.
    Listed(Vec<(String, String)>),
}

impl EntryNodes {
    /// Whether the entry holds on this node.
    pub fn contains(&self, cluster: &str, node: &str) -> bool {
        match self {
            // No pod runs on a node outside Kubernetes, and `all` has no unix selectors.
            Self::All => cluster != EXTERNAL_CLUSTER,
            Self::Listed(nodes) => nodes.iter().any(|(c, n)| c == cluster && n == node),
        }
    }
}

/// One entry, as the configuration has it.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Stable name: the ID's path and a digest of what selects it.
    pub entry_id: String,
    /// The identity.
    pub spiffe_id: SpiffeId,
    /// DNS names that the certificate carries too.
    pub dns_names: Vec<String>,
    /// Lifetime where the request names none, and the upper limit.
    pub ttl: Option<Duration>,
    /// Where it holds.
    pub nodes: EntryNodes,
    /// All must match.
    pub selectors: Vec<Selector>,
    /// For workloads with several identities.
    pub hint: String,
}

impl Entry {
    /// The name of an entry: its path, `#`, and 12 hex digits over nodes and selectors, so
    /// that two entries of one identity differ, and a changed entry is another one.
    pub fn make_id(spiffe_id: &SpiffeId, nodes: &EntryNodes, selectors: &[Selector]) -> String {
        let mut lines: Vec<String> = selectors.iter().map(ToString::to_string).collect();
        lines.sort_unstable();
        match nodes {
            EntryNodes::All => lines.push("node all".to_owned()),
            EntryNodes::Listed(nodes) => {
                let mut nodes: Vec<_> =
                    nodes.iter().map(|(c, n)| format!("node {c}/{n}")).collect();
                nodes.sort_unstable();
                lines.extend(nodes);
            }
        }
        let digest = hex::encode(crypto::sha256(lines.join("\n").as_bytes()));
        format!(
            "{}#{}",
            spiffe_id.path(),
            digest.get(..12).unwrap_or_default()
        )
    }

    /// Whether only the node's agent can tell who asks: unix selectors choose it, or such as
    /// tell the containers of one pod apart.
    pub fn is_the_agents_word(&self) -> bool {
        let only_agent = |s: &Selector| s.is_unix() || s.names_a_container();
        self.selectors.iter().any(only_agent)
    }

    /// As an agent receives it.
    pub fn to_record(&self) -> v1::EntryRecord {
        v1::EntryRecord {
            entry_id: self.entry_id.clone(),
            spiffe_id: self.spiffe_id.to_string(),
            selectors: self.selectors.iter().map(ToString::to_string).collect(),
            hint: self.hint.clone(),
            ttl_seconds: self
                .ttl
                .map_or(0, |ttl| i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX)),
            dns_names: self.dns_names.clone(),
        }
    }
}
