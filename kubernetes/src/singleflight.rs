//! One piece of work at a time for each key; who asks meanwhile gets the same answer.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};

/// Work under way. The work lives as long as somebody waits for it: when all callers are gone, it is
/// dropped where it stands.
pub(crate) struct SingleFlight<K, V: Clone> {
    flights: Mutex<HashMap<K, WeakShared<BoxFuture<'static, V>>>>,
}

impl<K: Hash + Eq, V: Clone> SingleFlight<K, V> {
    pub(crate) fn new() -> Self {
        Self {
            flights: Mutex::new(HashMap::new()),
        }
    }

    /// The flight under way for `key`, or a new one that `start` begins. `start` may refuse.
    pub(crate) fn join<E>(
        &self,
        key: K,
        start: impl FnOnce() -> Result<BoxFuture<'static, V>, E>,
    ) -> Result<Shared<BoxFuture<'static, V>>, E> {
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        // What has landed, or was abandoned, is over. The map is as small as what is under way, so
        // that sweeping it costs little.
        flights.retain(|_, flight| flight.upgrade().is_some_and(|f| f.peek().is_none()));
        if let Some(flight) = flights.get(&key).and_then(WeakShared::upgrade) {
            return Ok(flight);
        }
        let flight = start()?.shared();
        if let Some(weak) = flight.downgrade() {
            flights.insert(key, weak);
        }
        Ok(flight)
    }
}
