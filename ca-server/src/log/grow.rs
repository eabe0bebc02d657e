//! The tree takes in what was recorded, and a checkpoint is signed over it.

use citadel_ledger::{Builder, Checkpoint, TileSet};

use super::{Log, LogError, Signed};
use crate::store::{Growth, LogIndex, Store, StoreError};

/// Leaves of one step at most: 2 MB of tiles.
const STEP: u64 = 65_536;

impl Log {
    /// Takes in everything that is recorded now.
    pub(super) async fn grow(&self) -> Result<(), LogError> {
        let mut builder = self.builder.lock().await;
        // What an error leaves in doubt is asked of the store again.
        let mut tree = match builder.take() {
            Some(tree) => tree,
            None => self.resumed().await?,
        };
        let size = self.store.size().await?;
        while tree.size() < size || (size > 0 && self.newest().is_none()) {
            match self.step(&mut tree, size).await {
                Ok(()) => {}
                // Another replica does the work: go on from where it is.
                Err(LogError::Store(StoreError::TreeMoved { .. })) => {
                    tree = self.resumed().await?;
                }
                Err(error) => return Err(error),
            }
        }
        *builder = Some(tree);
        Ok(())
    }

    pub(super) async fn step(&self, tree: &mut Builder, size: u64) -> Result<(), LogError> {
        let from = tree.size();
        let to = size.min(from + STEP);
        self.take_in(tree, to).await?;
        let checkpoint = Checkpoint {
            origin: self.verifier().name().to_owned(),
            size: tree.size(),
            root: tree.root(),
        };
        let note = checkpoint.sign(&[&self.key])?;
        self.store
            .integrate(Growth {
                from,
                to: checkpoint.size,
                tiles: tree.take_tiles(),
                checkpoint: note.clone(),
            })
            .await?;
        self.keep(note.clone()).await?;
        self.publish(Signed { checkpoint, note });
        Ok(())
    }

    /// Adds leaves up to this size.
    pub(super) async fn take_in(&self, tree: &mut Builder, to: u64) -> Result<(), LogError> {
        while tree.size() < to {
            let limit = usize::try_from(to - tree.size()).unwrap_or(usize::MAX);
            let leaves = self.store.leaves(LogIndex(tree.size()), limit).await?;
            if leaves.is_empty() {
                let missing = format!("entry {} is missing", tree.size());
                return Err(StoreError::Corrupt(missing).into());
            }
            for leaf in leaves {
                tree.append(leaf);
            }
        }
        Ok(())
    }

    /// Takes over the checkpoints of the replica whose task the tree is.
    pub(super) async fn follow(&self) -> Result<(), LogError> {
        // Its own right edge is of no use any more.
        self.builder.lock().await.take();
        let Some(note) = self.store.tree().await?.checkpoint else {
            return Ok(());
        };
        let signed = self.open_checkpoint(note)?;
        let known = self.newest().map_or(0, |newest| newest.checkpoint.size);
        if signed.checkpoint.size > known {
            self.keep(signed.note.clone()).await?;
            self.publish(signed);
        }
        Ok(())
    }

    /// The tree as the store has it, held against its checkpoint, which may be another
    /// replica's.
    pub(super) async fn resumed(&self) -> Result<Builder, LogError> {
        let state = self.store.tree().await?;
        let builder = resume(self.store.as_ref(), state.size).await?;
        match state.checkpoint {
            None => Ok(builder),
            Some(note) => {
                let signed = self.open_checkpoint(note)?;
                let Checkpoint { size, root, .. } = signed.checkpoint;
                if (size, root) != (builder.size(), builder.root()) {
                    return Err(LogError::Root(size));
                }
                self.publish(signed);
                Ok(builder)
            }
        }
    }
}

/// The tree of this size, from its tiles.
async fn resume(store: &dyn Store, size: u64) -> Result<Builder, LogError> {
    let edge: Vec<_> = Builder::edge_of(size).collect();
    let mut tiles = TileSet::new();
    for (tile, content) in edge.iter().zip(store.tiles(&edge).await?) {
        tiles.insert(*tile, &content)?;
    }
    Ok(Builder::resume(size, &tiles)?)
}
