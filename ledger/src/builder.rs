//! Growing a log: leaves in, tiles out. Memory for the right edge of the tree alone, a
//! tile a level.

use std::num::NonZeroU16;

use thiserror::Error;

use crate::{
    compact::CompactRange,
    hash::Hash,
    tile::{HEIGHT, TILE_WIDTH, Tile, TileSet},
    tree::{Node, Nodes, subtrees},
};

/// The tiles of the right edge do not yield the tree of this size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the hash of node {index} of level {level} is missing")]
pub struct MissingNode {
    /// Its level above the leaves.
    pub level: u8,
    /// Its place on that level.
    pub index: u64,
}

/// A tree that grows, and the tiles that its growth fills.
#[derive(Clone, Debug, Default)]
pub struct Builder {
    range: CompactRange,
    /// The hashes of the last tile of each level, as long as it is not full.
    edge: Vec<Vec<Hash>>,
    /// Which of them have grown.
    grown: Vec<bool>,
    full: Vec<(Tile, Vec<u8>)>,
}

// === impl Builder ===

impl Builder {
    /// A tree without leaves.
    pub fn new() -> Self {
        Self::default()
    }

    /// The tiles that [`Self::resume`] needs for a tree of this size: the last one of each
    /// level, unless it is full.
    pub fn edge_of(size: u64) -> impl Iterator<Item = Tile> {
        (0..8_u8).filter_map(move |level| {
            let hashes = size >> (u32::from(level) * u32::from(HEIGHT));
            Tile::at(level, hashes / u64::from(TILE_WIDTH), size)
        })
    }

    /// The tree of this size, from the tiles of [`Self::edge_of`].
    pub fn resume(size: u64, tiles: &TileSet) -> Result<Self, MissingNode> {
        let hash = |node: Node| {
            tiles.hash(node).ok_or(MissingNode {
                level: node.level,
                index: node.index,
            })
        };
        let hashes = subtrees(size)
            .into_iter()
            .map(hash)
            .collect::<Result<_, _>>()?;
        let mut edge = vec![Vec::new(); 8];
        for tile in Self::edge_of(size) {
            let first = tile.index * u64::from(TILE_WIDTH);
            edge[usize::from(tile.level)] = (first..first + u64::from(tile.width.get()))
                .map(|index| {
                    hash(Node {
                        level: tile.level * HEIGHT,
                        index,
                    })
                })
                .collect::<Result<_, _>>()?;
        }
        Ok(Self {
            range: CompactRange::from_parts(size, hashes).unwrap_or_default(),
            grown: vec![false; edge.len()],
            edge,
            full: Vec::new(),
        })
    }

    /// Adds a leaf at the right end.
    ///
    /// # Panics
    /// When the tree is full, as [`CompactRange::append`].
    pub fn append(&mut self, leaf: Hash) {
        let Self {
            range,
            edge,
            grown,
            full,
        } = self;
        range.append(leaf, |node, hash| {
            if node.level % HEIGHT != 0 {
                return;
            }
            let level = node.level / HEIGHT;
            let at = usize::from(level);
            if edge.len() <= at {
                edge.resize(at + 1, Vec::new());
                grown.resize(at + 1, false);
            }
            edge[at].push(hash);
            grown[at] = true;
            if edge[at].len() == usize::from(TILE_WIDTH) {
                let hashes = std::mem::take(&mut edge[at]);
                grown[at] = false;
                full.extend(content(level, node.index / u64::from(TILE_WIDTH), &hashes));
            }
        });
    }

    /// Leaves so far.
    pub fn size(&self) -> u64 {
        self.range.size()
    }

    /// The root of the tree so far.
    pub fn root(&self) -> Hash {
        self.range.root()
    }

    /// The tiles that have changed since the last call, with their content: those that are
    /// full for good, then the last one of each level.
    pub fn take_tiles(&mut self) -> Vec<(Tile, Vec<u8>)> {
        let mut tiles = std::mem::take(&mut self.full);
        for (level, hashes) in (0_u8..).zip(&self.edge) {
            if std::mem::take(&mut self.grown[usize::from(level)]) {
                let nodes = self.range.size() >> (u32::from(level) * u32::from(HEIGHT));
                tiles.extend(content(level, nodes / u64::from(TILE_WIDTH), hashes));
            }
        }
        tiles
    }
}

fn content(level: u8, index: u64, hashes: &[Hash]) -> Option<(Tile, Vec<u8>)> {
    let width = NonZeroU16::new(u16::try_from(hashes.len()).ok()?)?;
    let tile = Tile {
        level,
        index,
        width,
    };
    Some((
        tile,
        hashes.iter().flat_map(|hash| *hash.as_bytes()).collect(),
    ))
}
