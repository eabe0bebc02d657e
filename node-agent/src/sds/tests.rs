#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use envoy_types::pb::{
    envoy::{
        config::core::v3::data_source::Specifier,
        extensions::transport_sockets::tls::v3::{Secret, secret::Type},
        service::secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient,
    },
    google::rpc,
};
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, transport::Channel};

use super::{content::type_url, *};
use crate::{
    testing::Mode,
    testing_agent::{POD, STREAMS, Talk, TestAgent, in_pod, soon, this_user},
};

/// A scripted proxy.
type Proxy = Talk<DiscoveryRequest, DiscoveryResponse>;

fn wants(names: &[&str]) -> DiscoveryRequest {
    DiscoveryRequest {
        type_url: type_url(),
        resource_names: names.iter().map(|name| (*name).to_owned()).collect(),
        ..DiscoveryRequest::default()
    }
}

fn answers(response: &DiscoveryResponse, names: &[&str]) -> DiscoveryRequest {
    DiscoveryRequest {
        version_info: response.version_info.clone(),
        response_nonce: response.nonce.clone(),
        ..wants(names)
    }
}

async fn client(agent: &TestAgent) -> SecretDiscoveryServiceClient<Channel> {
    SecretDiscoveryServiceClient::new(agent.connect().await)
}

impl Proxy {
    async fn start(agent: &TestAgent, first: DiscoveryRequest) -> Self {
        Self::with(agent, first, None).await.unwrap()
    }

    async fn with(
        agent: &TestAgent,
        first: DiscoveryRequest,
        token: Option<&str>,
    ) -> Result<Self, Status> {
        let (requests, receiver) = mpsc::channel(16);
        requests.send(first).await.unwrap();
        let mut request = Request::new(ReceiverStream::new(receiver));
        if let Some(token) = token {
            let value = format!("Bearer {token}").parse().unwrap();
            request.metadata_mut().insert("authorization", value);
        }
        let responses = client(agent)
            .await
            .stream_secrets(request)
            .await?
            .into_inner();
        Ok(Self {
            requests,
            responses,
        })
    }
}

fn secrets(response: &DiscoveryResponse) -> Vec<Secret> {
    assert_eq!(response.type_url, type_url());
    response
        .resources
        .iter()
        .map(|any| Secret::decode(any.value.as_slice()).unwrap())
        .collect()
}

fn names(response: &DiscoveryResponse) -> Vec<String> {
    secrets(response)
        .into_iter()
        .map(|secret| secret.name)
        .collect()
}

fn text(source: Option<envoy_types::pb::envoy::config::core::v3::DataSource>) -> String {
    let Some(Specifier::InlineBytes(bytes)) = source.unwrap().specifier else {
        panic!("not inline")
    };
    String::from_utf8(bytes).unwrap()
}

#[tokio::test]
async fn sds_req_11_certificate_and_roots_come_as_envoy_wants_them() {
    let agent = TestAgent::new(&in_pod());
    let mut proxy = Proxy::start(&agent, wants(&["default", "ROOTCA"])).await;
    let mut response = proxy.next().await;
    if response.resources.len() < 2 {
        // The roots were there first.
        assert_eq!(names(&response), ["ROOTCA"]);
        proxy.send(answers(&response, &["default", "ROOTCA"])).await;
        response = proxy.next().await;
    }
    for secret in secrets(&response) {
        match (secret.name.as_str(), secret.r#type.unwrap()) {
            ("default", Type::TlsCertificate(certificate)) => {
                let chain = text(certificate.certificate_chain);
                assert!(
                    chain.starts_with("-----BEGIN CERTIFICATE-----\n"),
                    "{chain}"
                );
                let key = text(certificate.private_key);
                assert!(key.starts_with("-----BEGIN PRIVATE KEY-----\n"));
            }
            ("ROOTCA", Type::ValidationContext(context)) => {
                let root = citadel_identity::pem::encode("CERTIFICATE", &agent.world.ca.pki.root());
                assert_eq!(text(context.trusted_ca), root.as_str());
            }
            (name, _) => panic!("{name}"),
        }
    }
    proxy.send(answers(&response, &["default", "ROOTCA"])).await;
    proxy.silence().await;
}

#[tokio::test]
async fn sds_req_11_12_an_exact_id_is_only_for_those_who_have_it() {
    let agent = TestAgent::new(&in_pod());
    let own = format!("spiffe://example.org/pod/{POD}");
    let others = "spiffe://example.org/pod/another";
    let mut proxy = Proxy::start(&agent, wants(&[&own, others, "spiffe://other.org"])).await;
    let response = proxy.next().await;
    assert_eq!(names(&response), [own.as_str()]);
    proxy
        .send(answers(&response, &[&own, others, "spiffe://other.org"]))
        .await;
    proxy.silence().await;
    let mut proxy = Proxy::start(&agent, wants(&["spiffe://example.org"])).await;
    assert_eq!(names(&proxy.next().await), ["spiffe://example.org"]);
}

