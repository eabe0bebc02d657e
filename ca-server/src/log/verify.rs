//! The whole log, held against itself: every entry against its place in the tree, every tile
//! against the entries, every checkpoint against the root, and what is kept beside the
//! entries, serials and index, against them.

use std::sync::Arc;

use citadel_ledger::{
    Builder, Checkpoint, CheckpointError, Hash, Node, Nodes as _, Resource, TILE_WIDTH, Tile,
    TileSet, VerifierKey, leaf_hash,
};
use tokio::sync::mpsc;

use crate::store::{
    AuditedEntry, IndexCheck, LogIndex, MAX_PAGE, Mismatch, Store, StoreError, TreeState,
};

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
    /// Entries of the log: all that the tree covers, and those after it.
    pub size: u64,
    /// Below it retention took records of certificates away: only what is left was looked at,
    /// and the hashes of all.
    pub minimum: u64,
    /// Of these, how many a checkpoint covers.
    pub covered: u64,
    /// The root over the covered ones.
    pub root: Hash,
    /// Up to which entry the index was compared; `None` where there is none to be used.
    pub indexed: Option<u64>,
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
    /// The tree's size and its checkpoint.
    #[error("the tree's size is {found}, and its checkpoint covers {signed} entries")]
    Size {
        /// The tree's size.
        found: u64,
        /// What the checkpoint says.
        signed: u64,
    },
    /// The serial of an entry, or what the index says of it.
    #[error("entry {} {}", .0.index, .0.what)]
    Beside(Mismatch),
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
/// [`Broken`]: the first thing that is wrong, by the order of the entries. What the index
/// says is compared at the end of each of its epochs, 65,536 entries.
pub async fn verify(
    store: &Arc<dyn Store>,
    key: &VerifierKey,
    witnesses: &[Witness],
    mut progress: impl FnMut(u64),
) -> Result<Verified, Broken> {
    loop {
        let state = store.tree().await?;
        let minimum = state.minimum;
        let outcome = verify_as_of(state, store, key, witnesses, &mut progress).await;
        // What retention took away meanwhile is not missing: it is looked at again.
        let risen = async || (store.tree().await).is_ok_and(|tree| tree.minimum > minimum);
        if outcome.is_err() && risen().await {
            continue;
        }
        return outcome;
    }
}

