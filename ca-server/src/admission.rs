//! Overload is answered early. Requests wait in queues, one for each node (an agent's node,
//! else the peer's address), and the queues are served in turn, so that one flooding node
//! keeps nobody else waiting. What does not fit is refused at once with a retry hint.

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
    /// Requests served at once.
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
    lanes: HashMap<Lane, VecDeque<oneshot::Sender<Turn>>>,
    /// Lanes with somebody waiting, in the order of their turns.
    order: VecDeque<Lane>,
}

/// The right to be served; ends when dropped.
pub struct Turn {
    admission: Arc<Admission>,
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
            if state.in_flight < self.limits.in_flight && state.waiting == 0 {
                state.in_flight += 1;
                return Ok(Turn {
                    admission: self.clone(),
                });
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

    fn enqueue(
        &self,
        state: &mut State,
        lane: Lane,
    ) -> Result<oneshot::Receiver<Turn>, Overloaded> {
        let in_lane = state.lanes.get(&lane).map_or(0, VecDeque::len);
        let full = |scope, waiting| Overloaded {
            scope,
            waiting,
            retry_after: Duration::from_secs(1),
        };
        if in_lane >= self.limits.queue_per_node {
            return Err(full("of this node", in_lane));
        }
        if state.waiting >= self.limits.queue {
            return Err(full("in all", state.waiting));
        }
        let (sender, receiver) = oneshot::channel();
        state.waiting += 1;
        if in_lane == 0 {
            state.order.push_back(lane.clone());
        }
        state.lanes.entry(lane).or_default().push_back(sender);
        Ok(receiver)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next waiting request, from the lane whose turn it is.
    fn next(state: &mut State) -> Option<oneshot::Sender<Turn>> {
        while let Some(lane) = state.order.pop_front() {
            let Some(queue) = state.lanes.get_mut(&lane) else {
                continue;
            };
            let sender = queue.pop_front();
            if queue.is_empty() {
                state.lanes.remove(&lane);
            } else {
                state.order.push_back(lane);
            }
            if let Some(sender) = sender {
                state.waiting -= 1;
                // A caller that gave up while waiting takes no turn.
                if !sender.is_closed() {
                    return Some(sender);
                }
            }
        }
        None
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.admission.lock();
        let Some(sender) = Admission::next(&mut state) else {
            state.in_flight -= 1;
            return;
        };
        drop(state);
        // If the receiver vanished just now, the turn comes back and drops here: the next one
        // in the queue gets it.
        let _ = sender.send(Turn {
            admission: self.admission.clone(),
        });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

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
