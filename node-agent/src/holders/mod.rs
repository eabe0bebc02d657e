//! Who runs on what: what each stream was sent, and what its client acknowledged or
//! refused. Kept per connection, for administrators, and in sum for the CA: the rotation of
//! its keys waits for it.

mod stream;
#[cfg(test)]
mod stream_tests;
mod summary;
mod table;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use time::OffsetDateTime;
use tokio::sync::watch;

use self::table::Table;
pub use self::{
    stream::{Content, Resource, Stream, StreamId},
    summary::{Behind, OfBundle, Summary},
};
use crate::{attest::Peer, clock::Clock, metrics::Metrics};

/// The most resources that count is kept of, over all streams. Beyond, it is said that the
/// count is not complete.
const MAX_RESOURCES: usize = 65_536;

/// Keeps count. Clones share one state.
#[derive(Clone)]
pub struct Holders {
    shared: Arc<Shared>,
}

struct Shared {
    table: Mutex<Table>,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
    changed: watch::Sender<()>,
}

/// A stream that is kept count of, until this is dropped.
pub struct Tracked {
    holders: Holders,
    id: StreamId,
}

impl Holders {
    /// Nobody holds anything yet.
    pub fn new(clock: Arc<dyn Clock>, metrics: Metrics) -> Self {
        Self {
            shared: Arc::new(Shared {
                table: Mutex::new(Table::new(MAX_RESOURCES)),
                clock,
                metrics,
                changed: watch::Sender::new(()),
            }),
        }
    }

    /// A stream of this peer has begun.
    pub fn stream(&self, protocol: &'static str, peer: &Peer) -> Tracked {
        let stream = Stream {
            protocol,
            pid: peer.pid,
            peer: Arc::clone(peer.principal()),
            opened: self.now(),
            resources: Vec::new(),
        };
        Tracked {
            id: self.table().open(stream),
            holders: self.clone(),
        }
    }

    /// What all of them hold, in sum; `current` is the hash of the trust domain's bundle.
    pub fn summary(&self, current: &str) -> Summary {
        let table = self.table();
        summary::of(
            table.streams().map(|(_, stream)| stream),
            current,
            table.untracked() == 0,
        )
    }

    /// The oldest `limit` streams, how many there are, and how many resources no count is
    /// kept of.
    pub fn shown(&self, limit: usize) -> (Vec<(StreamId, Stream)>, usize, usize) {
        let table = self.table();
        let shown = table.streams().take(limit);
        let shown = shown.map(|(id, stream)| (id, stream.clone())).collect();
        (shown, table.len(), table.untracked())
    }

    /// Changes with what somebody holds.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.shared.changed.subscribe()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        let table = &self.shared.table;
        table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> OffsetDateTime {
        self.shared.clock.now()
    }

    fn note(&self) {
        self.shared.changed.send_replace(());
    }
}

impl Tracked {
    /// A resource is about to be sent.
    pub fn sent(&self, name: &str, version: &str, content: Arc<Content>) {
        let now = self.holders.now();
        self.holders
            .table()
            .sent(self.id, name, version, content, now);
    }

    /// The client says that it has held this since an earlier stream.
    pub fn brought(&self, name: &str, version: &str, content: Arc<Content>) {
        self.sent(name, version, content);
        self.acknowledged(name, version);
    }

    /// The client runs on it.
    pub fn acknowledged(&self, name: &str, version: &str) {
        let now = self.holders.now();
        let took = self
            .holders
            .table()
            .acknowledged(self.id, name, version, now);
        if let Some(lag) = took {
            self.holders.shared.metrics.acknowledged_after(lag);
            self.holders.note();
        }
    }

    /// The client refuses it and keeps what it has.
    pub fn refused(&self, name: &str, version: &str, reason: &str) {
        self.holders.table().refused(self.id, name, version, reason);
    }

    /// The client wants these alone from now on.
    pub fn keep(&self, wanted: impl Fn(&str) -> bool) {
        self.holders.table().keep(self.id, wanted);
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        self.holders.table().close(self.id);
        self.holders.note();
    }
}
