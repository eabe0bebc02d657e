//! `DeltaSecrets`, word by word.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse,
};
use envoy_types::pb::google::rpc::Status as Refusal;
use futures::channel::mpsc::{UnboundedSender, unbounded};
use tonic::{Code, Status, Streaming};

use super::script::{ID, PROMPT, RENEWAL, SECRET, contents, node, service};
use crate::node::Node;

const BUNDLE: &str = "spiffe://example.org";

struct Script {
    requests: UnboundedSender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

/// A response, taken apart.
#[derive(Debug)]
struct Pushed {
    nonce: String,
    versions: BTreeMap<String, String>,
    serials: Vec<String>,
    removed: Vec<String>,
}

fn subscribe(names: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: SECRET.into(),
        resource_names_subscribe: names.iter().map(|&name| name.into()).collect(),
        ..Default::default()
    }
}

fn unsubscribe(names: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        resource_names_unsubscribe: names.iter().map(|&name| name.into()).collect(),
        ..subscribe(&[])
    }
}

fn holding(names: &[&str], held: &BTreeMap<String, String>) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        initial_resource_versions: held.clone().into_iter().collect::<HashMap<_, _>>(),
        ..subscribe(names)
    }
}

impl Script {
    async fn open(node: &Node, first: DeltaDiscoveryRequest) -> Self {
        let (requests, inbox) = unbounded();
        requests.unbounded_send(first).expect("it is new");
        let responses = service(node).delta_secrets(inbox).await.expect("a stream");
        Self {
            requests,
            responses: responses.into_inner(),
        }
    }

    fn send(&self, request: DeltaDiscoveryRequest) {
        self.requests
            .unbounded_send(request)
            .expect("the stream is open");
    }

    fn ack(&self, pushed: &Pushed) {
        self.send(DeltaDiscoveryRequest {
            response_nonce: pushed.nonce.clone(),
            ..subscribe(&[])
        });
    }

    fn nack(&self, pushed: &Pushed, reason: &str) {
        self.send(DeltaDiscoveryRequest {
            response_nonce: pushed.nonce.clone(),
            error_detail: Some(Refusal {
                code: 13,
                message: reason.into(),
                details: vec![],
            }),
            ..subscribe(&[])
        });
    }

    async fn next(&mut self) -> Pushed {
        self.within(PROMPT).await
    }

    async fn within(&mut self, deadline: Duration) -> Pushed {
        let message = tokio::time::timeout(deadline, self.responses.message()).await;
        let message = message
            .expect("a response in time")
            .expect("no error")
            .expect("no end");
        Pushed::read(message)
    }

    async fn end(&mut self) -> Status {
        let ended = tokio::time::timeout(PROMPT, self.responses.message()).await;
        ended.expect("an end in time").expect_err("an error")
    }
}

impl Pushed {
    fn read(message: DeltaDiscoveryResponse) -> Self {
        assert_eq!(message.type_url, SECRET);
        let resources: Vec<_> = message
            .resources
            .iter()
            .map(|resource| resource.resource.clone().expect("a resource"))
            .collect();
        let (names, serials) = contents(&resources);
        let versions: BTreeMap<_, _> = message
            .resources
            .into_iter()
            .map(|resource| (resource.name, resource.version))
            .collect();
        assert!(versions.keys().eq(&names), "each under its own name");
        Self {
            nonce: message.nonce,
            versions,
            serials,
            removed: message.removed_resources,
        }
    }

    fn names(&self) -> Vec<&str> {
        self.versions.keys().map(String::as_str).collect()
    }
}

#[tokio::test]
async fn sds_req_15_17_names_come_and_go_and_only_what_changed_is_sent() {
    let node = node("delta-names", "10s").await;
    let mut script = Script::open(&node, subscribe(&["default", "no-such-name"])).await;
    let first = script.next().await;
    assert_eq!(first.names(), ["default"]);
    script.ack(&first);
    script.send(subscribe(&["ROOTCA"]));
    let roots = script.next().await;
    assert_eq!(roots.names(), ["ROOTCA"]);
    for _ in 0..20 {
        script.ack(&roots);
    }
    // The renewal alone.
    let renewed = script.within(RENEWAL).await;
    assert_eq!(renewed.names(), ["default"]);
    assert_ne!(renewed.versions["default"], first.versions["default"]);
    assert_ne!(renewed.serials, first.serials);
    assert!(renewed.removed.is_empty());
    script.ack(&renewed);
    // Not sent any more, though it is renewed, which another stream tells.
    script.send(unsubscribe(&["default"]));
    let mut witness = Script::open(&node, subscribe(&["default"])).await;
    let before = witness.next().await;
    witness.ack(&before);
    witness.within(RENEWAL).await;
    script.send(subscribe(&["ALL"]));
    assert_eq!(script.next().await.names(), ["ALL"]);
    // And asked for again, sent again.
    script.send(subscribe(&["ROOTCA"]));
    assert_eq!(
        script.next().await.versions["ROOTCA"],
        roots.versions["ROOTCA"]
    );
}

