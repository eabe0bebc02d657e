//! How much of requests is held in memory, for each caller and in all: from a request's head
//! until it is answered.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use crate::admission::Lane;

/// Bytes that the requests of one caller may hold: a hundred and more of the largest requests
/// with one certificate, sixteen of an agent's largest batches.
pub(super) const PER_LANE: usize = 16 * 1024 * 1024;
/// Bytes that all requests may hold.
pub(super) const IN_ALL: usize = 256 * 1024 * 1024;

/// There is no room for more.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{held} bytes of unanswered requests are held already ({scope})")]
pub(super) struct Full {
    scope: &'static str,
    held: usize,
}

/// The bytes that are held.
#[derive(Debug)]
pub(super) struct InFlight {
    per_lane: usize,
    in_all: usize,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    in_all: usize,
    /// Only callers that hold something.
    lanes: HashMap<Lane, usize>,
}

/// What one request holds; dropping it gives that back.
#[derive(Debug)]
pub(super) struct Share {
    of: Arc<InFlight>,
    lane: Lane,
    bytes: AtomicUsize,
}

impl InFlight {
    pub(super) fn new(per_lane: usize, in_all: usize) -> Arc<Self> {
        Arc::new(Self {
            per_lane,
            in_all,
            held: Mutex::default(),
        })
    }

    /// The share of a request of this caller, which holds nothing yet.
    pub(super) fn share(self: &Arc<Self>, lane: Lane) -> Share {
        Share {
            of: self.clone(),
            lane,
            bytes: AtomicUsize::new(0),
        }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.lock().in_all == 0 && self.lock().lanes.is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Share {
    /// Takes in more of the request.
    pub(super) fn add(&self, bytes: usize) -> Result<(), Full> {
        let mut held = self.of.lock();
        let Held { in_all, lanes } = &mut *held;
        let known = lanes.get_mut(&self.lane);
        let of_lane = known.as_ref().map_or(0, |of_lane| **of_lane);
        if of_lane + bytes > self.of.per_lane {
            return Err(Full {
                scope: "of this caller",
                held: of_lane,
            });
        }
        if *in_all + bytes > self.of.in_all {
            return Err(Full {
                scope: "in all",
                held: *in_all,
            });
        }
        *in_all += bytes;
        match known {
            Some(of_lane) => *of_lane += bytes,
            None => {
                lanes.insert(self.lane.clone(), bytes);
            }
        }
        // Whoever drops it has heard of every `add`.
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let bytes = *self.bytes.get_mut();
        let mut held = self.of.lock();
        held.in_all -= bytes;
        match held.lanes.get_mut(&self.lane) {
            Some(of_lane) if *of_lane > bytes => *of_lane -= bytes,
            _ => {
                held.lanes.remove(&self.lane);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn lane(name: &str) -> Lane {
        Lane::Node(name.into())
    }

    #[test]
    fn both_bounds_hold_and_what_is_answered_is_given_back() {
        let in_flight = InFlight::new(100, 150);
        let one = in_flight.share(lane("a"));
        one.add(60).unwrap();
        let two = in_flight.share(lane("a"));
        two.add(40).unwrap();
        assert_eq!(two.add(1).unwrap_err().scope, "of this caller");
        let other = in_flight.share(lane("b"));
        other.add(50).unwrap();
        assert_eq!(other.add(1).unwrap_err().scope, "in all");
        drop(one);
        other.add(50).unwrap();
        two.add(10).unwrap();
        drop((two, other));
        assert!(in_flight.is_empty(), "callers are forgotten");
    }
}
