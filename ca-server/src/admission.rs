//! Overload is answered early. Requests wait in queues, one for each node (an agent's node,
//! else the peer's address), and the queues are served in turn, so that one flooding node
//! keeps nobody else waiting; nor does it ever have all places at once, so that who comes next
//! is served at once. What does not fit is refused with a retry hint. A node whose own queue
//! overflows while others are there keeps half of the cores at most: with all of them busy,
//! each step of the others' requests would wait for a core.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    num::NonZero,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use citadel_runtime::tls::host_of;
use tokio::{sync::oneshot, time::Instant};

/// For how long a lane is held to half of the cores after its queue overflowed. Who heeds the
/// retry hint has its places back by then.
const FLOODING_FOR: Duration = Duration::from_secs(1);

/// For how long after its last request a lane counts as there.
const THERE_FOR: Duration = Duration::from_secs(10);

/// The limits.
#[derive(Clone, Copy, Debug)]
pub struct AdmissionLimits {
    /// Requests served at once. One node has three quarters of these places at most.
    pub in_flight: usize,
    /// Requests waiting, over all nodes.
    pub queue: usize,
    /// Requests waiting of one node.
    pub queue_per_node: usize,
}

/// A queue is full.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{waiting} requests are waiting already ({scope}); retry after {retry_after:?}")]
pub struct Overloaded {
    scope: &'static str,
    waiting: usize,
    /// When a retry makes sense.
    pub retry_after: Duration,
}

/// Whose turn it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Lane {
    /// The agent of a node.
    Node(String),
    /// A peer without an agent's SVID; IPv6 by /64, which one host can have whole.
    Peer(IpAddr),
    /// The CA's own needs.
    Own,
}

impl Lane {
    /// The lane of a peer that is not a proven agent.
    pub fn of_peer(address: IpAddr) -> Self {
        Self::Peer(host_of(address))
    }
}

/// Hands out turns.
pub struct Admission {
    limits: AdmissionLimits,
    /// Places that a flooding lane may have at once. A request at work keeps one core busy at
    /// most, so this leaves the others half of them.
    flooding_share: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    in_flight: usize,
    waiting: usize,
    /// Lanes with somebody served or waiting.
    lanes: HashMap<Lane, Place>,
    /// Lanes with somebody waiting and a place left of their share, in the order of their
    /// turns. While it is not empty, every place is taken.
    order: VecDeque<Lane>,
    presence: Presence,
}

/// Which lanes were there lately, as far as the question goes whether a lane is alone.
#[derive(Default)]
struct Presence {
    newest: Option<(Lane, Instant)>,
    /// The newest request of any lane but that one.
    other: Option<Instant>,
}

#[derive(Default)]
struct Place {
    in_flight: usize,
    waiting: VecDeque<oneshot::Sender<Turn>>,
    /// It is in [`State::order`].
    in_order: bool,
    /// When its queue was last full.
    overflowed: Option<Instant>,
}

/// The right to be served; ends when dropped.
pub struct Turn {
    admission: Arc<Admission>,
    lane: Lane,
}

impl AdmissionLimits {
    /// Places that one lane may have at once.
    fn share(&self) -> usize {
        let kept = (self.in_flight / 4).max(1);
        self.in_flight.saturating_sub(kept).max(1)
    }
}

impl Admission {
    /// An empty queue with these limits, on this machine's cores.
    pub fn new(limits: AdmissionLimits) -> Arc<Self> {
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        Self::on_cores(limits, cores)
    }

    fn on_cores(limits: AdmissionLimits, cores: usize) -> Arc<Self> {
        Arc::new(Self {
            limits,
            flooding_share: (cores / 2).clamp(1, limits.share()),
            state: Mutex::default(),
        })
    }

    /// Waits for a turn.
    ///
    /// # Errors
    /// [`Overloaded`], at once, when the lane's queue or the whole one is full.
    pub async fn enter(self: &Arc<Self>, lane: Lane) -> Result<Turn, Overloaded> {
        let now = Instant::now();
        let receiver = {
            let mut state = self.lock();
            state.presence.saw(&lane, now);
            let waits = state
                .lanes
                .get(&lane)
                .is_some_and(|place| !place.waiting.is_empty());
            // Whoever waits in this lane came first; those of other lanes wait for their share.
            if !waits
                && state.in_flight < self.limits.in_flight
                && self.has_room(&state, &lane, now)
            {
                state.lanes.entry(lane.clone()).or_default().in_flight += 1;
                state.in_flight += 1;
                return Ok(self.turn(lane));
            }
            self.enqueue(&mut state, &lane, now)?
        };
        // The sender is dropped only with the queue itself.
        receiver.await.map_err(|_| Overloaded {
            scope: "shutting down",
            waiting: 0,
            retry_after: Duration::from_secs(1),
        })
    }

    /// Requests waiting now.
    pub fn waiting(&self) -> usize {
        self.lock().waiting
    }

    fn turn(self: &Arc<Self>, lane: Lane) -> Turn {
        Turn {
            admission: self.clone(),
            lane,
        }
    }

