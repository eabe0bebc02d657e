//! The definitions of RFC 6962, section 2.1, word by word: slow, and plainly right.

use citadel_ledger::{Hash, empty_root, leaf_hash, node_hash};

/// Entries of a log: each is its own number.
pub(crate) fn entries(count: u64) -> Vec<Vec<u8>> {
    (0..count).map(entry).collect()
}

pub(crate) fn entry(index: u64) -> Vec<u8> {
    format!("entry {index}").into_bytes()
}

/// MTH.
pub(crate) fn root(entries: &[Vec<u8>]) -> Hash {
    match entries {
        [] => empty_root(),
        [one] => leaf_hash(one),
        _ => {
            let (left, right) = entries.split_at(split(entries.len()));
            node_hash(root(left), root(right))
        }
    }
}

/// PATH.
pub(crate) fn inclusion(index: usize, entries: &[Vec<u8>]) -> Vec<Hash> {
    if entries.len() <= 1 {
        return Vec::new();
    }
    let middle = split(entries.len());
    let (left, right) = entries.split_at(middle);
    let (mut path, sibling) = if index < middle {
        (inclusion(index, left), root(right))
    } else {
        (inclusion(index - middle, right), root(left))
    };
    path.push(sibling);
    path
}

/// PROOF.
pub(crate) fn consistency(old: usize, entries: &[Vec<u8>]) -> Vec<Hash> {
    if old == 0 {
        return Vec::new();
    }
    subproof(old, entries, true)
}

fn subproof(old: usize, entries: &[Vec<u8>], known: bool) -> Vec<Hash> {
    if old == entries.len() {
        return if known {
            Vec::new()
        } else {
            vec![root(entries)]
        };
    }
    let middle = split(entries.len());
    let (left, right) = entries.split_at(middle);
    let (mut proof, other) = if old <= middle {
        (subproof(old, left, known), root(right))
    } else {
        (subproof(old - middle, right, false), root(left))
    };
    proof.push(other);
    proof
}

/// The largest power of two smaller than this.
fn split(count: usize) -> usize {
    count.next_power_of_two() / 2
}
