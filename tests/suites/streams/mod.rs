//! Five hundred SDS streams of real Envoys on one agent, for many lifetimes of their
//! certificates.

mod mesh;
mod traffic;

use std::time::Duration;

use citadel_tests::wait;
use mesh::{EACH, Mesh, STREAMS};
use tokio::time::{Instant, sleep_until};
use traffic::Traffic;

/// From the start of both Envoys until every stream has its secret.
const UP: Duration = Duration::from_secs(60);

/// How long requests go through them.
const TRAFFIC: Duration = Duration::from_secs(120);

/// How long memory may still grow: over two lifetimes, in which each part of the agent has
/// renewed and pushed.
const FIRST_LIFETIMES: Duration = Duration::from_secs(35);

/// How long memory is looked at, at the beginning and at the end: longer than a lifetime.
const WINDOW: Duration = Duration::from_secs(20);

/// What the allocator may keep more at one time than at another, in bytes. A stream that kept
/// the secret of each push would add more than this in the time: 500 streams, 2 KB, at least
/// eight pushes.
const NOISE: f64 = 3e6;

/// From a renewal until each of its streams has acknowledged it.
const SETTLED: Duration = Duration::from_secs(30);

/// Certificates of 15 s. No request fails, nothing is refused, each stream gets each renewal
/// once and nothing else, and what the agent holds in memory stays what it is.
#[tokio::test]
async fn two_envoys_with_250_streams_each_get_every_renewal_once_and_no_request_fails() {
    let mesh = Mesh::start("streams", "15s").await;
    wait::until("every stream has its secret", UP, async || {
        let counted = mesh.counted().await;
        (counted.streams == STREAMS && counted.acks >= STREAMS).then_some(())
    })
    .await;
    wait::until("an answer each way", UP, async || {
        let answers = (mesh.ask(0, 0).await, mesh.ask(1, 0).await);
        matches!(answers, (Ok(_), Ok(_))).then_some(())
    })
    .await;

    let begun = Instant::now();
    let traffic = Traffic::start(&mesh);
    let before = mesh.settled(SETTLED).await;
    sleep_until(begun + FIRST_LIFETIMES).await;
    let early = mesh.memory(WINDOW).await;
    sleep_until(begun + TRAFFIC - WINDOW).await;
    let late = mesh.memory(WINDOW).await;
    let seen = traffic.stop().await;
    let after = mesh.settled(SETTLED).await;

    seen.none_failed();
    // Each of the paths, again and again.
    assert!(seen.answers > 1_000, "only {} answers", seen.answers);
    for serials in &seen.serials {
        assert!(serials.len() >= 8, "{serials:?}");
    }
    assert_eq!(after.nacks, 0);
    assert_eq!(mesh.rejected().await, [0, 0]);
    assert_eq!(after.streams, STREAMS, "streams were lost or opened anew");
    let renewals = after.renewals - before.renewals;
    assert!(renewals >= 16, "{renewals} renewals of two certificates");
    // Each Envoy has a certificate of its own, which each of its streams is sent once.
    assert_eq!(
        after.acks - before.acks,
        renewals * EACH,
        "pushes for {renewals} renewals"
    );
    println!("agent: {early} bytes after the first lifetimes, {late} at the end");
    assert!(late <= early + NOISE, "{early} bytes, then {late}");
}
