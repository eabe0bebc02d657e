//! Roots and proofs are those of the definitions, and no other tree's.

use std::collections::HashMap;
use std::fmt::Write as _;

use citadel_ledger::proof::{
    ProofError, consistency, inclusion, verify_consistency, verify_inclusion,
};
use citadel_ledger::{CompactRange, Hash, MAX_SIZE, Node, Nodes, leaf_hash, root, subtrees};
use proptest::prelude::*;

use crate::naive;

#[derive(Default)]
struct Stored(HashMap<Node, Hash>);

impl Nodes for Stored {
    fn hash(&self, node: Node) -> Option<Hash> {
        self.0.get(&node).copied()
    }
}

/// A tree and all of its nodes.
fn grown(entries: &[Vec<u8>]) -> (CompactRange, Stored) {
    let mut nodes = Stored::default();
    let mut tree = CompactRange::new();
    for entry in entries {
        tree.append(leaf_hash(entry), |node, hash| {
            assert_eq!(nodes.0.insert(node, hash), None, "{node:?} twice");
        });
    }
    (tree, nodes)
}

#[test]
fn every_small_tree_and_each_of_its_proofs_is_as_defined() {
    let entries = naive::entries(70);
    let (_, nodes) = grown(&entries);
    for size in 0..=entries.len() {
        let part = &entries[..size];
        let (tree, _) = grown(part);
        let expected = naive::root(part);
        let size = size as u64;
        assert_eq!(tree.root(), expected);
        assert_eq!(root(size, &nodes), Ok(expected));
        for index in 0..size {
            let proof = inclusion(index, size).unwrap().prove(&nodes).unwrap();
            let at = usize::try_from(index).unwrap();
            assert_eq!(proof, naive::inclusion(at, part), "{index} of {size}");
            let leaf = leaf_hash(&part[at]);
            assert_eq!(
                verify_inclusion(leaf, index, size, &proof, expected),
                Ok(())
            );
        }
        for old in 0..=size {
            let proof = consistency(old, size).unwrap().prove(&nodes).unwrap();
            let at = usize::try_from(old).unwrap();
            assert_eq!(proof, naive::consistency(at, part), "{old} of {size}");
            let old_root = naive::root(&part[..at]);
            assert_eq!(
                verify_consistency(old, old_root, size, expected, &proof),
                Ok(())
            );
        }
    }
}

#[test]
fn known_roots() {
    // The hash of nothing, and the roots that RFC 6962's implementations test with.
    let hex = |hash: Hash| {
        let mut text = String::new();
        for byte in hash.as_bytes() {
            let _ = write!(text, "{byte:02x}");
        }
        text
    };
    let tree = CompactRange::new();
    assert_eq!(
        hex(tree.root()),
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    );
    assert_eq!(
        hex(leaf_hash(b"")),
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
    );
}

#[test]
fn a_tree_goes_on_from_its_right_edge() {
    let entries = naive::entries(1000);
    for size in [0, 1, 2, 255, 256, 257, 511, 600, 999] {
        let (part, _) = grown(&entries[..size]);
        let mut again = CompactRange::from_parts(size as u64, part.hashes().to_vec()).unwrap();
        assert_eq!(again, part);
        for entry in &entries[size..] {
            again.append(leaf_hash(entry), |_, _| ());
        }
        assert_eq!(again.root(), naive::root(&entries));
        let nodes = subtrees(size as u64);
        assert_eq!(nodes.len(), part.hashes().len());
    }
    assert_eq!(CompactRange::from_parts(3, vec![leaf_hash(b"x")]), None);
    assert_eq!(CompactRange::from_parts(u64::MAX, Vec::new()), None);
}

#[test]
fn questions_without_an_answer_are_errors() {
    assert_eq!(
        inclusion(3, 3),
        Err(ProofError::NoSuchEntry { index: 3, size: 3 })
    );
    assert_eq!(
        consistency(4, 3),
        Err(ProofError::NotEarlier { old: 4, new: 3 })
    );
    assert!(inclusion(0, u64::MAX).is_err());
    assert!(consistency(0, u64::MAX).is_err());
    let largest = inclusion(MAX_SIZE - 1, MAX_SIZE).unwrap();
    assert!(largest.nodes().len() <= 64);
    assert!(largest.prove(&Stored::default()).is_err());
    let leaf = leaf_hash(b"x");
    assert!(verify_inclusion(leaf, 0, 0, &[], leaf).is_err());
    assert!(verify_inclusion(leaf, u64::MAX, u64::MAX, &[], leaf).is_err());
    assert!(verify_consistency(2, leaf, 1, leaf, &[]).is_err());
    // The tree of no entries has one root.
    assert_eq!(
        verify_consistency(0, leaf, 5, leaf, &[]),
        Err(ProofError::OtherRoot)
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_proof_with_one_fault_proves_nothing(
        size in 1_u64..600, at in any::<prop::sample::Index>(), bit in 0_usize..256,
        which in any::<prop::sample::Index>(), other in 1_u64..600,
    ) {
        let entries = naive::entries(size);
        let (tree, nodes) = grown(&entries);
        let index = at.index(entries.len()) as u64;
        let leaf = leaf_hash(&naive::entry(index));
        let proof = inclusion(index, size).unwrap().prove(&nodes).unwrap();
        let verify = |leaf, index, size, proof: &[Hash], root| verify_inclusion(leaf, index, size, proof, root);
        prop_assert_eq!(verify(leaf, index, size, &proof, tree.root()), Ok(()));
        prop_assert!(verify(flip(leaf, bit), index, size, &proof, tree.root()).is_err());
        prop_assert!(verify(leaf, index, size, &proof, flip(tree.root(), bit)).is_err());
        if other - 1 != index {
            prop_assert!(verify(leaf, other - 1, size, &proof, tree.root()).is_err());
        }
        let mut longer = proof.clone();
        longer.push(leaf);
        prop_assert!(verify(leaf, index, size, &longer, tree.root()).is_err());
        if !proof.is_empty() {
            prop_assert!(verify(leaf, index, size, &proof[1..], tree.root()).is_err());
            let mut flipped = proof.clone();
            let which = which.index(proof.len());
            flipped[which] = flip(flipped[which], bit);
            prop_assert!(verify(leaf, index, size, &flipped, tree.root()).is_err());
        }
    }

    #[test]
    fn a_history_that_was_changed_is_not_consistent(
        new in 2_u64..600, at in any::<prop::sample::Index>(), changed in any::<prop::sample::Index>(),
    ) {
        let entries = naive::entries(new);
        let old = at.index(entries.len() - 1) + 1;
        let (old_tree, _) = grown(&entries[..old]);
        // One old entry is another one in the new tree.
        let mut forged = entries.clone();
        forged[changed.index(old)].push(b'!');
        let (forged_tree, nodes) = grown(&forged);
        let proof = consistency(old as u64, new).unwrap().prove(&nodes).unwrap();
        prop_assert_eq!(
            verify_consistency(old as u64, old_tree.root(), new, forged_tree.root(), &proof),
            Err(ProofError::OtherRoot)
        );
    }
}

fn flip(hash: Hash, bit: usize) -> Hash {
    let mut bytes = *hash.as_bytes();
    bytes[bit / 8] ^= 1 << (bit % 8);
    Hash::from(bytes)
}
