//! A process dies and its pid is taken by another: forced, in a pid namespace, by
//! the kernel's `ns_last_pid`.

use std::time::Duration;

use citadel_tests::cgroup::{Cgroup, Version};
use citadel_tests::dir::TestDir;
use citadel_tests::peer::Peer;
use citadel_tests::process::{Launch, Process};
use citadel_tests::wait;
use tonic::Code;

use super::{end_of, fetch, open};
use crate::node::{Node, NodePod};

/// A node whose agent is the first process of a pid namespace of its own.
struct Namespace {
    node: Node,
    dir: TestDir,
    /// The agent's pid outside.
    agent: i32,
}

impl Namespace {
    async fn start(name: &str) -> Self {
        let wrapper = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];
        let node = Node::with(
            name,
            |ca| ca,
            |agent| agent.set("svid_ttl", "1h").wrapped(wrapper),
        )
        .await;
        let parent = node.agent.process().pid();
        let children = format!("/proc/{parent}/task/{parent}/children");
        let children = std::fs::read_to_string(children).expect("the wrapper's children");
        let agent = children.trim().parse().expect("one child: the agent");
        Self {
            node,
            dir: TestDir::new(name),
            agent,
        }
    }

    /// A wrapper into the namespace and a cgroup.
    fn wrapper(&self, cgroup: Option<&Cgroup>) -> Vec<String> {
        let target = self.agent.to_string();
        let enter = ["nsenter", "--target", &target, "--pid", "--mount"].map(str::to_owned);
        let cgroup = cgroup.map(Cgroup::wrapper).unwrap_or_default();
        [cgroup, enter.into()].concat()
    }

    async fn peer(&self, cgroup: Option<&Cgroup>) -> Peer {
        let wrapper = self.wrapper(cgroup);
        Peer::connect(&self.dir, &self.node.agent.socket(), &wrapper).await
    }

    /// Starts a process that has this pid in the namespace, in this cgroup.
    async fn take_pid(&self, pid: i32, cgroup: &Cgroup) -> Process {
        // The shell forks once after it has set the number, and by nothing before.
        let script = format!(
            "echo {} > /proc/sys/kernel/ns_last_pid\nsleep 600 &\nwait",
            pid - 1
        );
        let shell = Launch::new("taker", "sh")
            .args(["-c", &script])
            .wrapped(self.wrapper(Some(cgroup)))
            .in_new_files()
            .start(&self.dir);
        wait::until(
            "the pid is taken again",
            Duration::from_secs(10),
            async || {
                let comm = format!("/proc/{}/root/proc/{pid}/comm", self.agent);
                std::fs::read_to_string(comm)
                    .ok()
                    .filter(|name| name.trim() == "sleep")
            },
        )
        .await;
        shell
    }

    /// The cgroup file of a pid of the namespace.
    fn cgroup_of(&self, pid: i32) -> String {
        std::fs::read_to_string(format!("/proc/{}/root/proc/{pid}/cgroup", self.agent))
            .expect("the namespace's /proc")
    }
}

/// The other process is there before the agent has looked at the connection at all.
#[tokio::test]
async fn a_pid_taken_again_before_the_agent_looks_gets_nothing() {
    let pods = NodePod::create("early", &["victim"]).await;
    let space = Namespace::start("early").await;
    let victim = pods[0].cgroup(Version::V1);

    // The control: the way itself works for a process that lives.
    let living = space.peer(Some(&victim)).await;
    assert_eq!(
        fetch(living.channel(), None).await.unwrap(),
        [pods[0].spiffe_id()]
    );

    // The agent stands still while the pid changes hands.
    space.node.agent.process().pause();
    let attacker = space.peer(None).await;
    let pid = attacker.pid();
    attacker.end().await;
    let taker = space.take_pid(pid, &victim).await;
    assert!(
        space.cgroup_of(pid).contains(&pods[0].uid),
        "{}",
        space.cgroup_of(pid)
    );
    space.node.agent.process().resume();

    let refused = fetch(attacker.channel(), None)
        .await
        .expect_err("it has died");
    assert!(
        matches!(refused.code(), Code::PermissionDenied | Code::Unavailable),
        "{refused:?}"
    );
    // Not just by chance: the taker was there all the time.
    assert!(taker.is_running() && space.cgroup_of(pid).contains(&pods[0].uid));
}

/// The connection was attested, then its process died: its successor under the same
/// pid neither keeps the old identity nor gets its own over this connection.
#[tokio::test]
async fn a_pid_taken_again_under_an_open_stream_closes_it() {
    let pods = NodePod::create("late", &["web", "victim"]).await;
    let space = Namespace::start("late").await;
    let (own, victim) = (pods[0].cgroup(Version::V1), pods[1].cgroup(Version::V1));
    let peer = space.peer(Some(&own)).await;
    let (mut stream, ids) = open(peer.channel(), None).await.unwrap();
    assert_eq!(ids, [pods[0].spiffe_id()]);

    let pid = peer.pid();
    peer.end().await;
    let _taker = space.take_pid(pid, &victim).await;
    let ended = end_of(&mut stream, Duration::from_secs(10)).await;
    assert_eq!(ended.code(), Code::Unavailable, "{ended:?}");
    let refused = fetch(peer.channel(), None)
        .await
        .expect_err("another process's pid");
    assert!(
        matches!(refused.code(), Code::PermissionDenied | Code::Unavailable),
        "{refused:?}"
    );
}
