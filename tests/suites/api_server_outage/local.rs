//! The local mode: what was known last counts for the configured time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use citadel_tests::client::Client;
use citadel_tests::kubernetes::{ApiServer, claims_of};
use citadel_tests::pki::csr;
use citadel_tests::wait;
use serde_json::json;
use tonic::{Code, Status};
use tonic_health::pb::health_check_response::ServingStatus;

use super::life::{BEAT, Life};
use crate::support::{AgentClient, Scene, certificate_request, shows_refusal};

/// For how long the CA may rely on what the watches showed last.
const STALENESS: Duration = Duration::from_secs(30);
/// How old the keys may be when the outage begins: so often they are fetched.
const KEYS: Duration = Duration::from_secs(10);
/// How much may pass between the last event and its arrival, or the end of the
/// time and the next request.
const SLACK: Duration = Duration::from_secs(4);
/// After it is back: the watches' longest pause between two attempts, and more.
const RECOVERY: Duration = Duration::from_secs(30);
const BETWEEN: Duration = Duration::from_millis(250);
/// By their names in gRPC; the empty one is the server as a whole.
const SERVICES: [&str; 4] = [
    "",
    "citadel.v1.AgentService",
    "citadel.v1.WorkloadService",
    "istio.v1.auth.IstioCertificateService",
];

/// How the API server is away.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Outage {
    Stopped,
    Hung,
}

#[tokio::test]
async fn a_stopped_api_server() {
    issuance_outlives(Outage::Stopped).await;
}

#[tokio::test]
async fn a_hung_api_server() {
    issuance_outlives(Outage::Hung).await;
}

