//! The agent is upgraded in place, with its CA away too.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use citadel_tests::dir::TestDir;
use citadel_tests::wait;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use serde_json::Value;
use tonic::Code;

use super::workloads::Fetches;
use super::{RENEWAL, Scene, TTL};
use crate::envoy::traffic::Traffic;
use crate::sds_protocol::script::Script;
use crate::sds_protocol::status::status;

/// Long enough for everything that happens without the CA.
const LONG: Duration = Duration::from_mins(1);

#[tokio::test]
async fn an_upgrade_without_the_ca_refuses_no_connect_and_issues_nothing_anew() {
    let mut scene = Scene::start("upgrade", LONG, |ca| ca, |agent| agent).await;
    scene.mesh.node.ca.process().kill().await;
    let before = scene.follower.held();
    let names = ["default", "ROOTCA"];
    let mut script = Script::open(&scene.mesh.node, &names).await;
    let first = script.next().await;
    let outage = Fetches::start(&scene.mesh.node.agent.socket());
    let file = inode(&scene);
    for _ in 0..3 {
        let old = scene.mesh.node.agent.process().pid();
        scene.mesh.node.agent.upgrade().await;
        assert_ne!(scene.mesh.node.agent.process().pid(), old);
        // An old stream is told to come again, and has at once what it had.
        assert_eq!(script.end().await.code(), Code::Unavailable);
        script = Script::open(&scene.mesh.node, &names).await;
        assert_eq!(script.next().await.serials, first.serials);
        assert_eq!(inode(&scene), file, "another socket");
        assert_eq!(scene.follower.held(), before);
    }
    // Both Envoys come to the third process, and shake hands with what it gives them.
    let dir = TestDir::new("upgrade-status");
    wait::until("streams of both Envoys", RENEWAL, async || {
        let shown = status(&scene.mesh.node, &dir).await;
        let streams = shown["streams"].as_array()?.iter();
        let peers = streams.filter_map(|stream| stream["peer"].as_str());
        let pods: BTreeSet<_> = peers.filter(|peer| peer.contains("pod ")).collect();
        (pods.len() == 2).then_some(())
    })
    .await;
    let traffic = Traffic::start(&scene.mesh);
    wait::until("more fetches", RENEWAL, async || {
        outage.answers().checked_sub(100)
    })
    .await;
    let seen = traffic.stop().await;
    seen.none_failed();
    assert_eq!(seen.client_serials.len(), 1, "{:?}", seen.client_serials);
    let fetched = outage.stop().await;
    fetched.none_failed();
    assert_eq!(fetched.serials, BTreeSet::from([before.serial.clone()]));
    println!(
        "{} fetches over three upgrades, {} tries told to come again",
        fetched.answers, fetched.retried
    );

    let log = scene.mesh.node.agent.log();
    assert_eq!(log.matches("this agent takes over").count(), 3);
    let attested = log.matches("the CA knows this agent").count();
    assert_eq!(attested, 1, "no process but the first attested");

    // The CA is back: each renews at its slot, under the identity that was handed over.
    scene.mesh.node.ca.start_again().await;
    scene.follower.renewed(LONG).await;
    scene.stop().await;
}

/// SIGHUP, which is the supervisor's way: the agent starts its successor itself.
#[tokio::test]
async fn a_signal_starts_the_successor() {
    let scene = Scene::start("hangup", TTL, |ca| ca, |agent| agent).await;
    let agent = &scene.mesh.node.agent;
    let pid = Pid::from_raw(agent.process().pid());
    // The successor is in its group, and nobody's child once it has ended.
    let _group = Group(pid);
    kill(pid, Signal::SIGHUP).expect("it lives");
    let ended = agent.process().wait(RENEWAL).await;
    assert!(ended.success(), "{ended:?}");
    wait::until("the successor is ready", RENEWAL, async || {
        agent.is_ready().await.then_some(())
    })
    .await;
    let serving = serving(&agent.log());
    assert_eq!(serving.len(), 2, "{serving:?}");
    assert_ne!(serving[1], serving[0]);
    scene.renewed().await;
    scene.stop().await;
}

/// Killed at the end.
struct Group(Pid);

impl Drop for Group {
    fn drop(&mut self) {
        let _ = killpg(self.0, Signal::SIGKILL);
    }
}

fn inode(scene: &Scene) -> (u64, u64) {
    let socket = std::fs::metadata(scene.mesh.node.agent.socket()).expect("a socket");
    (socket.dev(), socket.ino())
}

/// The processes that have served, by their pids.
fn serving(log: &str) -> Vec<u64> {
    let lines = log
        .lines()
        .filter(|line| line.contains("citadel-agent serves"));
    let lines = lines.filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines
        .filter_map(|line| line["pid"].as_u64().or(line["fields"]["pid"].as_u64()))
        .collect()
}
