//! Proofs from a store's tiles. None of this needs the log's private key.

use std::collections::BTreeSet;

use citadel_ledger::{Checkpoint, Hash, Node, Note, Receipt, Tile, TileSet, proof, root, subtrees};

use super::LogError;
use crate::store::{LogIndex, Store};

/// The receipt of an entry in the store's newest checkpoint; `None` if that does not cover
/// it yet, or if there is no such entry.
///
/// The checkpoint's signature is not looked at: whoever takes the receipt verifies it.
pub async fn receipt(store: &dyn Store, index: LogIndex) -> Result<Option<Receipt>, LogError> {
    let Some(note) = store.tree().await?.checkpoint else {
        return Ok(None);
    };
    let state: Checkpoint = Note::parse(note.as_bytes())
        .map_err(citadel_ledger::CheckpointError::from)?
        .unverified_text()
        .parse()?;
    if index.0 >= state.size {
        return Ok(None);
    }
    let Some(entry) = store
        .read(index, 1)
        .await?
        .pop()
        .filter(|entry| entry.index == index)
    else {
        return Ok(None);
    };
    let plan = proof::inclusion(index.0, state.size)?;
    let tiles = load(store, &plan.nodes(), state.size).await?;
    Ok(Some(Receipt {
        entry: entry.bytes,
        index: index.0,
        proof: plan.prove(&tiles)?,
        checkpoint: note,
    }))
}

/// The root of the tree when it had this size, which it must have reached.
pub async fn root_at(store: &dyn Store, size: u64) -> Result<Hash, LogError> {
    let tiles = load(store, &subtrees(size), size).await?;
    root(size, &tiles).map_err(|node| proof::ProofError::Missing(node).into())
}

/// The tiles that hold these nodes, as of a tree of this size.
pub(super) async fn load(
    store: &dyn Store,
    nodes: &[Node],
    size: u64,
) -> Result<TileSet, LogError> {
    let wanted: BTreeSet<Tile> = nodes
        .iter()
        .filter_map(|node| Tile::of(*node, size))
        .collect();
    let wanted: Vec<Tile> = wanted.into_iter().collect();
    let mut tiles = TileSet::new();
    for (tile, content) in wanted.iter().zip(store.tiles(&wanted).await?) {
        tiles.insert(*tile, &content)?;
    }
    Ok(tiles)
}
