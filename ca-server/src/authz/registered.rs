//! The registration entries in force. They change while the server runs.

use super::Entry;

/// The entries, and what names them and the rest of the policy.
#[derive(Clone, Debug, Default)]
pub struct Registered {
    /// The entries.
    pub entries: Vec<Entry>,
    /// Changes with the policy and the entries; the log records it.
    pub revision: u64,
}

// === impl Registered ===

impl Registered {
    /// The entries that hold on a node.
    pub fn of_node(&self, cluster: &str, node: &str) -> Vec<&Entry> {
        self.entries
            .iter()
            .filter(|entry| entry.nodes.contains(cluster, node))
            .collect()
    }
}
