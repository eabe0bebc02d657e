//! The agent's own life: its end, and its clock.

use std::time::Instant;

use citadel_tests::dir::TestDir;
use citadel_tests::parts::part;
use citadel_tests::wait;

use super::workloads::one;
use super::{RENEWAL, Scene, TTL};

/// Killed under load, and started again: Envoys keep what they have, and get fresh ones.
/// How long that takes is printed; it is measured in `citadel bench agent`.
#[tokio::test]
async fn an_agent_killed_under_load_has_fresh_secrets_at_once() {
    let mut scene = Scene::start("killed", TTL, |ca| ca, |agent| agent).await;
    let mut took = Vec::new();
    for _ in 0..3 {
        let before = scene.follower.held();
        scene.mesh.node.agent.process().kill().await;
        let killed = Instant::now();
        scene.mesh.node.agent.start_again().await;
        let socket = scene.mesh.node.agent.socket();
        let fresh = wait::until("a fresh secret", RENEWAL, async || one(&socket).await.ok()).await;
        took.push(killed.elapsed());
        // No key survives on a disk.
        assert_ne!(fresh.serial, before.serial);
        wait::until("the stream is followed again", RENEWAL, async || {
            (scene.follower.held().serial != before.serial).then_some(())
        })
        .await;
    }
    println!("from kill -9 to fresh secrets: {took:?}");
    // Envoys come back after a pause of theirs, and renew with the others from then on.
    for _ in 0..2 {
        scene.renewed().await;
    }
    let seen = scene.traffic.stop().await;
    seen.none_failed();
    assert!(seen.client_serials.len() >= 2, "{:?}", seen.client_serials);
    scene.mesh.refused_nothing();
    // Its stream breaks each time; what it holds is good all the while.
    assert!(scene.follower.end().await.len() >= 3);
    let fetched = scene.fetches.stop().await;
    assert!(fetched.answers >= 3, "{fetched:#?}");
}

/// An hour forward and back, the monotonic clock left as it is.
#[tokio::test]
async fn an_agent_whose_clock_jumps_an_hour_keeps_everything_renewed() {
    let dir = TestDir::new("clock");
    let clock = dir.write("offset", "+0\n");
    let scene = Scene::start(
        "clock",
        TTL,
        |ca| ca,
        |agent| {
            agent
                .env("LD_PRELOAD", part("FAKETIME").to_str().unwrap())
                .env("FAKETIME_TIMESTAMP_FILE", clock.to_str().unwrap())
                .env("FAKETIME_NO_CACHE", "1")
                .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
                .env("NO_FAKE_STAT", "1")
        },
    )
    .await;
    let agent = scene.mesh.node.agent.process();
    for (offset, says) in [("+3600\n", 3600), ("+0\n", -3600)] {
        dir.write("offset", offset);
        agent
            .log_line("it notices", RENEWAL, |line| {
                line.contains("the machine's clock was set") && jump_of(line) == Some(says)
            })
            .await;
        for _ in 0..2 {
            scene.renewed().await;
        }
    }
    let log = scene.mesh.node.agent.log();
    assert!(log.contains("this machine's clock is ahead of the CA's"));
    scene.stop().await;
}

/// The seconds of a jump, to the nearest ten.
fn jump_of(line: &str) -> Option<i64> {
    let line: serde_json::Value = serde_json::from_str(line).ok()?;
    let seconds = line["seconds"]
        .as_i64()
        .or(line["fields"]["seconds"].as_i64())?;
    Some((seconds + 5 * seconds.signum()) / 10 * 10)
}
