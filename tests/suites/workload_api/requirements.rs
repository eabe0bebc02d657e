//! What the standard asks of an endpoint, by number (SPIFFE Workload Endpoint and
//! Workload API).

use std::collections::HashSet;
use std::time::Duration;

use citadel_proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use citadel_proto::workload::{
    JwtBundlesRequest, JwtsvidRequest, ValidateJwtsvidRequest, X509BundlesRequest, X509svidRequest,
    X509svidResponse,
};
use citadel_tests::client::Certificate;
use citadel_tests::peer::channel_to;
use citadel_tests::pki::openssl;
use citadel_tests::secrets;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};

use crate::node::{Node, user_entry};

/// A message that nothing holds up.
pub(super) const PROMPT: Duration = Duration::from_secs(10);

/// A node whose user 0, so this very process, has these identities.
pub(super) async fn node(name: &str, ids: &[(&str, &str)], ttl: &str) -> Node {
    let entries: Vec<_> = ids
        .iter()
        .map(|(id, hint)| {
            let mut entry = user_entry(id, name, 0);
            entry["hint"] = (*hint).into();
            entry
        })
        .collect();
    Node::with(
        name,
        |ca| ca.set("entries", entries),
        |agent| agent.set("svid_ttl", ttl),
    )
    .await
}

pub(super) fn client(node: &Node) -> SpiffeWorkloadApiClient<Channel> {
    SpiffeWorkloadApiClient::new(channel_to(&node.agent.socket()))
}

pub(super) fn with_header<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request
        .metadata_mut()
        .insert("workload.spiffe.io", "true".parse().unwrap());
    request
}

pub(super) async fn svids(node: &Node) -> Streaming<X509svidResponse> {
    let answer = client(node)
        .fetch_x509svid(with_header(X509svidRequest {}))
        .await;
    answer.expect("a stream").into_inner()
}

/// The next message of a stream; its keys are registered as secrets.
pub(super) async fn next(
    stream: &mut Streaming<X509svidResponse>,
    deadline: Duration,
) -> X509svidResponse {
    let message = tokio::time::timeout(deadline, stream.message())
        .await
        .expect("a message in time");
    let message = message.expect("no error").expect("no end");
    for svid in &message.svids {
        secrets::register_key("SVID key", &svid.x509_svid_key);
    }
    message
}

/// DER certificates that follow each other.
fn certificates(mut der: &[u8]) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    while let [0x30, 0x82, high, low, ..] = *der {
        let (one, rest) = der.split_at(4 + usize::from(u16::from_be_bytes([high, low])));
        found.push(one.to_vec());
        der = rest;
    }
    assert!(der.is_empty(), "bytes that are no certificate");
    found
}

async fn code_of<T>(answer: impl Future<Output = Result<T, Status>>) -> Code {
    match answer.await {
        Ok(_) => Code::Ok,
        Err(status) => status.code(),
    }
}

/// The code that a stream ends with before its first message.
async fn stream_code<T>(
    answer: impl Future<Output = Result<tonic::Response<Streaming<T>>, Status>>,
) -> Code {
    match answer.await {
        Ok(answer) => code_of(answer.into_inner().message()).await,
        Err(status) => status.code(),
    }
}

#[tokio::test]
async fn spiffe_req_22_a_request_without_the_header_is_invalid() {
    let node = node("req22", &[("/unix/root", "")], "1h").await;
    let mut client = client(&node);
    let svid = |values: &[&'static str]| {
        let mut request = Request::new(X509svidRequest {});
        for value in values {
            request
                .metadata_mut()
                .append("workload.spiffe.io", value.parse().unwrap());
        }
        request
    };
    for values in [
        &[][..],
        &["false"],
        &["True"],
        &[""],
        &["1"],
        &["true", "true"],
    ] {
        let code = stream_code(client.fetch_x509svid(svid(values))).await;
        assert_eq!(code, Code::InvalidArgument, "{values:?}");
    }
    let code = stream_code(client.fetch_x509_bundles(Request::new(X509BundlesRequest {}))).await;
    assert_eq!(code, Code::InvalidArgument);
    let code = code_of(client.fetch_jwtsvid(Request::new(JwtsvidRequest::default()))).await;
    assert_eq!(code, Code::InvalidArgument);
    let code = stream_code(client.fetch_jwt_bundles(Request::new(JwtBundlesRequest {}))).await;
    assert_eq!(code, Code::InvalidArgument);
    let validate = Request::new(ValidateJwtsvidRequest::default());
    assert_eq!(
        code_of(client.validate_jwtsvid(validate)).await,
        Code::InvalidArgument
    );
    // The control: with it, all is well.
    assert_eq!(
        stream_code(client.fetch_x509svid(svid(&["true"]))).await,
        Code::Ok
    );
}

#[tokio::test]
async fn spiffe_req_26_a_caller_without_an_identity_is_denied() {
    // The entry is for another user than the one that runs this.
    let entry = user_entry("/unix/other", "req26", 4242);
    let node = Node::with("req26", |ca| ca.set("entries", vec![entry]), |agent| agent).await;
    let mut client = client(&node);
    let svids = client.fetch_x509svid(with_header(X509svidRequest {}));
    assert_eq!(stream_code(svids).await, Code::PermissionDenied);
    let bundles = client.fetch_x509_bundles(with_header(X509BundlesRequest {}));
    assert_eq!(stream_code(bundles).await, Code::PermissionDenied);
    let refusals = node.refusals();
    assert_eq!(refusals.len(), 2, "{refusals:#?}");
    for (line, rpc) in refusals.iter().zip(["FetchX509SVID", "FetchX509Bundles"]) {
        assert_eq!(
            (&line["code"], &line["rpc"]),
            (&"PermissionDenied".into(), &rpc.into())
        );
        assert!(
            line["reason"].as_str().unwrap().contains("no entry"),
            "{line}"
        );
    }
}

