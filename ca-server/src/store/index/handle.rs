//! What a store's face and its indexer's task tell each other.

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::store::{StoreError, shared::Shared};

/// What an indexer is asked to do beside its work. Each is answered when it is done.
pub(in crate::store) enum Order {
    /// To empty the index, before it fills again.
    Rebuild(oneshot::Sender<()>),
    /// To forget what is below this minimum index.
    Prune(u64, oneshot::Sender<()>),
}

/// The indexer, from outside. Stops it when it is dropped.
#[derive(Debug)]
pub(in crate::store) struct IndexerHandle {
    orders: mpsc::Sender<Order>,
    stop: CancellationToken,
    stopped: CancellationToken,
}

/// What the indexer's task is told.
pub(in crate::store) struct IndexerOrders {
    pub(in crate::store) orders: mpsc::Receiver<Order>,
    pub(in crate::store) stop: CancellationToken,
    /// Dropped when the task has let go of everything.
    pub(in crate::store) stopped: DropGuard,
}

// === impl IndexerHandle ===

impl IndexerHandle {
    pub(in crate::store) fn new() -> (Self, IndexerOrders) {
        let (sender, inbox) = mpsc::channel(1);
        let (stop, stopped) = (CancellationToken::new(), CancellationToken::new());
        let orders = IndexerOrders {
            orders: inbox,
            stop: stop.clone(),
            stopped: stopped.clone().drop_guard(),
        };
        let handle = Self {
            orders: sender,
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
        self.orders
            .send(Order::Rebuild(reply))
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

    /// The index's part of [`crate::store::Store::prune`].
    pub(in crate::store) async fn prune(&self, minimum: u64) -> Result<(), StoreError> {
        let (reply, done) = oneshot::channel();
        self.orders
            .send(Order::Prune(minimum, reply))
            .await
            .map_err(|_| StoreError::Closed)?;
        done.await.map_err(|_| {
            StoreError::Unavailable("the index could not forget what retention took".into())
        })
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
