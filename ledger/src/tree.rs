//! The shape of the tree: which perfect subtrees a range of leaves consists of.
//!
//! Everything that is stored or sent is a hash of a perfect subtree ([`Node`]); all
//! other hashes (of roots, of the ragged right edge) follow from these.

use crate::hash::{Hash, empty_root, node_hash};

/// Leaves of one log at most: an index fits in the signed 64 bits of a database.
pub const MAX_SIZE: u64 = i64::MAX as u64;

/// The root of a perfect subtree: the one over the 2^`level` leaves from
/// `index`·2^`level`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Node {
    /// 0 for a leaf; at most 62.
    pub level: u8,
    /// Position among the nodes of its level, from the left.
    pub index: u64,
}

/// Where hashes of perfect subtrees come from.
pub trait Nodes {
    /// The hash of this subtree; `None` where it is not known here.
    fn hash(&self, node: Node) -> Option<Hash>;
}

/// A range of leaves `[start, end)` that occurs in proofs: `start` is a multiple of a
/// power of two that is at least as large as the range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) start: u64,
    pub(crate) end: u64,
}

/// The perfect subtrees of the tree of this size, from the left: one for each bit of
/// the size, the largest first.
pub fn subtrees(size: u64) -> Vec<Node> {
    Range {
        start: 0,
        end: size,
    }
    .subtrees()
}

/// The root of the tree of this size. `Err` names the node that is missing.
pub fn root(size: u64, nodes: &impl Nodes) -> Result<Hash, Node> {
    if size == 0 {
        return Ok(empty_root());
    }
    Range {
        start: 0,
        end: size,
    }
    .hash(nodes)
}

/// Joins the hashes of perfect subtrees, given from the left, to the hash of their
/// range: the smaller ones on the right belong together first.
pub(crate) fn join(hashes: impl DoubleEndedIterator<Item = Hash>) -> Option<Hash> {
    hashes.rev().reduce(|right, left| node_hash(left, right))
}

// === impl Node ===

impl Node {
    /// This leaf.
    pub fn leaf(index: u64) -> Self {
        Self { level: 0, index }
    }

    /// The subtree that this one and its sibling are the halves of.
    #[must_use]
    pub fn parent(self) -> Self {
        Self {
            level: self.level + 1,
            index: self.index / 2,
        }
    }
}

// === impl Range ===

impl Range {
    pub(crate) fn new(start: u64, end: u64) -> Self {
        Self { start, end }
    }

    /// The largest power of two below the number of leaves, which is at least 2: where
    /// RFC 6962 splits a range.
    pub(crate) fn split(self) -> u64 {
        1 << (self.end - self.start - 1).ilog2()
    }

    pub(crate) fn subtrees(self) -> Vec<Node> {
        let mut nodes = Vec::new();
        let mut start = self.start;
        while start < self.end {
            let level = (self.end - start).ilog2();
            nodes.push(Node {
                level: u8::try_from(level).unwrap_or(u8::MAX),
                index: start >> level,
            });
            start += 1 << level;
        }
        nodes
    }

    pub(crate) fn hash(self, nodes: &impl Nodes) -> Result<Hash, Node> {
        let hashes = self
            .subtrees()
            .into_iter()
            .map(|node| nodes.hash(node).ok_or(node))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(join(hashes.into_iter()).unwrap_or_else(empty_root))
    }
}
