//! The whole log, held against itself: every entry against its place in the tree, every tile
//! against the entries, every checkpoint against the root.

use citadel_ledger::{
    Builder, Checkpoint, CheckpointError, Hash, Resource, TILE_WIDTH, Tile, VerifierKey,
};

use crate::store::{LogIndex, MAX_PAGE, Store, StoreError, leaves_of};

/// A checkpoint from somewhere else, to be held against the log.
#[derive(Clone, Debug)]
pub struct Witness {
    /// Where it comes from, for people.
    pub from: String,
    /// The signed note.
    pub note: String,
}

/// A log that holds together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Entries that were looked at: all that the tree covers, and those after it.
    pub size: u64,
    /// Of these, how many a checkpoint covers.
    pub covered: u64,
    /// The root over the covered ones.
    pub root: Hash,
}

/// The first thing that is wrong.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// It can't be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A gap.
    #[error("entry {0} is missing")]
    Missing(u64),
    /// The tree holds another entry.
    #[error("entry {0} is not the one that the tree holds in {tile}", tile = Resource::Hashes(*.1))]
    Entry(u64, Tile),
    /// A tile above the leaves.
    #[error("{} does not follow from the tiles below it", Resource::Hashes(*.0))]
    Tile(Tile),
    /// Entries are gone from the end.
    #[error("the log has {found} entries; the checkpoint {from} covers {seen}")]
    Cut {
        /// Entries of the log.
        found: u64,
        /// Whose checkpoint.
        from: String,
        /// Entries that it covers.
        seen: u64,
    },
    /// The entries yield another root.
    #[error("the first {size} entries are not those that the checkpoint {from} was signed over")]
    Root {
        /// Whose checkpoint.
        from: String,
        /// Entries that it covers.
        size: u64,
    },
    /// Nothing says what the log should be.
    #[error("no checkpoint covers any of the log's {0} entries")]
    NoCheckpoint(u64),
    /// A checkpoint that is not one, or not this log's.
    #[error("the checkpoint {from} is refused: {error}")]
    Checkpoint {
        /// Whose.
        from: String,
        /// Why.
        error: CheckpointError,
    },
}

/// Verifies a whole log with the key of its checkpoints. `progress` is told how many entries
/// have been looked at, every thousand or so.
///
/// # Errors
/// [`Broken`]: the first thing that is wrong, by the order of the entries.
pub async fn verify(
    store: &dyn Store,
    key: &VerifierKey,
    witnesses: &[Witness],
    mut progress: impl FnMut(u64),
) -> Result<Verified, Broken> {
    let state = store.tree().await?;
    let size = store.size().await?;
    let own = state.checkpoint.map(|note| Witness {
        from: "of the store".into(),
        note,
    });
    let mut witnesses = own
        .iter()
        .chain(witnesses)
        .map(|witness| open(witness, key))
        .collect::<Result<Vec<_>, _>>()?;
    if witnesses.is_empty() && size > 0 {
        return Err(Broken::NoCheckpoint(size));
    }
    witnesses.sort_by_key(|(_, checkpoint)| checkpoint.size);

    let mut tree = Builder::new();
    let mut open_witnesses = witnesses.iter().peekable();
    let tiles = TileCheck {
        store,
        covered: state.size,
    };
    while tree.size() < size {
        // A step ends where a checkpoint does, so that its root is at hand.
        let stops = [
            open_witnesses.peek().map_or(size, |(_, next)| next.size),
            state.size,
        ];
        let to = stops
            .into_iter()
            .filter(|stop| *stop > tree.size())
            .fold(size.min(tree.size() + MAX_PAGE as u64), u64::min);
        step(store, &mut tree, to).await?;
        tiles.check(&mut tree).await?;
        while let Some((from, checkpoint)) =
            open_witnesses.next_if(|(_, checkpoint)| checkpoint.size <= tree.size())
        {
            if checkpoint.size == tree.size() && checkpoint.root != tree.root() {
                return Err(Broken::Root {
                    from: from.clone(),
                    size: checkpoint.size,
                });
            }
        }
        progress(tree.size());
    }
    if let Some((from, checkpoint)) = open_witnesses.next() {
        return Err(Broken::Cut {
            found: size,
            from: from.clone(),
            seen: checkpoint.size,
        });
    }
    if state.size > size {
        return Err(Broken::Missing(size));
    }
    let covered = witnesses.last().map(|(_, checkpoint)| checkpoint);
    Ok(Verified {
        size,
        covered: covered.map_or(0, |checkpoint| checkpoint.size),
        root: covered.map_or_else(citadel_ledger::empty_root, |checkpoint| checkpoint.root),
    })
}

fn open(witness: &Witness, key: &VerifierKey) -> Result<(String, Checkpoint), Broken> {
    match Checkpoint::open(witness.note.as_bytes(), std::slice::from_ref(key)) {
        Ok(checkpoint) => Ok((witness.from.clone(), checkpoint)),
        Err(error) => Err(Broken::Checkpoint {
            from: witness.from.clone(),
            error,
        }),
    }
}

async fn step(store: &dyn Store, tree: &mut Builder, to: u64) -> Result<(), Broken> {
    while tree.size() < to {
        let limit = usize::try_from(to - tree.size()).unwrap_or(MAX_PAGE);
        let entries = store
            .read(LogIndex(tree.size()), limit.min(MAX_PAGE))
            .await?;
        // Read, never what a writer still has in memory.
        let leaves = leaves_of(LogIndex(tree.size()), &entries);
        if leaves.is_empty() {
            return Err(Broken::Missing(tree.size()));
        }
        for leaf in leaves {
            tree.append(leaf);
        }
    }
    Ok(())
}

/// Holds the tiles that the entries yield against those that the store has.
struct TileCheck<'s> {
    store: &'s dyn Store,
    /// Entries that the store's tiles cover.
    covered: u64,
}

impl TileCheck<'_> {
    async fn check(&self, tree: &mut Builder) -> Result<(), Broken> {
        let expected: Vec<(Tile, Vec<u8>)> = tree
            .take_tiles()
            .into_iter()
            .filter_map(|(tile, content)| self.in_store(tile, content))
            .collect();
        let wanted: Vec<Tile> = expected.iter().map(|(tile, _)| *tile).collect();
        for ((tile, expected), found) in expected.into_iter().zip(self.store.tiles(&wanted).await?)
        {
            if expected == found {
                continue;
            }
            if tile.level > 0 {
                return Err(Broken::Tile(tile));
            }
            let differs = expected
                .chunks(Hash::BYTES)
                .zip(found.chunks(Hash::BYTES))
                .position(|(expected, found)| expected != found)
                .unwrap_or(0);
            let first = tile.index * u64::from(TILE_WIDTH);
            return Err(Broken::Entry(first + differs as u64, tile));
        }
        Ok(())
    }

    /// The part of a tile that the store's tree covers.
    fn in_store(&self, tile: Tile, mut content: Vec<u8>) -> Option<(Tile, Vec<u8>)> {
        let most = Tile::at(tile.level, tile.index, self.covered)?;
        let width = tile.width.min(most.width);
        content.truncate(usize::from(width.get()) * Hash::BYTES);
        Some((Tile { width, ..tile }, content))
    }
}
