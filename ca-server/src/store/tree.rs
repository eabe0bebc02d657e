//! The Merkle tree over the log, as a store keeps it: tiles and the newest checkpoint. What
//! they mean is [`citadel_ledger`]'s; a store only keeps them together.

use citadel_ledger::Tile;

/// How far the tree reaches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TreeState {
    /// Entries that the tiles cover.
    pub size: u64,
    /// Below it retention took the records of certificates away; a multiple of 256.
    pub minimum: u64,
    /// The newest checkpoint, a signed note over exactly that size; `None` before the first.
    pub checkpoint: Option<String>,
}

/// One step of the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Growth {
    /// Its size before.
    pub from: u64,
    /// Its size afterwards.
    pub to: u64,
    /// The tiles that have changed, each with its whole content.
    pub tiles: Vec<(Tile, Vec<u8>)>,
    /// The checkpoint that it goes on from; `None` for the first.
    pub previous: Option<String>,
    /// The signed note over `to`.
    pub checkpoint: String,
}

/// Names a tile in a database: tiles of a level lie together, in their order.
pub(super) fn tile_id(tile: Tile) -> i64 {
    // Eight levels, and 2^55 tiles of the lowest: both fit.
    (i64::from(tile.level) << 56) | tile.index.cast_signed()
}

/// A tile's content as of its width, from a row that may have grown since. `None` where the
/// row has fewer hashes.
pub(super) fn cut(tile: Tile, mut row: Vec<u8>) -> Option<Vec<u8>> {
    let bytes = usize::from(tile.width.get()) * citadel_ledger::Hash::BYTES;
    (row.len() >= bytes).then(|| {
        row.truncate(bytes);
        row
    })
}
