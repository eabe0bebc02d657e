//! Tiles (C2SP tlog-tiles): the tree in pieces of 256 hashes, and their paths.

use std::{collections::HashMap, fmt, num::NonZeroU16};

use thiserror::Error;

use crate::{
    hash::Hash,
    tree::{MAX_SIZE, Node, Nodes, join},
};

/// Levels of the tree that one tile spans.
pub(crate) const HEIGHT: u8 = 8;

/// Hashes of a full tile, and entries of a full bundle.
pub const TILE_WIDTH: u16 = 1 << HEIGHT;

/// The highest level of tiles that a log of [`MAX_SIZE`] entries has.
const MAX_LEVEL: u8 = 7;

/// A tile: so many hashes of the level 8·`level` of the tree, from `index`·256.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tile {
    /// 0 for the tiles of leaf hashes; at most 7.
    pub level: u8,
    /// Position among the tiles of its level.
    pub index: u64,
    /// Hashes in it: 256, or fewer at the right edge of a tree.
    pub width: NonZeroU16,
}

/// Something that a log serves under its prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// The newest checkpoint.
    Checkpoint,
    /// Hashes of the tree.
    Hashes(Tile),
    /// The entries of a tile of level 0.
    Entries(Tile),
}

/// A path that names nothing a log serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("no path of a tile, of an entry bundle or of the checkpoint")]
pub struct PathError;

/// A tile's content has another size than its width says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a tile of {width} hashes has {found} bytes")]
pub struct TileError {
    /// Hashes that it should have.
    pub width: u16,
    /// Bytes that it has.
    pub found: usize,
}

/// Tiles in memory, as a source of the tree's hashes.
#[derive(Clone, Debug, Default)]
pub struct TileSet {
    tiles: HashMap<(u8, u64), Vec<Hash>>,
}

// === impl Tile ===

impl Tile {
    /// The tile with the hashes of this one at their widest in the tree of `size`;
    /// `None` where the tree has none of them.
    pub fn at(level: u8, index: u64, size: u64) -> Option<Self> {
        let hashes = size.checked_shr(u32::from(level) * u32::from(HEIGHT))?;
        let before = index.checked_mul(u64::from(TILE_WIDTH))?;
        let width = hashes.checked_sub(before)?.min(u64::from(TILE_WIDTH));
        Some(Self {
            level,
            index,
            width: NonZeroU16::new(u16::try_from(width).ok()?)?,
        })
    }

    /// The tile in the tree of `size` that the hash of this node comes from.
    pub fn of(node: Node, size: u64) -> Option<Self> {
        let (level, first, _) = place(node);
        Self::at(level, first / u64::from(TILE_WIDTH), size)
    }

    /// All tiles that the tree of `new` has and the tree of `old` has not, the lower
    /// levels first. A tile that grew is among them.
    pub fn between(old: u64, new: u64) -> impl Iterator<Item = Self> {
        (0..=MAX_LEVEL).flat_map(move |level| {
            let shift = u32::from(level) * u32::from(HEIGHT);
            let (old, new) = (old >> shift, new >> shift);
            let width = u64::from(TILE_WIDTH);
            let range = if old < new {
                old / width..new.div_ceil(width)
            } else {
                0..0
            };
            range.filter_map(move |index| Self::at(level, index, new << shift))
        })
    }

    /// True where no hash can be added.
    pub fn is_full(self) -> bool {
        self.width.get() == TILE_WIDTH
    }

    /// The first leaf below it.
    pub fn start(self) -> u64 {
        self.index
            .saturating_mul(1 << (u32::from(HEIGHT) * (u32::from(self.level) + 1)).min(63))
    }

    /// The leaf after the last one below it when it is full: a log whose minimum index
    /// is at or past it need not serve the tile (tlog-tiles, "Pruning").
    pub fn end(self) -> u64 {
        self.start()
            .saturating_add(1 << (u32::from(HEIGHT) * (u32::from(self.level) + 1)).min(63))
    }

    fn number(self) -> TileNumber {
        TileNumber(self.index, self.width)
    }
}

// === impl Resource ===