async fn verify_as_of(
    state: TreeState,
    store: &Arc<dyn Store>,
    key: &VerifierKey,
    witnesses: &[Witness],
    progress: &mut impl FnMut(u64),
) -> Result<Verified, Broken> {
    let size = store.size().await?;
    let own = state.checkpoint.map(|note| Witness {
        from: "of the store".into(),
        note,
    });
    let own = own.map(|own| open(&own, key)).transpose()?;
    if let Some((_, own)) = &own
        && own.size != state.size
    {
        return Err(Broken::Size {
            found: state.size,
            signed: own.size,
        });
    }
    let kept = witnesses.iter().map(|witness| open(witness, key));
    let mut witnesses = own
        .into_iter()
        .map(Ok)
        .chain(kept)
        .collect::<Result<Vec<_>, _>>()?;
    if witnesses.is_empty() && size > 0 {
        return Err(Broken::NoCheckpoint(size));
    }
    witnesses.sort_by_key(|(_, checkpoint)| checkpoint.size);

    let mut tree = Builder::new();
    let minimum = state.minimum.min(state.size);
    let mut index = IndexCheck::new(minimum);
    let mut entries = Entries::from(store, 0, size);
    let mut open_witnesses = witnesses.iter().peekable();
    let tiles = TileCheck {
        store: store.as_ref(),
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
        let to = if tree.size() < minimum {
            to.min(minimum)
        } else {
            to
        };
        let step = if to <= minimum {
            let left = entries.take_left(to).await?;
            tiles.leaves(&mut tree, to, &left).await?;
            Vec::new()
        } else {
            let step = entries.take(tree.size(), to).await?;
            for audited in &step {
                tree.append(leaf_hash(&audited.entry.bytes));
            }
            step
        };
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
        for audited in &step {
            none(index.add(audited, store).await?)?;
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
    none(index.finish(store.as_ref()).await?)?;
    let covered = witnesses.last().map(|(_, checkpoint)| checkpoint);
    Ok(Verified {
        size,
        minimum,
        covered: covered.map_or(0, |checkpoint| checkpoint.size),
        root: covered.map_or_else(citadel_ledger::empty_root, |checkpoint| checkpoint.root),
        indexed: index.covered(),
    })
}

fn none(mismatch: Option<Mismatch>) -> Result<(), Broken> {
    mismatch.map_or(Ok(()), |mismatch| Err(Broken::Beside(mismatch)))
}

/// The entries from one index to another, read ahead by a task of its own: what they yield
/// is worked out meanwhile.
struct Entries {
    pages: mpsc::Receiver<Result<Vec<AuditedEntry>, StoreError>>,
    page: std::vec::IntoIter<AuditedEntry>,
}

/// Pages read ahead.
const AHEAD: usize = 2;

// === impl Entries ===

impl Entries {
    fn from(store: &Arc<dyn Store>, mut next: u64, end: u64) -> Self {
        let (sender, pages) = mpsc::channel(AHEAD);
        let store = store.clone();
        // Ends with the receiver, at the latest.
        tokio::spawn(async move {
            while next < end {
                let limit = usize::try_from(end - next).unwrap_or(MAX_PAGE);
                // Read, never what a writer still has in memory.
                let page = store.audit(LogIndex(next), limit.min(MAX_PAGE)).await;
                let Some(last) = page.as_ref().ok().and_then(|page| page.last()) else {
                    let _ = sender.send(page).await;
                    return;
                };
                next = last.entry.index.0 + 1;
                if sender.send(page).await.is_err() {
                    return;
                }
            }
        });
        Self {
            pages,
            page: Vec::new().into_iter(),
        }
    }

    /// What retention left below this index.
    async fn take_left(&mut self, to: u64) -> Result<Vec<AuditedEntry>, Broken> {
        let mut left = Vec::new();
        loop {
            if self.page.len() == 0 {
                let page = self.pages.recv().await.unwrap_or_else(|| Ok(Vec::new()))?;
                self.page = page.into_iter();
            }
            match self.page.as_slice().first() {
                Some(next) if next.entry.index.0 < to => left.extend(self.page.next()),
                _ => return Ok(left),
            }
        }
    }

    /// All entries of this range.
    async fn take(&mut self, from: u64, to: u64) -> Result<Vec<AuditedEntry>, Broken> {
        let mut taken = Vec::new();
        for wanted in from..to {
            if self.page.len() == 0 {
                let page = self.pages.recv().await.unwrap_or_else(|| Ok(Vec::new()))?;
                self.page = page.into_iter();
            }
            let next = self.page.next();
            taken.push(
                next.filter(|audited| audited.entry.index.0 == wanted)
                    .ok_or(Broken::Missing(wanted))?,
            );
        }
        Ok(taken)
    }
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

/// Holds the tiles that the entries yield against those that the store has.
struct TileCheck<'s> {
    store: &'s dyn Store,
    /// Entries that the store's tiles cover.
    covered: u64,
}

impl TileCheck<'_> {
    /// Lets the tree grow to this size by the leaf hashes of its own tiles: whether they are
    /// right, the next checkpoint's root says. What is left of the entries is held against them.
    async fn leaves(
        &self,
        tree: &mut Builder,
        to: u64,
        left: &[AuditedEntry],
    ) -> Result<(), Broken> {
        let width = u64::from(TILE_WIDTH);
        let mut left = left.iter().peekable();
        while tree.size() < to {
            let index = tree.size() / width;
            let tile = Tile::at(0, index, self.covered).ok_or(Broken::Missing(tree.size()))?;
            let content = self.store.tiles(&[tile]).await?.pop().unwrap_or_default();
            let set = {
                let mut set = TileSet::new();
                set.insert(tile, &content)
                    .map_err(|error| StoreError::Corrupt(error.to_string()))?;
                set
            };
            let end = to.min((index + 1) * width);
            for leaf in tree.size()..end {
                let node = Node {
                    level: 0,
                    index: leaf,
                };
                let hash = set.hash(node).ok_or(Broken::Missing(leaf))?;
                if let Some(here) = left.next_if(|left| left.entry.index.0 == leaf)
                    && leaf_hash(&here.entry.bytes) != hash
                {
                    return Err(Broken::Entry(leaf, tile));
                }
                tree.append(hash);
            }
        }
        Ok(())
    }

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
