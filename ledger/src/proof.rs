//! Inclusion and consistency proofs (RFC 6962, section 2.1): made from stored nodes,
//! verified from bytes alone.

use thiserror::Error;

use crate::{
    hash::{Hash, empty_root, node_hash},
    tree::{MAX_SIZE, Node, Nodes, Range},
};

/// Hashes of one proof at most: one a level, and one more in a consistency proof.
pub const MAX_PROOF: usize = 64;

/// A proof was not made or not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ProofError {
    /// The question makes no sense.
    #[error("entry {index} is not in a tree of {size}")]
    NoSuchEntry {
        /// Index of the entry.
        index: u64,
        /// Size of the tree.
        size: u64,
    },
    /// The question makes no sense.
    #[error("a tree of {old} is not an earlier state of one of {new}")]
    NotEarlier {
        /// The smaller size.
        old: u64,
        /// The larger one.
        new: u64,
    },
    /// A stored node is missing.
    #[error("the hash at level {}, index {} is missing", .0.level, .0.index)]
    Missing(Node),
    /// The proof has too few or too many hashes for these sizes.
    #[error("the proof has {found} hashes, which does not fit the sizes")]
    Length {
        /// Hashes of the proof.
        found: usize,
    },
    /// The proof leads to another root.
    #[error("the proof leads to another root hash")]
    OtherRoot,
}

/// What a proof is about, and so which nodes it consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProofPlan {
    // In the order of the proof.
    ranges: Vec<Range>,
}

/// The plan of the proof that the tree of `size` has an entry at `index`.
pub fn inclusion(index: u64, size: u64) -> Result<ProofPlan, ProofError> {
    if index >= size || size > MAX_SIZE {
        return Err(ProofError::NoSuchEntry { index, size });
    }
    let mut ranges = Vec::new();
    let mut part = Range::new(0, size);
    while part.end - part.start > 1 {
        let middle = part.start + part.split();
        if index < middle {
            ranges.push(Range::new(middle, part.end));
            part.end = middle;
        } else {
            ranges.push(Range::new(part.start, middle));
            part.start = middle;
        }
    }
    ranges.reverse();
    Ok(ProofPlan { ranges })
}

/// The plan of the proof that the tree of `new` entries begins with the one of `old`.
pub fn consistency(old: u64, new: u64) -> Result<ProofPlan, ProofError> {
    if old > new || new > MAX_SIZE {
        return Err(ProofError::NotEarlier { old, new });
    }
    let mut ranges = Vec::new();
    if old != 0 {
        let mut part = Range::new(0, new);
        while old != part.end {
            let middle = part.start + part.split();
            if old <= middle {
                ranges.push(Range::new(middle, part.end));
                part.end = middle;
            } else {
                ranges.push(Range::new(part.start, middle));
                part.start = middle;
            }
        }
        // The verifier knows the old tree's root, but no other part of it.
        if part.start != 0 {
            ranges.push(part);
        }
    }
    ranges.reverse();
    Ok(ProofPlan { ranges })
}

/// Verifies that the tree of `size` with this `root` has this leaf at `index`
/// (RFC 9162, section 2.1.3.2).
pub fn verify_inclusion(
    leaf: Hash,
    index: u64,
    size: u64,
    proof: &[Hash],
    root: Hash,
) -> Result<(), ProofError> {
    if index >= size {
        return Err(ProofError::NoSuchEntry { index, size });
    }
    let length = ProofError::Length { found: proof.len() };
    let mut path = Path::new(index, size - 1);
    let mut hash = leaf;
    for &sibling in proof {
        hash = match path.climb().ok_or(length)? {
            Side::Left => node_hash(sibling, hash),
            Side::Right => node_hash(hash, sibling),
        };
    }
    path.finish(length)?;
    if hash == root {
        Ok(())
    } else {
        Err(ProofError::OtherRoot)
    }
}

/// Verifies that the tree of `new` entries with `new_root` begins with the tree of
/// `old` entries with `old_root` (RFC 9162, section 2.1.4.2). The tree without entries
/// is the beginning of every tree.
pub fn verify_consistency(
    old: u64,
    old_root: Hash,
    new: u64,
    new_root: Hash,
    proof: &[Hash],
) -> Result<(), ProofError> {
    if old > new {
        return Err(ProofError::NotEarlier { old, new });
    }
    let length = ProofError::Length { found: proof.len() };
    if old == 0 || old == new {
        let known = if old == new { new_root } else { empty_root() };
        return match proof {
            [] if old_root == known => Ok(()),
            [] => Err(ProofError::OtherRoot),
            _ => Err(length),
        };
    }
    // A perfect old tree is a node of the new one: its hash is not sent.
    let (start, rest) = if old.is_power_of_two() {
        (old_root, proof)
    } else {
        let (first, rest) = proof.split_first().ok_or(length)?;
        (*first, rest)
    };
    let mut path = Path::new(old - 1, new - 1);
    path.skip_right_children();
    let (mut old_hash, mut new_hash) = (start, start);
    for &sibling in rest {
        match path.climb().ok_or(length)? {
            Side::Left => {
                old_hash = node_hash(sibling, old_hash);
                new_hash = node_hash(sibling, new_hash);
            }
            Side::Right => new_hash = node_hash(new_hash, sibling),
        }
    }
    path.finish(length)?;
    if old_hash == old_root && new_hash == new_root {
        Ok(())
    } else {
        Err(ProofError::OtherRoot)
    }
}

/// On which side the next sibling stands.
enum Side {
    Left,
    Right,
}

/// The way from a node to the root: the node's index and the last one's of its level.
struct Path {
    node: u64,
    last: u64,
}

// === impl ProofPlan ===

impl ProofPlan {
    /// The perfect subtrees whose hashes are needed.
    pub fn nodes(&self) -> Vec<Node> {
        self.ranges
            .iter()
            .flat_map(|range| range.subtrees())
            .collect()
    }

    /// The proof, from the hashes of [`ProofPlan::nodes`].
    pub fn prove(&self, nodes: &impl Nodes) -> Result<Vec<Hash>, ProofError> {
        self.ranges
            .iter()
            .map(|range| range.hash(nodes).map_err(ProofError::Missing))
            .collect()
    }
}

// === impl Path ===

impl Path {
    fn new(node: u64, last: u64) -> Self {
        Self { node, last }
    }

    fn up(&mut self) {
        self.node /= 2;
        self.last /= 2;
    }

    fn skip_right_children(&mut self) {
        while self.node % 2 == 1 {
            self.up();
        }
    }

    /// One step; `None` at the root, where no sibling is left.
    fn climb(&mut self) -> Option<Side> {
        if self.last == 0 {
            return None;
        }
        let side = if self.node % 2 == 1 || self.node == self.last {
            // The last node of a level without a sibling moves up as it is.
            while self.node.is_multiple_of(2) && self.node != 0 {
                self.up();
            }
            Side::Left
        } else {
            Side::Right
        };
        self.up();
        Some(side)
    }

    fn finish(&self, error: ProofError) -> Result<(), ProofError> {
        if self.last == 0 { Ok(()) } else { Err(error) }
    }
}