impl Resource {
    /// Reads the path below a log's prefix, without a leading slash. Only the one form
    /// of each path is accepted that `Display` writes.
    pub fn from_path(path: &str) -> Result<Self, PathError> {
        // The longest is tile/entries/ with seven groups and .p/255.
        if path.len() > 64 {
            return Err(PathError);
        }
        if path == "checkpoint" {
            return Ok(Self::Checkpoint);
        }
        let (kind, number) = path
            .strip_prefix("tile/")
            .and_then(|rest| rest.split_once('/'))
            .ok_or(PathError)?;
        let TileNumber(index, width) = TileNumber::parse(number).ok_or(PathError)?;
        let tile = |level| Tile {
            level,
            index,
            width,
        };
        let resource = if kind == "entries" {
            Self::Entries(tile(0))
        } else {
            let level: u8 = kind.parse().map_err(|_| PathError)?;
            if level > MAX_LEVEL {
                return Err(PathError);
            }
            Self::Hashes(tile(level))
        };
        if resource.to_string() == path {
            Ok(resource)
        } else {
            Err(PathError)
        }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Checkpoint => f.write_str("checkpoint"),
            Self::Hashes(tile) => write!(f, "tile/{}/{}", tile.level, tile.number()),
            Self::Entries(tile) => write!(f, "tile/entries/{}", tile.number()),
        }
    }
}

/// `N[.p/W]`: N in groups of three digits, all but the last with an x.
struct TileNumber(u64, NonZeroU16);

impl TileNumber {
    fn parse(text: &str) -> Option<Self> {
        let (groups, width) = match text.split_once(".p/") {
            Some((groups, width)) => (groups, width.parse().ok()?),
            None => (text, TILE_WIDTH),
        };
        let mut index = 0_u64;
        for group in groups.split('/') {
            let digits: u64 = group.strip_prefix('x').unwrap_or(group).parse().ok()?;
            index = index.checked_mul(1000)?.checked_add(digits)?;
        }
        let whole = width <= TILE_WIDTH && index <= MAX_SIZE / u64::from(TILE_WIDTH);
        whole.then_some(Self(index, NonZeroU16::new(width)?))
    }
}

impl fmt::Display for TileNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(mut index, width) = *self;
        let mut groups = vec![format!("{:03}", index % 1000)];
        while index >= 1000 {
            index /= 1000;
            groups.push(format!("x{:03}", index % 1000));
        }
        groups.reverse();
        f.write_str(&groups.join("/"))?;
        if width.get() < TILE_WIDTH {
            write!(f, ".p/{width}")?;
        }
        Ok(())
    }
}

// === impl TileSet ===

impl TileSet {
    /// No tile.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a tile with its content: its hashes one after the other.
    pub fn insert(&mut self, tile: Tile, content: &[u8]) -> Result<(), TileError> {
        let width = tile.width.get();
        if content.len() != usize::from(width) * Hash::BYTES {
            return Err(TileError {
                width,
                found: content.len(),
            });
        }
        let hashes = content
            .chunks_exact(Hash::BYTES)
            .filter_map(Hash::from_slice)
            .collect();
        self.tiles.insert((tile.level, tile.index), hashes);
        Ok(())
    }
}

impl Nodes for TileSet {
    fn hash(&self, node: Node) -> Option<Hash> {
        let (level, first, count) = place(node);
        let width = u64::from(TILE_WIDTH);
        let tile = self.tiles.get(&(level, first / width))?;
        let offset = usize::try_from(first % width).ok()?;
        perfect(tile.get(offset..offset + count)?)
    }
}

/// Where a node's hash is: in tiles of this level, the hash of so many from this one.
fn place(node: Node) -> (u8, u64, usize) {
    let above = node.level % HEIGHT;
    (node.level / HEIGHT, node.index << above, 1 << above)
}

/// The hash over a power of two of hashes.
fn perfect(hashes: &[Hash]) -> Option<Hash> {
    match hashes.len() {
        0 => None,
        1 => Some(hashes[0]),
        count => {
            let (left, right) = hashes.split_at(count / 2);
            join([perfect(left)?, perfect(right)?].into_iter())
        }
    }
}
