//! Ten times more requests at once than the queue holds.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use citadel_tests::client::Client;
use citadel_tests::kubernetes::ApiServer;
use citadel_tests::pki::csr;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use serde_json::json;
use tonic::{Code, Status};

use super::{metric, waiting};
use crate::support::{AgentClient, Scene};

const IN_FLIGHT: u32 = 2;
/// Of which one node can have this many.
const SHARE: u32 = 1;
const QUEUE: u32 = 40;
/// So that one node can't have all of it.
const PER_NODE: u32 = 20;
const FLOOD: u32 = 10 * QUEUE;
/// How long the flood lasts, and how much of it passes before memory is measured.
const LASTS: Duration = Duration::from_secs(20);
const WARM: Duration = Duration::from_secs(5);
/// What an allocator may keep.
const GROWTH: f64 = 12.0 * 1024.0 * 1024.0;

fn limits() -> serde_json::Value {
    json!({ "in_flight": IN_FLIGHT, "queue": QUEUE, "queue_per_node": PER_NODE })
}

#[tokio::test]
async fn what_does_not_fit_is_refused_before_anything_else_is_answered() {
    let api = ApiServer::start().await;
    // Whoever has a turn keeps it until the API server goes on.
    let dir = citadel_tests::dir::TestDir::new("ca");
    let access = api.ca_access("citadel-system", &dir).await;
    let cluster = json!([{
        "name": "default", "kubeconfig": access.kubeconfig,
        "mode": "token_review", "api_deadline": "60s",
    }]);
    let scene = Scene::on(&api, |ca| {
        ca.set("clusters", cluster)
            .set("limits", limits())
            .set("limits.request_deadline", "60s")
    })
    .await;
    let web = scene.workload("early").await;
    let clients: Vec<_> = (0..4).map(|_| scene.client_of(&web)).collect();
    let connected = clients.iter().map(|client| ask(client.clone()));
    futures::future::try_join_all(connected)
        .await
        .expect("before the flood");
    let fresh = api.token("early", "web", "web-1").await;
    let size = scene.admin.size().await;

    api.pause().await;
    let mut answers: FuturesUnordered<_> = (0..FLOOD)
        .map(|number| ask(clients[number as usize % clients.len()].with_token(&fresh)))
        .collect();
    // None of those with a turn is done, so these answers are the refusals.
    let accepted = SHARE + PER_NODE;
    for _ in accepted..FLOOD {
        let status = answers
            .next()
            .await
            .unwrap()
            .expect_err("nobody can be served");
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
        let hint = status
            .metadata()
            .get("grpc-retry-pushback-ms")
            .expect("when to try again");
        assert!(
            hint.to_str().unwrap().parse::<u64>().unwrap() > 0,
            "{hint:?}"
        );
    }
    waiting(&scene.ca, PER_NODE).await;
    assert_eq!(scene.admin.size().await, size);
    let line = scene.ca.refusals().pop().unwrap();
    crate::support::shows_refusal(&line, "ResourceExhausted", "of this node");

    // All those who were let in are served once it goes on.
    api.resume().await;
    while let Some(answer) = answers.next().await {
        answer.expect("it was let in");
    }
    assert_eq!(scene.admin.size().await, size + u64::from(accepted));
}

#[tokio::test]
async fn every_request_of_other_nodes_succeeds_beside_a_flooding_one() {
    let scene = Scene::with(|ca| ca.set("limits", limits())).await;
    let flooding = scene.agent("flooding-1").await;
    let pod = scene.pod("flood", "web", "web-1", "flooding-1").await;
    scene.seen_by(&flooding, &pod).await;
    let quiet = scene.agent("quiet-1").await;
    let quiet_pod = scene.pod("quiet", "web", "web-1", "quiet-1").await;
    scene.seen_by(&quiet, &quiet_pod).await;
    // A workload without an agent, from another host.
    let elsewhere = scene
        .client()
        .token(&quiet_pod.token)
        .from(Ipv4Addr::new(127, 0, 0, 2));
    let elsewhere = elsewhere.build();

    let one_each = async || {
        let asked = Instant::now();
        let item = AgentClient::pod_item(&quiet_pod.uid);
        quiet
            .one(item)
            .await
            .unwrap_or_else(|error| panic!("a quiet agent: {error:?}"));
        elsewhere
            .issue(&csr::plain())
            .await
            .expect("a quiet workload");
        asked.elapsed()
    };
    let mut usual = Vec::new();
    let began = Instant::now();
    while began.elapsed() < WARM {
        usual.push(one_each().await);
    }

    let flood = Flood::new(&scene, &flooding, &pod.uid);
    let began = Instant::now();
    let mut beside = Vec::new();
    let quiet_ones = async {
        while began.elapsed() < LASTS {
            beside.push(one_each().await);
        }
        flood.over.store(true, Ordering::Relaxed);
    };
    let memory = async {
        tokio::time::sleep(WARM).await;
        let warm = metric(&scene.ca, "process_resident_memory_bytes").await;
        tokio::time::sleep(LASTS.saturating_sub(began.elapsed())).await;
        (
            warm,
            metric(&scene.ca, "process_resident_memory_bytes").await,
        )
    };
    let ((), (), (warm, end)) = tokio::join!(flood.run(), quiet_ones, memory);

    let (accepted, refused) = (flood.accepted(), flood.refused());
    let served = 2 * beside.len();
    // For docs/performance.md; a test has no limit on time.
    let (usual, beside) = (p99(usual), p99(beside));
    eprintln!("flood: {accepted} served, {refused} refused; others: {served} served");
    eprintln!("p99 of two requests: usually {usual:?}, beside the flood {beside:?}");
    eprintln!("memory: {warm} then {end}");
    assert!(
        refused > u64::from(FLOOD),
        "that was no flood: {refused} refused"
    );
    assert!(accepted > 0, "the flooding node has its share, too");
    assert!(served > 20, "the quiet ones hardly got to ask: {served}");
    assert!(end - warm < GROWTH, "memory grew from {warm} to {end}");
    let item = AgentClient::pod_item(&pod.uid);
    flooding
        .one(item)
        .await
        .expect("after the flood it is served like anyone");
}

/// Requests of one node, so many of them at once, each followed by another.
struct Flood {
    clients: Vec<Client>,
    pod_uid: String,
    over: AtomicBool,
    accepted: AtomicU64,
    refused: AtomicU64,
}

impl Flood {
    fn new(scene: &Scene<'_>, agent: &AgentClient, pod_uid: &str) -> Self {
        let client = || scene.client().identity(&agent.identity).build();
        Self {
            clients: (0..4).map(|_| client()).collect(),
            pod_uid: pod_uid.into(),
            over: AtomicBool::new(false),
            accepted: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    async fn run(&self) {
        let item = AgentClient::pod_item(&self.pod_uid);
        let one = |number: u32| {
            let (client, item) = (&self.clients[number as usize % self.clients.len()], &item);
            async move {
                while !self.over.load(Ordering::Relaxed) {
                    match client.batch(vec![item.clone()]).await {
                        Ok(_) => self.accepted.fetch_add(1, Ordering::Relaxed),
                        Err(status) => {
                            assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
                            // Refusals are so cheap that the test's own end would be the limit.
                            tokio::time::sleep(Duration::from_millis(200)).await;
                            self.refused.fetch_add(1, Ordering::Relaxed)
                        }
                    };
                }
            }
        };
        futures::future::join_all((0..FLOOD).map(one)).await;
    }

    fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

fn p99(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() * 99 / 100]
}

async fn ask(client: Client) -> Result<(), Status> {
    client.issue(&csr::plain()).await.map(drop)
}