#[tokio::test]
async fn sds_req_07_an_unknown_name_beside_a_known_one_costs_nothing() {
    let agent = TestAgent::new(&in_pod());
    let mut proxy = Proxy::start(&agent, wants(&["nonsense", "default"])).await;
    assert_eq!(names(&proxy.next().await), ["default"]);
    let mut lonely = Proxy::start(&agent, wants(&["nonsense"])).await;
    lonely.silence().await;
}

#[tokio::test]
async fn sds_req_08_a_name_that_becomes_ready_later_is_pushed() {
    let agent = TestAgent::new(&in_pod());
    agent.world.ca.mode(Mode::Down);
    let mut proxy = Proxy::start(&agent, wants(&["default"])).await;
    proxy.silence().await;
    agent.world.ca.mode(Mode::Good);
    assert_eq!(names(&proxy.next().await), ["default"]);
}

#[tokio::test]
async fn sds_req_03_08_a_renewal_is_pushed_and_acknowledgements_are_not_answered() {
    let agent = TestAgent::new(&in_pod());
    agent.world.ca.lifetime(std::time::Duration::from_secs(4));
    let mut proxy = Proxy::start(&agent, wants(&["default"])).await;
    let mut versions = Vec::new();
    for _ in 0..3 {
        let response = proxy.next().await;
        assert!(!versions.contains(&response.version_info));
        versions.push(response.version_info.clone());
        for _ in 0..3 {
            proxy.send(answers(&response, &["default"])).await;
        }
    }
}

#[tokio::test]
async fn sds_req_04_a_refusal_is_counted_and_not_answered_with_the_same_again() {
    let agent = TestAgent::new(&in_pod());
    let mut proxy = Proxy::start(&agent, wants(&["default"])).await;
    let response = proxy.next().await;
    let refusal = DiscoveryRequest {
        version_info: String::new(),
        error_detail: Some(rpc::Status {
            code: 3,
            message: "bad\nkey".into(),
            details: vec![],
        }),
        ..answers(&response, &["default"])
    };
    proxy.send(refusal.clone()).await;
    proxy.send(refusal).await;
    proxy.silence().await;
    let mut registry = prometheus_client::registry::Registry::default();
    agent.world.metrics.register(&mut registry);
    let mut shown = String::new();
    prometheus_client::encoding::text::encode(&mut shown, &registry).unwrap();
    assert!(shown.contains("citadel_agent_sds_nacks_total 1"), "{shown}");
}

