//! Proofs from a store's tiles. None of this needs the log's private key.

use std::collections::BTreeSet;

use citadel_ledger::{
    Checkpoint, Hash, Node, Receipt, TILE_WIDTH, Tile, TileSet, proof, root, subtrees,
};

use super::LogError;
use crate::store::{LogIndex, Store, StoreError, without_gap};

/// The receipt of an entry in the store's newest checkpoint; `None` if that does not cover
/// it yet, or if there is no such entry.
///
/// The checkpoint's signature is not looked at: whoever takes the receipt verifies it.
pub async fn receipt(store: &dyn Store, index: LogIndex) -> Result<Option<Receipt>, LogError> {
    let Some(note) = store.tree().await?.checkpoint else {
        return Ok(None);
    };
    let state = Checkpoint::unverified(note.as_bytes())?;
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
    tile_set(store, &wanted.into_iter().collect::<Vec<_>>()).await
}

/// These tiles, as a source of the tree's hashes.
pub(super) async fn tile_set(store: &dyn Store, wanted: &[Tile]) -> Result<TileSet, LogError> {
    let mut tiles = TileSet::new();
    for (tile, content) in wanted.iter().zip(store.tiles(wanted).await?) {
        tiles.insert(*tile, &content)?;
    }
    Ok(tiles)
}

/// The entry bundle of a tile of the lowest level; `None` if the store lacks one of its
/// entries.
pub async fn bundle(store: &dyn Store, tile: Tile) -> Result<Option<Vec<u8>>, StoreError> {
    let first = tile.index * u64::from(TILE_WIDTH);
    let count = usize::from(tile.width.get());
    let entries = store.read(LogIndex(first), count).await?;
    // What retention left of a bundle is none.
    if without_gap(LogIndex(first), &entries).len() < count {
        return Ok(None);
    }
    citadel_ledger::bundle::encode(entries.iter().map(|entry| entry.bytes.as_slice()))
        .map(Some)
        .map_err(|error| StoreError::Corrupt(error.to_string()))
}
