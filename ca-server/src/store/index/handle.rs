//! What a store's face and its indexer's task tell each other.

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::store::{StoreError, shared::Shared};

/// Asks for a rebuild; answered when the index is empty, before it fills again.
pub(in crate::store) type Rebuild = oneshot::Sender<()>;

/// The indexer, from outside. Stops it when it is dropped.
#[derive(Debug)]
pub(in crate::store) struct IndexerHandle {
    rebuild: mpsc::Sender<Rebuild>,
    stop: CancellationToken,
    stopped: CancellationToken,
}

/// What the indexer's task is told.
pub(in crate::store) struct IndexerOrders {
    pub(in crate::store) rebuilds: mpsc::Receiver<Rebuild>,
    pub(in crate::store) stop: CancellationToken,
    /// Dropped when the task has let go of everything.
    pub(in crate::store) stopped: DropGuard,
}

// === impl IndexerHandle ===

impl IndexerHandle {
    pub(in crate::store) fn new() -> (Self, IndexerOrders) {
        let (rebuild, rebuilds) = mpsc::channel(1);
        let (stop, stopped) = (CancellationToken::new(), CancellationToken::new());
        let orders = IndexerOrders {
            rebuilds,
            stop: stop.clone(),
            stopped: stopped.clone().drop_guard(),
        };
        let handle = Self {
            rebuild,
            stop,
            stopped,
        };
        (handle, orders)
    }

    /// See [`crate::store::Store::reindex`]; the log has `size` entries.
    pub(in crate::store) async fn reindex(
        &self,
        size: u64,
        shared: &Shared,
    ) -> Result<(), StoreError> {
        let (reply, emptied) = oneshot::channel();
        self.rebuild
            .send(reply)
            .await
            .map_err(|_| StoreError::Closed)?;
        emptied
            .await
            .map_err(|_| StoreError::Unavailable("the index could not be emptied".into()))?;
        let mut indexed = shared.indexed.subscribe();
        tokio::select! {
            outcome = indexed.wait_for(|indexed| *indexed >= size) => {
                outcome.map(drop).map_err(|_| StoreError::Closed)
            }
            () = self.stopped.cancelled() => Err(StoreError::Closed),
        }
    }

    /// Resolves when the task has let go of everything.
    pub(in crate::store) async fn stop(&self) {
        self.stop.cancel();
        self.stopped.cancelled().await;
    }
}

impl Drop for IndexerHandle {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