#[tokio::test]
async fn spiffe_req_27_jwt_rpcs_are_unimplemented() {
    let node = node("req27", &[("/unix/root", "")], "1h").await;
    let mut client = client(&node);
    let request = JwtsvidRequest {
        audience: vec!["somebody".into()],
        ..Default::default()
    };
    assert_eq!(
        code_of(client.fetch_jwtsvid(with_header(request))).await,
        Code::Unimplemented
    );
    let bundles = client.fetch_jwt_bundles(with_header(JwtBundlesRequest {}));
    assert_eq!(stream_code(bundles).await, Code::Unimplemented);
    let request = ValidateJwtsvidRequest {
        audience: "a".into(),
        svid: "b".into(),
    };
    assert_eq!(
        code_of(client.validate_jwtsvid(with_header(request))).await,
        Code::Unimplemented
    );
}

#[tokio::test]
async fn spiffe_req_28_each_message_is_the_full_set_and_the_first_comes_at_once() {
    let ids = [("/unix/first", "internal"), ("/unix/second", "external")];
    let node = node("req28", &ids, "10s").await;
    let full = |message: &X509svidResponse| {
        let ids: Vec<_> = message
            .svids
            .iter()
            .map(|svid| svid.spiffe_id.clone())
            .collect();
        assert_eq!(ids, ids_of(&["/unix/first", "/unix/second"]));
    };
    let mut stream = svids(&node).await;
    let first = next(&mut stream, PROMPT).await;
    full(&first);
    // Renewed one by one or together: each time all of them.
    let mut before = first;
    for _ in 0..2 {
        let message = next(&mut stream, Duration::from_secs(15)).await;
        full(&message);
        assert_ne!(message.svids, before.svids, "a message without news");
        before = message;
    }
    // What the agent holds already needs no CA.
    node.ca.process().kill().await;
    let again = next(&mut svids(&node).await, PROMPT).await;
    full(&again);
}

#[tokio::test]
async fn spiffe_req_30_an_svid_is_chain_key_bundle_and_hint() {
    let ids = [
        ("/unix/first", "internal"),
        ("/unix/second", "external"),
        ("/unix/third", ""),
    ];
    let node = node("req30", &ids, "1h").await;
    let message = next(&mut svids(&node).await, PROMPT).await;
    let root = std::fs::read(node.ca.bundle_file()).unwrap();
    let root = openssl::run(&["x509", "-outform", "DER"], &root);

    let ids: Vec<_> = message
        .svids
        .iter()
        .map(|svid| svid.spiffe_id.clone())
        .collect();
    // The first is the default one: as the CA lists its entries.
    assert_eq!(ids, ids_of(&["/unix/first", "/unix/second", "/unix/third"]));
    let hints: Vec<_> = message
        .svids
        .iter()
        .map(|svid| svid.hint.as_str())
        .collect();
    assert_eq!(hints, ["internal", "external", ""]);
    let named: Vec<_> = hints.iter().filter(|hint| !hint.is_empty()).collect();
    assert_eq!(named.iter().collect::<HashSet<_>>().len(), named.len());
    for svid in &message.svids {
        let chain = certificates(&svid.x509_svid);
        assert_eq!(chain.len(), 2, "leaf first, then the intermediate");
        let leaf = Certificate::of_der(&chain[0]);
        assert_eq!(leaf.uris(), std::slice::from_ref(&svid.spiffe_id));
        // PKCS#8, unencrypted, and the leaf's own key.
        let args = ["pkey", "-inform", "DER", "-pubout", "-outform", "DER"];
        assert_eq!(openssl::run(&args, &svid.x509_svid_key), leaf.spki());
        let args = ["asn1parse", "-inform", "DER"];
        let shape = openssl::run_text(&args, &svid.x509_svid_key);
        assert!(shape.contains("id-ecPublicKey"), "the algorithm of PKCS#8");
        assert_eq!(svid.bundle, root);
    }
    assert!(message.federated_bundles.is_empty());
}

#[tokio::test]
async fn spiffe_req_31_bundles_hold_the_caller_s_own_trust_domain() {
    let node = node("req31", &[("/unix/root", "")], "1h").await;
    let answer = client(&node)
        .fetch_x509_bundles(with_header(X509BundlesRequest {}))
        .await;
    let mut stream = answer.unwrap().into_inner();
    let message = tokio::time::timeout(PROMPT, stream.message())
        .await
        .expect("in time");
    let message = message.unwrap().unwrap();
    let root = std::fs::read(node.ca.bundle_file()).unwrap();
    let root = openssl::run(&["x509", "-outform", "DER"], &root);
    assert_eq!(
        message.bundles.len(),
        1,
        "only bundles of trust domains that are known"
    );
    assert_eq!(message.bundles["spiffe://example.org"], root);
}

fn ids_of(paths: &[&str]) -> Vec<String> {
    paths
        .iter()
        .map(|path| format!("spiffe://example.org{path}"))
        .collect()
}