    /// Whether a lane has fewer places than it may have now.
    fn has_room(&self, state: &State, lane: &Lane, now: Instant) -> bool {
        let Some(place) = state.lanes.get(lane) else {
            return true;
        };
        let within = |then: Instant, span| now.duration_since(then) < span;
        let floods = place
            .overflowed
            .is_some_and(|then| within(then, FLOODING_FOR))
            && state
                .presence
                .beside(lane)
                .is_some_and(|then| within(then, THERE_FOR));
        place.in_flight
            < if floods {
                self.flooding_share
            } else {
                self.limits.share()
            }
    }

    fn enqueue(
        &self,
        state: &mut State,
        lane: &Lane,
        now: Instant,
    ) -> Result<oneshot::Receiver<Turn>, Overloaded> {
        let full = |scope, waiting| Overloaded {
            scope,
            waiting,
            retry_after: Duration::from_secs(1),
        };
        let all = state.waiting;
        let place = state.lanes.entry(lane.clone()).or_default();
        let in_lane = place.waiting.len();
        let refused = if in_lane >= self.limits.queue_per_node {
            place.overflowed = Some(now);
            Some(full("of this node", in_lane))
        } else if all >= self.limits.queue {
            Some(full("in all", all))
        } else {
            None
        };
        if let Some(refused) = refused {
            state.forget_if_idle(lane);
            return Err(refused);
        }
        let (sender, receiver) = oneshot::channel();
        place.waiting.push_back(sender);
        state.waiting += 1;
        self.line_up(state, lane, now);
        Ok(receiver)
    }

    /// Puts a lane in line if somebody waits in it and it has room.
    fn line_up(&self, state: &mut State, lane: &Lane, now: Instant) {
        if !self.has_room(state, lane, now) {
            return;
        }
        if let Some(place) = state.lanes.get_mut(lane)
            && !place.in_order
            && !place.waiting.is_empty()
        {
            place.in_order = true;
            state.order.push_back(lane.clone());
        }
    }

    /// The turn of a lane has ended: its place is free, and it may be in line again.
    fn leave(&self, state: &mut State, lane: &Lane, now: Instant) {
        state.in_flight -= 1;
        if let Some(place) = state.lanes.get_mut(lane) {
            place.in_flight -= 1;
        }
        self.line_up(state, lane, now);
        state.forget_if_idle(lane);
    }

    /// Gives a free place to the lane whose turn it is.
    fn next(&self, state: &mut State, now: Instant) -> Option<(Lane, oneshot::Sender<Turn>)> {
        if state.in_flight >= self.limits.in_flight {
            return None;
        }
        while let Some(lane) = state.order.pop_front() {
            if let Some(place) = state.lanes.get_mut(&lane) {
                place.in_order = false;
            }
            // It may have begun to flood since it was put in line.
            let sender = if self.has_room(state, &lane, now) {
                state.take(&lane)
            } else {
                None
            };
            self.line_up(state, &lane, now);
            match sender {
                Some(sender) => return Some((lane, sender)),
                None => state.forget_if_idle(&lane),
            }
        }
        None
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The first who waits in a lane and has not given up takes a place.
    fn take(&mut self, lane: &Lane) -> Option<oneshot::Sender<Turn>> {
        let place = self.lanes.get_mut(lane)?;
        while let Some(sender) = place.waiting.pop_front() {
            self.waiting -= 1;
            if !sender.is_closed() {
                place.in_flight += 1;
                self.in_flight += 1;
                return Some(sender);
            }
        }
        None
    }

    fn forget_if_idle(&mut self, lane: &Lane) {
        let idle = |place: &Place| place.in_flight == 0 && place.waiting.is_empty();
        if self.lanes.get(lane).is_some_and(idle) {
            self.lanes.remove(lane);
        }
    }
}

impl Presence {
    fn saw(&mut self, lane: &Lane, now: Instant) {
        match &mut self.newest {
            // The CA's own needs are no neighbour: they come once in a while.
            _ if *lane == Lane::Own => {}
            Some((newest, at)) if newest == lane => *at = now,
            newest => {
                self.other = newest.take().map(|(_, at)| at);
                self.newest = Some((lane.clone(), now));
            }
        }
    }

    /// When a lane other than this one last sent a request.
    fn beside(&self, lane: &Lane) -> Option<Instant> {
        match &self.newest {
            Some((newest, _)) if newest == lane => self.other,
            newest => newest.as_ref().map(|(_, at)| *at),
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let now = Instant::now();
        let next = {
            let mut state = self.admission.lock();
            self.admission.leave(&mut state, &self.lane, now);
            // More than one, if a lane has its whole share again.
            std::iter::from_fn(|| self.admission.next(&mut state, now)).collect::<Vec<_>>()
        };
        // If a receiver vanished just now, its turn comes back and drops here: the next one in
        // the queue gets it.
        for (lane, sender) in next {
            let _ = sender.send(self.admission.turn(lane));
        }
    }
}

#[cfg(test)]
mod tests;
