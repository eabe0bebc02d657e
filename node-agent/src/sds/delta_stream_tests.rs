//! `DeltaSecrets` over a real socket.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use citadel_identity::{TrustDomain, bundle::Bundle};
use envoy_types::pb::{
    envoy::service::{
        discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse},
        secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient,
    },
    google::rpc,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use super::content::type_url;
use crate::{
    testing::{Mode, Pki},
    testing_agent::{POD, Talk, TestAgent, in_pod, this_user},
};

type Proxy = Talk<DeltaDiscoveryRequest, DeltaDiscoveryResponse>;

fn wants(names: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: type_url(),
        resource_names_subscribe: names.iter().map(|name| (*name).to_owned()).collect(),
        ..DeltaDiscoveryRequest::default()
    }
}

fn answer(response: &DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        response_nonce: response.nonce.clone(),
        ..wants(&[])
    }
}

fn versions(response: &DeltaDiscoveryResponse) -> BTreeMap<String, String> {
    assert_eq!(response.type_url, type_url());
    let each = response.resources.iter().map(|resource| {
        assert_eq!(resource.resource.as_ref().unwrap().type_url, type_url());
        (resource.name.clone(), resource.version.clone())
    });
    each.collect()
}

fn names(response: &DeltaDiscoveryResponse) -> Vec<String> {
    versions(response).into_keys().collect()
}

impl Proxy {
    async fn start(agent: &TestAgent, first: DeltaDiscoveryRequest) -> Self {
        let (requests, receiver) = mpsc::channel(16);
        requests.send(first).await.unwrap();
        let responses = SecretDiscoveryServiceClient::new(agent.connect().await)
            .delta_secrets(ReceiverStream::new(receiver))
            .await
            .unwrap()
            .into_inner();
        Self {
            requests,
            responses,
        }
    }
}

#[tokio::test]
async fn sds_req_15_each_resource_has_a_version_and_only_what_changes_is_sent() {
    let agent = TestAgent::new(&in_pod());
    agent.world.ca.lifetime(Duration::from_secs(4));
    let mut proxy = Proxy::start(&agent, wants(&["default"])).await;
    let first = proxy.next().await;
    assert_eq!(names(&first), ["default"]);
    let mut more = answer(&first);
    more.resource_names_subscribe = vec!["ROOTCA".to_owned(), "nonsense".to_owned()];
    proxy.send(more).await;
    let roots = proxy.next().await;
    assert_eq!(names(&roots), ["ROOTCA"]);
    proxy.send(answer(&roots)).await;
    let renewed = proxy.next().await;
    assert_eq!(names(&renewed), ["default"]);
    assert_ne!(versions(&renewed), versions(&first));
    assert!(renewed.removed_resources.is_empty());
}

#[tokio::test]
async fn sds_req_16_a_new_stream_goes_on_where_the_last_one_ended() {
    let agent = TestAgent::new(&in_pod());
    let mut proxy = Proxy::start(&agent, wants(&["default", "ROOTCA"])).await;
    let mut held = HashMap::new();
    while held.len() < 2 {
        held.extend(versions(&proxy.next().await));
    }
    drop(proxy);
    let again = DeltaDiscoveryRequest {
        initial_resource_versions: held.clone(),
        ..wants(&["default", "ROOTCA"])
    };
    let mut proxy = Proxy::start(&agent, again.clone()).await;
    proxy.silence().await;
    held.insert("default".to_owned(), "an older one".to_owned());
    let older = DeltaDiscoveryRequest {
        initial_resource_versions: held,
        ..again
    };
    let mut proxy = Proxy::start(&agent, older).await;
    assert_eq!(names(&proxy.next().await), ["default"]);
}

#[tokio::test]
async fn sds_req_18_a_trust_domain_that_the_ca_takes_back_is_removed() {
    let agent = TestAgent::new(&in_pod());
    let own = agent.world.ca.pki.bundles();
    let mut both = own.clone();
    both.insert(Bundle::new(
        TrustDomain::new("other.org").unwrap(),
        vec![Pki::new().root()],
    ));
    agent.world.bundles.send_replace(Some(both.into()));
    let mut proxy = Proxy::start(&agent, wants(&["default", "spiffe://other.org"])).await;
    let mut held = Vec::new();
    while held.len() < 2 {
        let response = proxy.next().await;
        held.extend(names(&response));
        proxy.send(answer(&response)).await;
    }
    agent.world.bundles.send_replace(Some(own.into()));
    let response = proxy.next().await;
    assert_eq!(response.removed_resources, ["spiffe://other.org"]);
    assert!(response.resources.is_empty());
    proxy.send(answer(&response)).await;
    proxy.silence().await;
}

