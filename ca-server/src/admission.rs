//! Overload is answered early. Requests wait in queues, one for each node (an agent's node,
//! else the peer's address), and the queues are served in turn, so that one flooding node
//! keeps nobody else waiting; nor does it ever have all places at once, so that who comes next
//! is served at once. What does not fit is refused with a retry hint.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use citadel_runtime::tls::host_of;
use tokio::sync::oneshot;

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
}

#[derive(Default)]
struct Place {
    in_flight: usize,
    waiting: VecDeque<oneshot::Sender<Turn>>,
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
    /// An empty queue with these limits.
    pub fn new(limits: AdmissionLimits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            state: Mutex::default(),
        })
    }

    /// Waits for a turn.
    ///
    /// # Errors
    /// [`Overloaded`], at once, when the lane's queue or the whole one is full.
    pub async fn enter(self: &Arc<Self>, lane: Lane) -> Result<Turn, Overloaded> {
        let receiver = {
            let mut state = self.lock();
            let free = state.in_flight < self.limits.in_flight;
            let place = state.lanes.entry(lane.clone()).or_default();
            // Whoever waits in this lane came first; those of other lanes wait for their share.
            if free && place.in_flight < self.limits.share() && place.waiting.is_empty() {
                place.in_flight += 1;
                state.in_flight += 1;
                return Ok(self.turn(lane));
            }
            self.enqueue(&mut state, lane)?
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

    fn enqueue(
        &self,
        state: &mut State,
        lane: Lane,
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
            Some(full("of this node", in_lane))
        } else if all >= self.limits.queue {
            Some(full("in all", all))
        } else {
            None
        };
        if let Some(refused) = refused {
            state.forget_if_idle(&lane);
            return Err(refused);
        }
        let (sender, receiver) = oneshot::channel();
        place.waiting.push_back(sender);
        if in_lane == 0 && place.in_flight < self.limits.share() {
            state.order.push_back(lane);
        }
        state.waiting += 1;
        Ok(receiver)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The turn of a lane has ended: its place is free, and it may be in line again.
    fn leave(&mut self, lane: &Lane, share: usize) {
        self.in_flight -= 1;
        if let Some(place) = self.lanes.get_mut(lane) {
            let had_its_share = place.in_flight >= share;
            place.in_flight -= 1;
            if had_its_share && !place.waiting.is_empty() {
                self.order.push_back(lane.clone());
            }
        }
        self.forget_if_idle(lane);
    }

    /// Gives a free place to the lane whose turn it is.
    fn next(&mut self, share: usize) -> Option<(Lane, oneshot::Sender<Turn>)> {
        while let Some(lane) = self.order.pop_front() {
            let Some(place) = self.lanes.get_mut(&lane) else {
                continue;
            };
            // A caller that gave up while waiting takes no turn.
            let mut next = None;
            while let Some(sender) = place.waiting.pop_front() {
                self.waiting -= 1;
                if !sender.is_closed() {
                    next = Some(sender);
                    break;
                }
            }
            if next.is_some() {
                place.in_flight += 1;
                self.in_flight += 1;
            }
            if !place.waiting.is_empty() && place.in_flight < share {
                self.order.push_back(lane.clone());
            }
            match next {
                Some(sender) => return Some((lane, sender)),
                None => self.forget_if_idle(&lane),
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

impl Drop for Turn {
    fn drop(&mut self) {
        let share = self.admission.limits.share();
        let next = {
            let mut state = self.admission.lock();
            state.leave(&self.lane, share);
            state.next(share)
        };
        // If the receiver vanished just now, the turn comes back and drops here: the next one
        // in the queue gets it.
        if let Some((lane, sender)) = next {
            let _ = sender.send(self.admission.turn(lane));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{
        future::Future,
        pin::Pin,
        sync::atomic::{AtomicUsize, Ordering},
        task::{Context, Poll, Waker},
    };

    use proptest::prelude::*;

    use super::*;

    fn node(name: &str) -> Lane {
        Lane::Node(name.into())
    }

    #[tokio::test]
    async fn a_full_queue_refuses_at_once() {
        let admission = Admission::new(AdmissionLimits {
            in_flight: 1,
            queue: 2,
            queue_per_node: 1,
        });
        let held = admission.enter(node("a")).await.unwrap();
        let waiting = tokio::spawn({
            let admission = admission.clone();
            async move { admission.enter(node("a")).await.is_ok() }
        });
        while admission.waiting() == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(
            admission.enter(node("a")).await.err().unwrap().scope,
            "of this node"
        );
        drop(held);
        assert!(waiting.await.unwrap());
    }

    #[tokio::test]
    async fn lanes_take_turns_beside_a_flood() {
        let admission = Admission::new(AdmissionLimits {
            in_flight: 1,
            queue: 1_000,
            queue_per_node: 500,
        });
        let held = admission.enter(node("flood")).await.unwrap();
        let served = Arc::new(AtomicUsize::new(0));
        let spawn = |lane: Lane| {
            let (admission, served) = (admission.clone(), served.clone());
            tokio::spawn(async move {
                let _turn = admission.enter(lane).await.unwrap();
                served.fetch_add(1, Ordering::Relaxed)
            })
        };
        let flood: Vec<_> = (0..400).map(|_| spawn(node("flood"))).collect();
        while admission.waiting() < 400 {
            tokio::task::yield_now().await;
        }
        let quiet = spawn(node("quiet"));
        while admission.waiting() < 401 {
            tokio::task::yield_now().await;
        }
        drop(held);
        assert!(
            quiet.await.unwrap() <= 2,
            "the quiet node waited for the flood"
        );
        for task in flood {
            task.await.unwrap();
        }
    }

    #[tokio::test]
    async fn one_node_never_has_all_places() {
        let admission = Admission::new(AdmissionLimits {
            in_flight: 8,
            queue: 100,
            queue_per_node: 100,
        });
        let mut served = Vec::new();
        for _ in 0..6 {
            served.push(admission.enter(node("flood")).await.unwrap());
        }
        let mut waits = Box::pin(admission.enter(node("flood")));
        assert!(poll_once(&mut waits).is_none(), "a seventh place");
        let quiet = poll_once(&mut Box::pin(admission.enter(node("quiet"))));
        let quiet = quiet.expect("a place is left for others").unwrap();
        drop(quiet);
        assert!(poll_once(&mut waits).is_none(), "the place of another");
        served.pop();
        waits.await.unwrap();
    }

    fn poll_once<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
        match Pin::new(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Enter(u8),
        Leave(usize),
        GiveUp(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0..4_u8).prop_map(Step::Enter),
            2 => any::<usize>().prop_map(Step::Leave),
            1 => any::<usize>().prop_map(Step::GiveUp),
        ]
    }

    proptest! {
        /// Whatever comes, leaves and gives up: no place too many, no share too large, and
        /// nobody waits for a place that is free for them.
        #[test]
        fn places_are_neither_overrun_nor_left_empty(
            in_flight in 1..9_usize,
            steps in proptest::collection::vec(step(), 0..200),
        ) {
            let limits = AdmissionLimits { in_flight, queue: 20, queue_per_node: 8 };
            let admission = Admission::new(limits);
            let mut turns = Vec::new();
            let mut waits = Vec::new();
            for step in steps {
                match step {
                    Step::Enter(lane) => {
                        let lane = node(&lane.to_string());
                        let enter = admission.clone();
                        let mut enter = Box::pin(async move { enter.enter(lane).await });
                        match poll_once(&mut enter) {
                            Some(Ok(turn)) => turns.push(turn),
                            Some(Err(_)) => {}
                            None => waits.push(enter),
                        }
                    }
                    Step::Leave(at) if !turns.is_empty() => {
                        drop(turns.swap_remove(at % turns.len()));
                    }
                    Step::GiveUp(at) if !waits.is_empty() => {
                        drop(waits.swap_remove(at % waits.len()));
                    }
                    Step::Leave(_) | Step::GiveUp(_) => {}
                }
                waits.retain_mut(|wait| match poll_once(wait) {
                    Some(turn) => {
                        turns.push(turn.unwrap());
                        false
                    }
                    None => true,
                });
                let state = admission.lock();
                prop_assert_eq!(state.in_flight, turns.len());
                prop_assert!(state.in_flight <= in_flight);
                prop_assert!(state.waiting >= waits.len());
                let served = |of: &Lane| turns.iter().filter(|turn| turn.lane == *of).count();
                for (lane, place) in &state.lanes {
                    prop_assert_eq!(place.in_flight, served(lane));
                    prop_assert!(place.in_flight <= limits.share());
                    let alive = place.waiting.iter().any(|sender| !sender.is_closed());
                    prop_assert!(
                        !alive || state.in_flight == in_flight || place.in_flight == limits.share(),
                        "{:?} waits for a place that is free", lane
                    );
                }
            }
            drop(turns);
            drop(waits);
            prop_assert_eq!(admission.lock().in_flight, 0);
        }
    }

    #[tokio::test]
    async fn those_who_gave_up_take_no_turn() {
        let admission = Admission::new(AdmissionLimits {
            in_flight: 1,
            queue: 10,
            queue_per_node: 10,
        });
        let held = admission.enter(Lane::Own).await.unwrap();
        for _ in 0..3 {
            let enter = admission.enter(node("a"));
            tokio::select! {
                biased;
                _ = enter => unreachable!("the only turn is held"),
                () = tokio::task::yield_now() => {}
            }
        }
        drop(held);
        assert_eq!(admission.waiting(), 0);
        let _all_free = admission.enter(node("b")).await.unwrap();
        assert_eq!(admission.lock().in_flight, 1);
    }

    #[test]
    fn a_host_has_one_lane_even_with_a_whole_ipv6_prefix() {
        let lane = |a: &str| Lane::of_peer(a.parse().unwrap());
        assert_eq!(lane("2001:db8::1"), lane("2001:db8::ffff"));
        assert_ne!(lane("2001:db8::1"), lane("2001:db8:0:1::1"));
        assert_eq!(lane("::ffff:10.0.0.1"), lane("10.0.0.1"));
    }
}