#[tokio::test]
async fn sds_req_22_who_has_no_identity_is_denied() {
    let agent = TestAgent::new("0::/\n");
    let mut proxy = Proxy::start(&agent, wants(&["default"])).await;
    assert_eq!(proxy.end().await.code(), Code::PermissionDenied);
    // Not even the roots.
    let mut proxy = Proxy::start(&agent, wants(&["ROOTCA"])).await;
    assert_eq!(proxy.end().await.code(), Code::PermissionDenied);
    let agent = TestAgent::new("0::/kubepods/podnonsense\n");
    let refused = Proxy::with(&agent, wants(&["default"]), None)
        .await
        .err()
        .unwrap();
    assert_eq!(refused.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn a_process_of_the_host_gets_what_its_entries_say() {
    let agent = TestAgent::new("0::/\n");
    let user = this_user();
    agent.set_entries(&[("unix/me", &[&user]), ("unix/other", &["unix:uid:4242424"])]);
    let wanted = [
        "default",
        "spiffe://example.org/unix/me",
        "spiffe://example.org/unix/other",
    ];
    let mut proxy = Proxy::start(&agent, wants(&wanted)).await;
    assert_eq!(
        names(&proxy.next().await),
        ["default", "spiffe://example.org/unix/me"]
    );
}

/// What was chosen before the entries came says nothing of them, whichever change is looked
/// at first.
#[tokio::test]
async fn entries_that_come_together_with_a_bundle_deny_nobody() {
    let agent = TestAgent::new("0::/\n");
    for _ in 0..32 {
        agent.entries.send_replace(None);
        let mut proxy = Proxy::start(&agent, wants(&["default", "ROOTCA"])).await;
        assert_eq!(names(&proxy.next().await), ["ROOTCA"]);
        agent.world.bundles.send_modify(|_| ());
        agent.set_entries(&[("unix/me", &[&this_user()])]);
        assert_eq!(names(&proxy.next().await), ["ROOTCA", "default"]);
    }
}

#[tokio::test]
async fn a_refused_pods_stream_ends() {
    let agent = TestAgent::new(&in_pod());
    agent.world.ca.lifetime(std::time::Duration::from_secs(4));
    let mut proxy = Proxy::start(&agent, wants(&["default"])).await;
    proxy.next().await;
    agent.world.ca.mode(Mode::Deny);
    assert_eq!(proxy.end().await.code(), Code::PermissionDenied);
}

fn token_of(pod: &str) -> String {
    let claims = format!(r#"{{"kubernetes.io":{{"pod":{{"uid":"{pod}"}}}}}}"#);
    format!("e30.{}.c2ln", BASE64_URL_SAFE_NO_PAD.encode(claims))
}

#[tokio::test]
async fn sds_req_23_a_relayed_token_gives_its_pods_identity_to_who_is_in_no_pod() {
    let agent = TestAgent::new("0::/\n");
    let token = token_of("some-pod");
    let mut proxy = Proxy::with(&agent, wants(&["default"]), Some(&token))
        .await
        .unwrap();
    assert_eq!(names(&proxy.next().await), ["default"]);
    let seen = agent.world.ca.seen();
    assert!(matches!(
        &seen[0].subject,
        citadel_proto::v1::issue_item::Subject::RelayedToken(relayed)
            if relayed.token == token && relayed.pod_uid.is_empty()
    ));
}

#[tokio::test]
async fn sds_req_23_a_relayed_token_of_another_pod_than_the_peers_is_refused() {
    let agent = TestAgent::new(&in_pod());
    let other = token_of("some-pod");
    let refused = Proxy::with(&agent, wants(&["default"]), Some(&other))
        .await
        .err()
        .unwrap();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(agent.world.ca.seen().is_empty());
    let refused = Proxy::with(&agent, wants(&["default"]), Some("no-jwt"))
        .await
        .err()
        .unwrap();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let own = token_of(POD);
    let mut proxy = Proxy::with(&agent, wants(&["default"]), Some(&own))
        .await
        .unwrap();
    assert_eq!(names(&proxy.next().await), ["default"]);
}

#[tokio::test]
async fn sds_req_01_19_another_type_and_too_many_names_end_the_stream() {
    let agent = TestAgent::new(&in_pod());
    let other = DiscoveryRequest {
        type_url: "type.googleapis.com/x".into(),
        ..wants(&["default"])
    };
    assert_eq!(
        Proxy::start(&agent, other).await.end().await.code(),
        Code::InvalidArgument
    );
    let many: Vec<String> = (0..=protocol::MAX_NAMES).map(|n| n.to_string()).collect();
    let many = DiscoveryRequest {
        resource_names: many,
        ..wants(&[])
    };
    assert_eq!(
        Proxy::start(&agent, many).await.end().await.code(),
        Code::InvalidArgument
    );
}

#[tokio::test]
async fn sds_req_21_fetch_answers_once() {
    let agent = TestAgent::new(&in_pod());
    let mut sds = client(&agent).await;
    let response = sds
        .fetch_secrets(wants(&["default", "ROOTCA"]))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(names(&response), ["ROOTCA", "default"]);
    let beside = sds
        .fetch_secrets(wants(&["default", "nonsense"]))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(names(&beside), ["default"]);
    let unknown = sds.fetch_secrets(wants(&["nonsense"])).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
}

/// 256 KiB is four times what an Envoy says first, and not much for a server to keep.
#[tokio::test]
async fn sds_req_19_a_message_over_256_kib_is_refused_and_one_below_is_not() {
    let agent = TestAgent::new(&in_pod());
    let padded = |bytes: usize| DiscoveryRequest {
        error_detail: Some(rpc::Status {
            message: "x".repeat(bytes),
            ..rpc::Status::default()
        }),
        ..wants(&["default"])
    };
    let mut proxy = Proxy::start(&agent, padded(250 * 1024)).await;
    proxy.next().await;
    proxy.send(padded(256 * 1024)).await;
    assert_eq!(proxy.end().await.code(), Code::OutOfRange);
    let refused = client(&agent)
        .await
        .fetch_secrets(padded(256 * 1024))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange);
}

#[tokio::test]
async fn sds_req_19_a_connection_has_only_so_many_streams() {
    let agent = TestAgent::new(&in_pod());
    let channel = agent.connect().await;
    let open = || {
        let mut client = SecretDiscoveryServiceClient::new(channel.clone());
        async move {
            let (requests, receiver) = mpsc::channel(1);
            requests.send(wants(&["default"])).await.unwrap();
            let stream = client.stream_secrets(ReceiverStream::new(receiver)).await;
            let mut stream = stream.unwrap().into_inner();
            stream.message().await.unwrap().unwrap();
            (requests, stream)
        }
    };
    let mut held = Vec::new();
    for _ in 0..STREAMS {
        held.push(soon(open()).await);
    }
    let mut one_more = tokio::spawn(open());
    let waits = tokio::time::timeout(Duration::from_millis(300), &mut one_more).await;
    assert!(waits.is_err(), "more streams than the limit");
    held.pop();
    soon(one_more).await.unwrap();
}
