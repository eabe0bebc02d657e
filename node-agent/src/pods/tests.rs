#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{path::PathBuf, time::Duration};

use citadel_kubernetes::Event;
use citadel_runtime::Shutdown;
use serde_json::json;
use tokio::time::Instant;

use super::{config::PrepareFor, *};
use crate::{
    secrets::{ManagerOptions, SecretKey, State, Wanted},
    testing::World,
    testing_agent::soon,
};

fn pod(uid: &str, folder: &str, phase: &str) -> NodePod {
    let object = json!({
        "metadata": { "uid": uid, "name": uid, "namespace": "shop" },
        "spec": {
            "nodeName": "n1",
            "serviceAccountName": "web",
            "containers": [{ "name": "app", "image": "web:1" }],
            "volumes": [{ "name": "v", "hostPath": { "path": folder } }],
        },
        "status": { "phase": phase },
    });
    serde_json::from_str(&object.to_string()).unwrap()
}

fn wanted(uid: &str) -> Wanted {
    Wanted {
        key: SecretKey::Pod { uid: uid.into() },
        principal: format!("pod {uid}").into(),
        revision: 0,
        spiffe_id: None,
        ttl_seconds: 0,
        token: None,
    }
}

struct Node {
    world: World,
    known: Arc<NodePods>,
    pods: Pods,
    shutdown: Shutdown,
}

impl Node {
    fn start(prepare: PrepareFor, limit: usize) -> Self {
        let world = World::with(ManagerOptions::default());
        let known = Arc::new(NodePods::default());
        let pods = Pods::of(Arc::clone(&known));
        let settings = PodsSettings {
            source: Source::ApiServer {
                node: "n1".into(),
                kubeconfig: None,
            },
            prepare,
            folder: PathBuf::from("/run/citadel"),
            limit,
            keep: Duration::from_mins(5),
            ttl_seconds: 0,
        };
        let shutdown = Shutdown::new();
        shutdown.spawn(pods.clone().run(
            settings,
            Some("own".into()),
            world.manager.clone(),
            Metrics::default(),
            shutdown.signal(),
        ));
        Self {
            world,
            known,
            pods,
            shutdown,
        }
    }

    fn shows(&self, event: Event<NodePod>) {
        self.known.apply(event, Instant::now().into_std());
    }

    /// The pods that the CA was asked for.
    async fn asked(&self, count: usize) -> Vec<String> {
        let asked = async {
            loop {
                let seen = self.world.ca.seen();
                if seen.len() >= count {
                    return seen;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let seen = tokio::time::timeout(Duration::from_secs(20), asked).await;
        let name = |seen: &crate::testing::Seen| match &seen.subject {
            citadel_proto::v1::issue_item::Subject::Pod(pod) => pod.pod_uid.clone(),
            other => panic!("{other:?}"),
        };
        seen.expect("the CA is asked").iter().map(name).collect()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.shutdown.trigger();
    }
}

#[tokio::test(start_paused = true)]
async fn who_follows_a_pod_hears_of_its_changes_alone() {
    let node = Node::start(PrepareFor::Nobody, 10);
    let uid = PodUid::Api("u1".into());
    let mut state = node.pods.follow(&uid).unwrap();
    assert!(matches!(&*state.borrow(), PodState::Unknown));
    node.shows(Event::Applied(pod("u1", "/", "Pending")));
    soon(state.changed()).await.unwrap();
    assert!(state.borrow_and_update().live().is_some());
    node.shows(Event::Applied(pod("u2", "/", "Pending")));
    node.shows(Event::Applied(pod("u1", "/", "Running")));
    soon(state.changed()).await.unwrap();
    assert!(state.borrow_and_update().live().is_some());
    node.shows(Event::Applied(pod("u2", "/", "Running")));
    assert!(!state.has_changed().unwrap());
    node.shows(Event::Deleted(pod("u1", "/", "Running")));
    soon(state.changed()).await.unwrap();
    assert!(matches!(&*state.borrow(), PodState::Gone));
    assert!(Pods::default().follow(&uid).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_is_gone_frees_its_secrets_at_once() {
    let node = Node::start(PrepareFor::Nobody, 10);
    node.shows(Event::Applied(pod("u1", "/", "Running")));
    node.shows(Event::Applied(pod("u2", "/", "Running")));
    let mut gone = node.world.manager.subscribe(wanted("u1")).unwrap();
    let mut stays = node.world.manager.subscribe(wanted("u2")).unwrap();
    for state in [&mut gone, &mut stays] {
        let ready = |state: &State| matches!(state, State::Ready(_));
        soon(state.wait_for(ready)).await.unwrap();
    }
    node.shows(Event::Applied(pod("u1", "/", "Failed")));
    let ended = gone.wait_for(|state| matches!(state, State::Denied(_)));
    let State::Denied(reason) = soon(ended).await.unwrap().clone() else {
        panic!("it is denied");
    };
    assert_eq!(&*reason, GONE);
    assert!(matches!(&*stays.borrow(), State::Ready(_)));
}

#[tokio::test(start_paused = true)]
async fn an_identity_is_ready_before_its_pod_asks() {
    let node = Node::start(PrepareFor::Mounted, 10);
    node.shows(Event::Applied(pod("u1", "/run/citadel", "Pending")));
    // This one does not reach the socket.
    node.shows(Event::Applied(pod("u2", "/var/log", "Pending")));
    node.shows(Event::Applied(pod("u3", "/run", "Pending")));
    node.shows(Event::Applied(pod("own", "/run/citadel", "Pending")));
    let mut asked = node.asked(2).await;
    asked.sort();
    assert_eq!(asked, ["u1", "u3"]);
    let subscription = node.world.manager.subscribe(wanted("u1")).unwrap();
    assert!(matches!(&*subscription.borrow(), State::Ready(_)));
    // A change of the pod asks for nothing more.
    node.shows(Event::Applied(pod("u1", "/run/citadel", "Running")));
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(node.asked(2).await.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn so_many_are_prepared_and_no_more() {
    let node = Node::start(PrepareFor::All, 2);
    node.shows(Event::ListStarted);
    let three = ["u1", "u2", "u3"].map(|uid| pod(uid, "/", "Pending"));
    node.shows(Event::Page(three.into()));
    node.shows(Event::ListFinished);
    node.asked(2).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(node.asked(2).await.len(), 2);
}
