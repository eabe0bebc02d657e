//! Appending with memory for the logarithm of the size: the perfect subtrees of the
//! tree so far are all that the next leaf needs.

use crate::{
    hash::{Hash, empty_root, node_hash},
    tree::{MAX_SIZE, Node, join},
};

/// A tree's right edge: its size and the hashes of its perfect subtrees.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CompactRange {
    size: u64,
    // From the left: one for each bit of the size, the largest first.
    hashes: Vec<Hash>,
}

impl CompactRange {
    /// The tree without leaves.
    pub fn new() -> Self {
        Self::default()
    }

    /// The tree of this size with these perfect subtrees, as [`crate::subtrees`] lists
    /// them. `None` if there are more or fewer of them than the size has, or the size
    /// is over [`MAX_SIZE`].
    pub fn from_parts(size: u64, hashes: Vec<Hash>) -> Option<Self> {
        let complete = hashes.len() == size.count_ones() as usize;
        (complete && size <= MAX_SIZE).then_some(Self { size, hashes })
    }

    /// Appends a leaf, and shows every perfect subtree that it completes, itself first.
    ///
    /// # Panics
    /// When the tree has [`MAX_SIZE`] leaves.
    pub fn append(&mut self, leaf: Hash, mut completed: impl FnMut(Node, Hash)) {
        assert!(self.size < MAX_SIZE, "the tree is full");
        let mut node = Node::leaf(self.size);
        let mut hash = leaf;
        completed(node, hash);
        // Each bit that carries joins the new subtree with its sibling on the left.
        while node.index % 2 == 1 {
            let Some(left) = self.hashes.pop() else { break };
            hash = node_hash(left, hash);
            node = node.parent();
            completed(node, hash);
        }
        self.hashes.push(hash);
        self.size += 1;
    }

    /// Number of leaves.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The root of the tree.
    pub fn root(&self) -> Hash {
        join(self.hashes.iter().copied()).unwrap_or_else(empty_root)
    }

    /// Its perfect subtrees, from the left.
    pub fn hashes(&self) -> &[Hash] {
        &self.hashes
    }
}