/// Nothing is withdrawn because the CA is away, whatever has expired meanwhile.
#[tokio::test]
async fn sds_req_18_24_an_outage_past_the_end_of_a_certificate_removes_nothing() {
    let agent = TestAgent::new(&in_pod());
    agent.world.ca.lifetime(Duration::from_secs(2));
    let own = format!("spiffe://example.org/pod/{POD}");
    let mut proxy = Proxy::start(&agent, wants(&["default", &own])).await;
    proxy.next().await;
    agent.world.ca.mode(Mode::Down);
    // It expires, and this machine's clock thinks that it did long ago.
    agent.world.clock.set_by(time::Duration::hours(5));
    let expired = agent.world.clock.true_time() + Duration::from_secs(3);
    while agent.world.clock.true_time() < expired {
        let next = tokio::time::timeout(Duration::from_millis(200), proxy.responses.message());
        // A renewal may have been under way.
        if let Ok(response) = next.await {
            assert!(response.unwrap().unwrap().removed_resources.is_empty());
        }
    }
    agent.world.ca.mode(Mode::Good);
    let fresh = proxy.next().await;
    assert_eq!(names(&fresh), ["default", own.as_str()]);
    assert!(fresh.removed_resources.is_empty());
}

#[tokio::test]
async fn sds_req_18_an_entry_that_is_withdrawn_takes_its_secret_with_it() {
    let agent = TestAgent::new("0::/\n");
    let user = this_user();
    agent.set_entries(&[("one", &[&user]), ("two", &[&user])]);
    let two = "spiffe://example.org/two";
    let mut proxy = Proxy::start(&agent, wants(&[two, "default"])).await;
    let mut held = Vec::new();
    while held.len() < 2 {
        held.extend(names(&proxy.next().await));
    }
    agent.set_entries(&[("one", &[&user])]);
    assert_eq!(proxy.next().await.removed_resources, [two]);
}

#[tokio::test]
async fn sds_req_04_a_refusal_is_counted_and_not_answered_with_the_same_again() {
    let agent = TestAgent::new(&in_pod());
    let mut proxy = Proxy::start(&agent, wants(&["default"])).await;
    let response = proxy.next().await;
    let refusal = DeltaDiscoveryRequest {
        error_detail: Some(rpc::Status {
            code: 3,
            message: "bad\nkey".into(),
            details: vec![],
        }),
        ..answer(&response)
    };
    proxy.send(refusal.clone()).await;
    proxy.send(refusal).await;
    proxy.silence().await;
    let mut registry = prometheus_client::registry::Registry::default();
    agent.world.metrics.register(&mut registry);
    let mut shown = String::new();
    prometheus_client::encoding::text::encode(&mut shown, &registry).unwrap();
    assert!(shown.contains("citadel_agent_sds_nacks_total 1"), "{shown}");
    assert!(
        shown.contains("citadel_agent_streams{protocol=\"sds_delta\"} 1"),
        "{shown}"
    );
}

/// Clients that ask for more than their windows take and read nothing of it: others get
/// their renewals, and what nobody reads is not made again and again.
#[tokio::test]
async fn slow_readers_hold_nobody_up() {
    let agent = TestAgent::new(&in_pod());
    agent.world.ca.lifetime(Duration::from_secs(4));
    let own = agent.world.ca.pki.bundles();
    let mut bundle = own.iter().next().unwrap().clone();
    let more = (0..200).map(|_| agent.world.ca.pki.root());
    bundle.authorities.extend(more);
    let mut bundles = own.clone();
    bundles.insert(bundle);
    agent.world.bundles.send_replace(Some(bundles.into()));
    let mut stuck = Vec::new();
    for _ in 0..32 {
        let names = ["ROOTCA", "ALL", "spiffe://example.org", "default"];
        stuck.push(Proxy::start(&agent, wants(&names)).await);
    }
    let mut proxy = Proxy::start(&agent, wants(&["default"])).await;
    let mut seen = Vec::new();
    for _ in 0..5 {
        let response = proxy.next().await;
        proxy.send(answer(&response)).await;
        seen.push(versions(&response)["default"].clone());
    }
    seen.dedup();
    assert_eq!(seen.len(), 5);
    // One that reads on after all gets to what is newest, and nothing twice.
    let mut late = stuck.pop().unwrap();
    let mut had: Vec<BTreeMap<String, String>> = Vec::new();
    while had
        .last()
        .is_none_or(|last| last.get("default") != seen.last())
    {
        let response = versions(&late.next().await);
        assert!(!had.contains(&response));
        had.push(response);
    }
    assert!(had.len() < seen.len(), "{} of what nobody read", had.len());
}

#[tokio::test]
async fn sds_req_19_22_who_has_nothing_and_who_asks_for_too_much_is_told_so() {
    let agent = TestAgent::new("0::/\n");
    let mut proxy = Proxy::start(&agent, wants(&["default"])).await;
    assert_eq!(proxy.end().await.code(), Code::PermissionDenied);
    let agent = TestAgent::new(&in_pod());
    let many: Vec<String> = (0..1000).map(|n| n.to_string()).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let mut proxy = Proxy::start(&agent, wants(&many)).await;
    let status = proxy.end().await;
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(
        status.message().contains("128 resource names"),
        "{status:?}"
    );
    let other = DeltaDiscoveryRequest {
        type_url: "type.googleapis.com/x".into(),
        ..wants(&["default"])
    };
    let mut proxy = Proxy::start(&agent, other).await;
    assert_eq!(proxy.end().await.code(), Code::InvalidArgument);
}
