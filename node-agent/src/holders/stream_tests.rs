//! What the services note of their streams, over a real socket.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{sync::Arc, time::Duration};

use citadel_proto::workload::{
    X509svidRequest, spiffe_workload_api_client::SpiffeWorkloadApiClient,
};
use envoy_types::pb::{
    envoy::service::{
        discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest, DiscoveryResponse},
        secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient,
    },
    google::rpc,
};
use tokio::sync::mpsc::{self, Sender};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Streaming};

use super::{Holders, Resource, Stream};
use crate::{
    testing::Pki,
    testing_agent::{POD, TestAgent, in_pod, soon},
};

/// Waits until the streams look like this.
async fn streams(holders: &Holders, are: impl Fn(&[Stream]) -> bool) -> Vec<Stream> {
    let mut changes = holders.changes();
    soon(async {
        loop {
            let shown: Vec<_> = holders.shown(100).0.into_iter().map(|(_, it)| it).collect();
            if are(&shown) {
                return shown;
            }
            let _ = tokio::time::timeout(Duration::from_millis(50), changes.changed()).await;
        }
    })
    .await
}

fn resource<'s>(streams: &'s [Stream], name: &str) -> Option<&'s Resource> {
    let mut all = streams.iter().flat_map(|stream| &stream.resources);
    all.find(|resource| resource.name == name)
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

struct Proxy {
    requests: Sender<DiscoveryRequest>,
    responses: Streaming<DiscoveryResponse>,
}

impl Proxy {
    async fn start(agent: &TestAgent, wanted: &[&str]) -> Self {
        let (requests, receiver) = mpsc::channel(16);
        let first = DiscoveryRequest {
            resource_names: names(wanted),
            ..DiscoveryRequest::default()
        };
        requests.send(first).await.unwrap();
        let mut client = SecretDiscoveryServiceClient::new(agent.connect().await);
        let responses = client.stream_secrets(ReceiverStream::new(receiver)).await;
        Self {
            requests,
            responses: responses.unwrap().into_inner(),
        }
    }

    async fn next(&mut self) -> DiscoveryResponse {
        soon(self.responses.message()).await.unwrap().unwrap()
    }

    async fn answer(&self, response: &DiscoveryResponse, wanted: &[&str], refusal: Option<&str>) {
        let request = DiscoveryRequest {
            version_info: response.version_info.clone(),
            response_nonce: response.nonce.clone(),
            resource_names: names(wanted),
            error_detail: refusal.map(|reason| rpc::Status {
                message: reason.to_owned(),
                ..rpc::Status::default()
            }),
            ..DiscoveryRequest::default()
        };
        self.requests.send(request).await.unwrap();
    }
}

#[tokio::test]
async fn an_acknowledgement_is_kept_with_who_sent_it_and_goes_with_its_stream() {
    let agent = TestAgent::new(&in_pod());
    let wanted = ["default", "ROOTCA"];
    let mut proxy = Proxy::start(&agent, &wanted).await;
    loop {
        let response = proxy.next().await;
        proxy.answer(&response, &wanted, None).await;
        if response.resources.len() == 2 {
            break;
        }
    }
    let shown = streams(&agent.holders, |streams| {
        let taken = |name| resource(streams, name).and_then(|it| it.acknowledged.as_ref());
        taken("default").is_some() && taken("ROOTCA").is_some()
    })
    .await;
    assert_eq!(shown.len(), 1);
    assert_eq!(shown[0].protocol, "sds");
    assert_eq!(shown[0].pid, i32::try_from(std::process::id()).unwrap());
    assert_eq!(&*shown[0].peer, format!("pod {POD}"));
    let bundle = agent.world.ca.pki.bundles();
    let hash = bundle.iter().next().unwrap().authorities_sha256();
    let summary = agent.holders.summary(&hash);
    assert_eq!((summary.behind, summary.bundles[&hash].grade_a), (0, 1));
    assert_eq!(agent.holders.summary("another").behind, 1);
    drop(proxy);
    streams(&agent.holders, <[Stream]>::is_empty).await;
}