#[tokio::test]
async fn sds_req_16_what_a_client_holds_from_before_is_not_sent_again() {
    let node = node("delta-held", "1h").await;
    let names = ["default", "ROOTCA", ID];
    let mut script = Script::open(&node, subscribe(&names)).await;
    let mut held = script.next().await.versions;
    assert_eq!(held.len(), 3);
    drop(script);
    // The fence: a name that it does not hold comes alone.
    held.remove("ROOTCA");
    let mut script = Script::open(&node, holding(&names, &held)).await;
    assert_eq!(script.next().await.names(), ["ROOTCA"]);
    held.insert("default".into(), "older".into());
    let mut script = Script::open(&node, holding(&["default", ID], &held)).await;
    assert_eq!(script.next().await.names(), ["default"]);
}

#[tokio::test]
async fn sds_req_04_a_refused_secret_is_not_sent_again_until_it_changes() {
    let node = node("delta-nack", "10s").await;
    let mut script = Script::open(&node, subscribe(&["default"])).await;
    let first = script.next().await;
    for _ in 0..5 {
        script.nack(&first, "the test does not like it");
    }
    script.send(subscribe(&[BUNDLE]));
    assert_eq!(script.next().await.names(), [BUNDLE]);
    let renewed = script.within(RENEWAL).await;
    assert_ne!(renewed.versions, first.versions);
    let log = node.agent.log();
    let told = log.matches("the test does not like it").count();
    assert_eq!(told, 1, "the reason is logged once");
    let metrics = node.agent.metrics().await;
    assert!(
        metrics.contains("citadel_agent_sds_nacks_total 1"),
        "{metrics}"
    );
}

#[tokio::test]
async fn sds_req_01_19_ten_thousand_names_and_other_types_are_refused_and_hurt_nobody() {
    let node = node("delta-many", "1h").await;
    let mut other = Script::open(&node, subscribe(&["default"])).await;
    let first = other.next().await;
    let many: Vec<_> = (0..10_000).map(|number| format!("{number:x}")).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    let mut script = Script::open(&node, subscribe(&many)).await;
    assert_eq!(script.end().await.code(), Code::InvalidArgument);
    // By little and little.
    let mut script = Script::open(&node, subscribe(&many[..100])).await;
    script.send(subscribe(&many[100..200]));
    let refused = script.end().await;
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("resource names"), "{refused}");
    let cluster = DeltaDiscoveryRequest {
        type_url: "type.googleapis.com/envoy.config.cluster.v3.Cluster".into(),
        ..subscribe(&["default"])
    };
    let mut script = Script::open(&node, cluster).await;
    assert_eq!(script.end().await.code(), Code::InvalidArgument);
    let reasons: Vec<_> = node.refusals();
    assert!(
        reasons.iter().any(|line| line["rpc"] == "DeltaSecrets"),
        "{reasons:?}"
    );
    other.ack(&first);
    other.send(subscribe(&["ROOTCA"]));
    assert_eq!(other.next().await.names(), ["ROOTCA"]);
}

/// The state of the world has it too.
#[tokio::test]
async fn sds_req_11_all_is_every_bundle_under_one_name() {
    let node = node("delta-all", "1h").await;
    let mut script = Script::open(&node, subscribe(&["ALL", "ROOTCA"])).await;
    let pushed = script.next().await;
    assert_eq!(pushed.names(), ["ALL", "ROOTCA"]);
    // With one trust domain they are the same.
    assert_eq!(pushed.versions["ALL"], pushed.versions["ROOTCA"]);
    let mut world = super::script::Script::open(&node, &["ALL"]).await;
    assert_eq!(world.next().await.names, ["ALL"]);
}
