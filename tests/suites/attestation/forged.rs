//! What a process, or an agent, makes up.

use citadel_tests::cgroup::{CONTAINER, Cgroup, Version};
use citadel_tests::client::Admin;
use citadel_tests::dir::TestDir;
use citadel_tests::peer::Peer;
use serde_json::json;
use tonic::Code;

use super::fetch;
use crate::node::{Node, NodePod, user_entry};

/// A wrapper: root of a user namespace of its own, with a `/proc` of its own in which it is
/// process 1, and `script` run before the program.
fn in_user_namespace(script: &str) -> Vec<String> {
    let unshare = [
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
        "--pid",
        "--cgroup",
        "--fork",
        "--mount-proc",
        "sh",
        "-e",
        "-c",
    ];
    let script = format!("{script}\nexec \"$@\"");
    let words = unshare.into_iter().chain([script.as_str(), "sh"]);
    words.map(str::to_owned).collect()
}

#[tokio::test]
async fn a_proc_file_system_forged_in_a_user_namespace_changes_nothing() {
    let pods = NodePod::create("forged", &["web", "victim"]).await;
    let node = Node::start("forged", "1h").await;
    let (dir, socket) = (TestDir::new("forged"), node.agent.socket());
    let cgroup = pods[0].cgroup(Version::V1);
    let victim = format!("0::/kubepods/burstable/pod{}/{CONTAINER}", pods[1].uid);
    let forged = dir.write("cgroup", format!("{victim}\n"));
    // Whoever looks from in there sees the victim.
    let script = format!(
        "mount --bind {} /proc/1/cgroup\ngrep -q '{}' /proc/1/cgroup",
        forged.display(),
        pods[1].uid
    );
    let wrapper = [cgroup.wrapper(), in_user_namespace(&script)].concat();
    let peer = Peer::connect(&dir, &socket, &wrapper).await;
    let ids = fetch(peer.channel(), None).await.expect("its own");
    assert_eq!(ids, [pods[0].spiffe_id()]);
    // And in no pod at all it stays in none.
    let peer = Peer::connect(&dir, &socket, &in_user_namespace(&script)).await;
    let refused = fetch(peer.channel(), None).await.expect_err("no pod");
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
}

#[tokio::test]
async fn a_forged_mountinfo_changes_nothing() {
    let pods = NodePod::create("mountinfo", &["web", "victim"]).await;
    let node = Node::start("mountinfo", "1h").await;
    let (dir, socket) = (TestDir::new("mountinfo"), node.agent.socket());
    let cgroup = pods[0].cgroup(Version::V1);
    // The mount table of the process, as the host sees it, names the victim's cgroup as the
    // root of what is mounted where cgroups are.
    let name = format!("kubepods/burstable/pod{}/{CONTAINER}", pods[1].uid);
    let folder = dir.join(&name);
    std::fs::create_dir_all(&folder).expect("a folder");
    let script = format!(
        "mount --bind {} /sys/fs/cgroup\ngrep -q '{name} /sys/fs/cgroup' /proc/self/mountinfo",
        folder.display()
    );
    let wrapper = [cgroup.wrapper(), in_user_namespace(&script)].concat();
    let peer = Peer::connect(&dir, &socket, &wrapper).await;
    let ids = fetch(peer.channel(), None).await.expect("its own");
    assert_eq!(ids, [pods[0].spiffe_id()]);
    let peer = Peer::connect(&dir, &socket, &in_user_namespace(&script)).await;
    let refused = fetch(peer.channel(), None).await.expect_err("no pod");
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
}

#[tokio::test]
async fn an_agent_with_an_edited_configuration_gets_what_its_node_may_have_and_no_more() {
    let own = NodePod::create("edited-1", &["web"]).await;
    let far = NodePod::create("edited-2", &["far"]).await;
    let entries = json!([user_entry("/far/root", "edited-2", 0)]);
    // It takes for pods what is called so at a place of its choice.
    let node = Node::with(
        "edited-1",
        |ca| ca.set("entries", entries),
        |agent| agent.set("cgroup_root", "/edited"),
    )
    .await;
    let (dir, socket) = (TestDir::new("edited"), node.agent.socket());
    let claims = |uid: &str| {
        let path = format!("edited/kubepods/burstable/pod{uid}/{CONTAINER}");
        Cgroup::new(Version::V1, &path)
    };
    let (real, forged) = (claims(&own[0].uid), claims(&far[0].uid));
    let peer = Peer::connect(&dir, &socket, &forged.wrapper()).await;
    let refused = fetch(peer.channel(), None)
        .await
        .expect_err("another node's pod");
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
    let outside = Peer::connect(&dir, &socket, &[]).await;
    let refused = fetch(outside.channel(), None)
        .await
        .expect_err("another node's entry");
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
    let admin = Admin::of(&node.ca);
    for id in [far[0].spiffe_id(), "spiffe://example.org/far/root".into()] {
        assert!(admin.list(&id, 1, 0).await.is_empty(), "{id}");
    }
    // What runs on its node it can have, whoever asks it.
    let peer = Peer::connect(&dir, &socket, &real.wrapper()).await;
    let ids = fetch(peer.channel(), None)
        .await
        .expect("a pod of this node");
    assert_eq!(ids, [own[0].spiffe_id()]);
}