#[tokio::test]
async fn a_refusal_is_kept_with_its_reason() {
    let agent = TestAgent::new(&in_pod());
    let mut proxy = Proxy::start(&agent, &["ROOTCA"]).await;
    let response = proxy.next().await;
    proxy.answer(&response, &["ROOTCA"], Some("no PEM")).await;
    let shown = streams(&agent.holders, |streams| {
        resource(streams, "ROOTCA").is_some_and(|it| it.refused.is_some())
    })
    .await;
    let roots = resource(&shown, "ROOTCA").unwrap();
    assert_eq!(roots.refused.as_deref(), Some("no PEM"));
    assert!(roots.acknowledged.is_none());
    // What is wanted no more is not kept.
    proxy.answer(&response, &["default"], None).await;
    streams(&agent.holders, |streams| {
        resource(streams, "ROOTCA").is_none()
    })
    .await;
}

#[tokio::test]
async fn what_a_delta_client_brings_along_is_what_it_runs_on() {
    let agent = TestAgent::new(&in_pod());
    let bundle = agent.world.ca.pki.bundles();
    let hash = bundle.iter().next().unwrap().authorities_sha256();
    let first = DeltaDiscoveryRequest {
        resource_names_subscribe: names(&["ROOTCA", "default"]),
        initial_resource_versions: [
            ("ROOTCA".to_owned(), hash.clone()),
            ("default".to_owned(), "an older one".to_owned()),
        ]
        .into(),
        ..DeltaDiscoveryRequest::default()
    };
    let (requests, receiver) = mpsc::channel(16);
    requests.send(first).await.unwrap();
    let mut client = SecretDiscoveryServiceClient::new(agent.connect().await);
    let stream = client.delta_secrets(ReceiverStream::new(receiver)).await;
    let mut stream = stream.unwrap().into_inner();
    let response = soon(stream.message()).await.unwrap().unwrap();
    assert_eq!(response.resources.len(), 1);
    let shown = streams(&agent.holders, |streams| {
        resource(streams, "ROOTCA").is_some_and(|it| it.acknowledged.is_some())
    })
    .await;
    let default = resource(&shown, "default").unwrap();
    assert!(
        default.acknowledged.is_none(),
        "another version was brought"
    );
}

/// Grade B: a renewal after the bundle was sent, and not before.
#[tokio::test]
async fn over_the_workload_api_a_renewal_shows_the_bundle_before_it() {
    let agent = TestAgent::new(&in_pod());
    agent.world.ca.lifetime(Duration::from_secs(4));
    let mut request = Request::new(X509svidRequest {});
    let metadata = request.metadata_mut();
    metadata.insert("workload.spiffe.io", "true".parse().unwrap());
    let mut client = SpiffeWorkloadApiClient::new(agent.connect().await);
    let mut stream = client.fetch_x509svid(request).await.unwrap().into_inner();
    soon(stream.message()).await.unwrap().unwrap();
    let bundle = agent.world.ca.pki.bundles();
    let first = bundle.iter().next().unwrap().authorities_sha256();
    streams(&agent.holders, |streams| {
        resource(streams, "spiffe://example.org").is_some()
    })
    .await;
    assert_eq!(agent.holders.summary(&first).behind, 1);
    // The renewal.
    soon(stream.message()).await.unwrap().unwrap();
    streams(&agent.holders, |_| {
        agent.holders.summary(&first).behind == 0
    })
    .await;
    assert_eq!(agent.holders.summary(&first).bundles[&first].grade_b, 1);
    // A new bundle: the next renewal shows it.
    let mut set = (*bundle.iter().next().unwrap()).clone();
    set.authorities.push(Pki::new().root());
    let second = set.authorities_sha256();
    let mut bundles = bundle.clone();
    bundles.insert(set);
    agent.world.bundles.send_replace(Some(Arc::new(bundles)));
    loop {
        let summary = agent.holders.summary(&second);
        if summary.behind == 0 {
            break;
        }
        assert_eq!(summary.bundles.get(&second), None);
        soon(stream.message()).await.unwrap().unwrap();
        tokio::task::yield_now().await;
    }
}