async fn issuance_outlives(outage: Outage) {
    let api = Arc::new(ApiServer::start().await);
    let life = Life::of(&api).await;
    let settings = json!({ "max_staleness": format!("{}s", STALENESS.as_secs()) });
    let scene = Scene::with_cluster(&api, settings).await;
    let pid = scene.ca.process().pid();
    let callers = Callers::of(&scene).await;
    for (what, answer) in callers.ask().await {
        answer.unwrap_or_else(|status| panic!("{what}: {status:?}"));
    }
    let nobody = scene.client().build();
    let mut health = nobody.watch_health().await.unwrap();
    let mut next_health = async || health.message().await.unwrap().unwrap().status();
    assert_eq!(next_health().await, ServingStatus::Serving);
    let unknown = scene
        .client()
        .token(&unknown_pods_token(&api, &callers))
        .build();

    drop(life);
    let began = Instant::now();
    match outage {
        Outage::Stopped => api.stop().await,
        Outage::Hung => api.pause().await,
    }

    // Whose pod no watch has shown can't be decided now: neither yes nor no,
    // and not long after the cluster's deadline of 3 s.
    let asked = Instant::now();
    let status = unknown.issue(&csr::plain()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(
        asked.elapsed() < Duration::from_secs(3) + SLACK,
        "{:?}",
        asked.elapsed()
    );

    // Everybody else is served, until the time is over.
    let mut rounds = 0;
    let over = loop {
        let answers = callers.ask().await;
        if answers.iter().any(|(_, answer)| answer.is_err()) {
            break began.elapsed();
        }
        rounds += 1;
        tokio::time::sleep(BETWEEN).await;
    };
    assert!(rounds >= 20, "only {rounds} rounds in {over:?}");
    assert!(
        over + KEYS + BEAT + SLACK > STALENESS,
        "over after {over:?}"
    );
    // Tokens end with the keys, everything else with what the watches showed.
    let limit = (STALENESS + SLACK).saturating_sub(began.elapsed());
    wait::until("it is over for all", limit, async || {
        let answers = callers.ask().await;
        answers
            .iter()
            .all(|(_, answer)| answer.is_err())
            .then_some(())
    })
    .await;
    let size = scene.admin.size().await;
    for (what, answer) in callers.ask().await {
        let status = answer.expect_err(what);
        assert_eq!(status.code(), Code::Unavailable, "{what}: {status:?}");
        assert!(
            status.metadata().contains_key("grpc-retry-pushback-ms"),
            "{what}: {status:?}"
        );
    }
    assert_eq!(scene.admin.size().await, size);
    let refusals = scene.ca.refusals();
    shows_refusal(refusals.last().unwrap(), "Unavailable", "the limit is 30s");
    // Older keys may have been its first reason.
    let reason = "cluster default: not ready: what the watches show";
    let ready = wait::until("not ready", SLACK, async || {
        let answer = scene.ca.readyz().await?;
        answer.body.contains(reason).then_some(answer)
    })
    .await;
    assert_eq!(ready.status, 503);
    assert!(ready.body.contains("store: ready"), "{}", ready.body);
    // gRPC hears the same, of each service; the process itself is as alive as before.
    assert_eq!(next_health().await, ServingStatus::NotServing);
    for service in SERVICES {
        let status = nobody.health(service).await.unwrap();
        assert_eq!(status, ServingStatus::NotServing, "{service}");
    }
    assert_eq!(
        scene.ca.livez().await.map(|answer| answer.status),
        Some(200)
    );

    match outage {
        Outage::Stopped => api.start_again().await,
        Outage::Hung => api.resume().await,
    }
    let _life = Life::of(&api).await;
    wait::until("it recovers", RECOVERY, async || {
        callers
            .ask()
            .await
            .iter()
            .all(|(_, answer)| answer.is_ok())
            .then_some(())
    })
    .await;
    scene.ca.wait_ready().await;
    assert_eq!(scene.ca.process().pid(), pid, "without a restart");
    assert_eq!(next_health().await, ServingStatus::Serving);
    for service in SERVICES {
        let status = nobody.health(service).await.unwrap();
        assert_eq!(status, ServingStatus::Serving, "{service}");
    }
    // The watches go on: what happens now is seen.
    api.delete_pod("outage", "web-1").await;
    wait::until("a deletion is seen", SLACK, async || {
        let status = callers.workload.issue(&csr::plain()).await.err()?;
        (status.code() == Code::Unauthenticated).then_some(())
    })
    .await;
}

/// One of each kind of caller.
struct Callers {
    token: String,
    workload: Client,
    renewing: Client,
    agent: AgentClient,
    pod_uid: String,
}

impl Callers {
    async fn of(scene: &Scene<'_>) -> Self {
        let agent = scene.agent("outage-1").await;
        let web = scene.pod("outage", "web", "web-1", "outage-1").await;
        scene.seen_by(&agent, &web).await;
        Self {
            workload: scene.client_of(&web),
            renewing: scene
                .client()
                .identity(&scene.identity_of(&web).await)
                .build(),
            agent,
            pod_uid: web.uid,
            token: web.token,
        }
    }

    /// Each asks once; what became of it.
    async fn ask(&self) -> Vec<(&'static str, Result<(), Status>)> {
        let plain = csr::plain();
        let by_istio = self
            .workload
            .create_certificate(certificate_request(&plain.pem(), 0));
        let batch = self
            .agent
            .client
            .batch(vec![AgentClient::pod_item(&self.pod_uid)]);
        vec![
            ("a token", self.workload.issue(&plain).await.map(drop)),
            ("a token at Istio's service", by_istio.await.map(drop)),
            ("a renewal", self.renewing.issue(&plain).await.map(drop)),
            ("an agent's batch", batch.await.map(drop)),
            (
                "an agent's renewal",
                self.agent.client.attest(&plain).await.map(drop),
            ),
        ]
    }
}

fn unknown_pods_token(api: &ApiServer, callers: &Callers) -> String {
    let mut claims = claims_of(&callers.token);
    claims["kubernetes.io"]["pod"]["uid"] = "00000000-0000-4000-8000-000000000000".into();
    api.sign_token(&claims)
}
