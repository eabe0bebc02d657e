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

fn paused() -> tokio::runtime::Runtime {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_time().start_paused(true).build().unwrap()
}

/// Lets as many of a lane's requests in as find room; the others wait.
fn flood(admission: &Arc<Admission>, requests: usize) -> (Vec<Turn>, Vec<Entering>, usize) {
    let (mut served, mut waiting, mut refused) = (Vec::new(), Vec::new(), 0);
    for _ in 0..requests {
        let mut enter = entering(admission, node("flood"));
        match poll_once(&mut enter) {
            Some(Ok(turn)) => served.push(turn),
            Some(Err(_)) => refused += 1,
            None => waiting.push(enter),
        }
    }
    (served, waiting, refused)
}

type Entering = Pin<Box<dyn Future<Output = Result<Turn, Overloaded>>>>;

fn entering(admission: &Arc<Admission>, lane: Lane) -> Entering {
    let admission = admission.clone();
    Box::pin(async move { admission.enter(lane).await })
}

/// Ends the turns of a lane one by one; whoever waited takes them.
fn serve(turns: &mut Vec<Turn>, waiting: &mut Vec<Entering>, ends: usize) {
    for _ in 0..ends {
        turns.pop();
        waiting.retain_mut(|wait| match poll_once(wait) {
            Some(turn) => {
                turns.push(turn.unwrap());
                false
            }
            None => true,
        });
    }
}

fn roomy() -> Arc<Admission> {
    let limits = AdmissionLimits {
        in_flight: 16,
        queue: 100,
        queue_per_node: 50,
    };
    Admission::on_cores(limits, 4)
}

#[tokio::test(start_paused = true)]
async fn a_flooding_node_keeps_half_of_the_cores_while_others_are_there() {
    let admission = roomy();
    drop(admission.enter(node("quiet")).await.unwrap());
    let (mut turns, mut waiting, refused) = flood(&admission, 70);
    assert_eq!((turns.len(), waiting.len(), refused), (12, 50, 8));
    serve(&mut turns, &mut waiting, 20);
    assert_eq!(turns.len(), 2, "half of four cores");
    assert!(!waiting.is_empty());
    // It is served all the same, and so is whoever comes besides.
    let before = waiting.len();
    serve(&mut turns, &mut waiting, 5);
    assert_eq!((turns.len(), waiting.len()), (2, before - 5));
    drop(admission.enter(node("quiet")).await.unwrap());
    // Whoever floods no more has its share again.
    tokio::time::advance(FLOODING_FOR).await;
    serve(&mut turns, &mut waiting, 1);
    assert_eq!(turns.len(), 12);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_alone_may_flood() {
    let admission = roomy();
    drop(admission.enter(node("quiet")).await.unwrap());
    drop(admission.enter(Lane::Own).await.unwrap());
    tokio::time::advance(THERE_FOR).await;
    drop(admission.enter(Lane::Own).await.unwrap());
    let (mut turns, mut waiting, refused) = flood(&admission, 70);
    assert_eq!(refused, 8);
    serve(&mut turns, &mut waiting, 20);
    assert_eq!(turns.len(), 12, "nobody else is there");
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
        let runtime = paused();
        let _time_stands_still = runtime.enter();
        let admission = Admission::on_cores(limits, 4);
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
                    !alive || state.in_flight == in_flight || !admission.has_room(&state, lane, Instant::now()),
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
