//! The tree takes in what was recorded, and a checkpoint is signed over it.

use citadel_ledger::{Builder, Checkpoint};

use super::{Log, LogError, Signed};
use crate::store::{Growth, LogIndex, StoreError};

/// Leaves of one step at most: 2 MB of tiles.
const STEP: u64 = 65_536;

impl Log {
    /// Takes in everything that is recorded now.
    pub(super) async fn grow(&self) -> Result<(), LogError> {
        let mut builder = self.builder.lock().await;
        // What an error leaves in doubt is asked of the store again.
        let mut tree = match builder.take() {
            Some(tree) => tree,
            None => self.caught_up().await?,
        };
        let size = self.store.size().await?;
        while tree.size() < size || (size > 0 && self.newest().is_none()) {
            match self.step(&mut tree, size).await {
                Ok(()) => {}
                // Another replica does the work: go on from where it is.
                Err(LogError::Store(StoreError::TreeMoved { .. })) => {
                    tree = self.caught_up().await?;
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
        let previous = self.newest();
        // Kept before anybody can see it: a start accepts one that is ahead of the tree.
        self.keep(note.clone()).await?;
        self.store
            .integrate(Growth {
                from,
                to: checkpoint.size,
                tiles: tree.take_tiles(),
                previous: previous.map(|previous| previous.note.clone()),
                checkpoint: note.clone(),
            })
            .await?;
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
        match self.store.tree().await?.checkpoint {
            Some(note) => self.adopt(self.open_checkpoint(note)?).await,
            None => self.adopt_none(),
        }
    }

    /// The tree as the store has it, with its checkpoint, which may be another replica's.
    async fn caught_up(&self) -> Result<Builder, LogError> {
        let (builder, signed) = self.resumed().await?;
        match signed {
            Some(signed) => self.adopt(signed).await?,
            None => self.adopt_none()?,
        }
        Ok(builder)
    }

    /// Makes a checkpoint of the store the newest one, if it goes on from the one before: a
    /// database that failed over may have lost what was signed.
    async fn adopt(&self, signed: Signed) -> Result<(), LogError> {
        if let Some(known) = self.newest() {
            if known.note == signed.note {
                return Ok(());
            }
            let (seen, found) = (known.checkpoint.size, signed.checkpoint.size);
            if found < seen {
                return Err(LogError::RolledBack { found, seen });
            }
            if super::root_at(self.store.as_ref(), seen).await? != known.checkpoint.root {
                return Err(LogError::OtherHistory { size: seen });
            }
        }
        self.keep(signed.note.clone()).await?;
        self.publish(signed);
        Ok(())
    }

    /// The store has no checkpoint: right as long as none was seen.
    fn adopt_none(&self) -> Result<(), LogError> {
        match self.newest() {
            None => Ok(()),
            Some(known) => Err(LogError::RolledBack {
                found: 0,
                seen: known.checkpoint.size,
            }),
        }
    }

    /// The tree as the store has it, held against its checkpoint.
    pub(super) async fn resumed(&self) -> Result<(Builder, Option<Signed>), LogError> {
        let state = self.store.tree().await?;
        let edge: Vec<_> = Builder::edge_of(state.size).collect();
        let tiles = super::prove::tile_set(self.store.as_ref(), &edge).await?;
        let builder = Builder::resume(state.size, &tiles)?;
        let Some(note) = state.checkpoint else {
            return Ok((builder, None));
        };
        let signed = self.open_checkpoint(note)?;
        let Checkpoint { size, root, .. } = signed.checkpoint;
        if (size, root) == (builder.size(), builder.root()) {
            Ok((builder, Some(signed)))
        } else {
            Err(LogError::Root(size))
        }
    }
}
