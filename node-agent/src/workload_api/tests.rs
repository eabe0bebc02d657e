#![allow(clippy::unwrap_used, clippy::expect_used)]

use citadel_identity::{bundle::Bundle, verify};
use citadel_proto::workload::{
    JwtBundlesRequest, JwtsvidRequest, ValidateJwtsvidRequest, X509BundlesRequest, X509svidRequest,
    X509svidResponse, spiffe_workload_api_client::SpiffeWorkloadApiClient,
};
use rustls::pki_types::CertificateDer;
use tonic::{Request, Response, Streaming, transport::Channel};

use super::*;
use crate::{
    testing::Mode,
    testing_agent::{POD, TestAgent, in_pod, nothing_from, soon, this_user},
};

fn with_header<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request
        .metadata_mut()
        .insert("workload.spiffe.io", "true".parse().unwrap());
    request
}

async fn client(agent: &TestAgent) -> SpiffeWorkloadApiClient<Channel> {
    SpiffeWorkloadApiClient::new(agent.connect().await)
}

async fn svids(agent: &TestAgent) -> Result<Streaming<X509svidResponse>, Status> {
    let answer = client(agent)
        .await
        .fetch_x509svid(with_header(X509svidRequest {}))
        .await;
    answer.map(Response::into_inner)
}

async fn next<T>(stream: &mut Streaming<T>) -> Result<T, Status> {
    soon(stream.message())
        .await
        .map(|message| message.expect("the stream goes on"))
}

fn ids(response: &X509svidResponse) -> Vec<&str> {
    response
        .svids
        .iter()
        .map(|svid| svid.spiffe_id.as_str())
        .collect()
}

/// `spiffe_req_22`: every request carries the header, also those that do nothing here.
#[tokio::test]
async fn spiffe_req_22_a_request_without_the_header_is_an_invalid_argument() {
    let agent = TestAgent::new(&in_pod());
    let mut api = client(&agent).await;
    let mut codes = Vec::new();
    codes.push(
        api.fetch_x509svid(X509svidRequest {})
            .await
            .unwrap_err()
            .code(),
    );
    codes.push(
        api.fetch_x509_bundles(X509BundlesRequest {})
            .await
            .unwrap_err()
            .code(),
    );
    codes.push(
        api.fetch_jwtsvid(JwtsvidRequest::default())
            .await
            .unwrap_err()
            .code(),
    );
    codes.push(
        api.fetch_jwt_bundles(JwtBundlesRequest {})
            .await
            .unwrap_err()
            .code(),
    );
    codes.push(
        api.validate_jwtsvid(ValidateJwtsvidRequest::default())
            .await
            .unwrap_err()
            .code(),
    );
    let mut wrong = Request::new(X509svidRequest {});
    wrong
        .metadata_mut()
        .insert("workload.spiffe.io", "false".parse().unwrap());
    codes.push(api.fetch_x509svid(wrong).await.unwrap_err().code());
    let mut twice = with_header(X509svidRequest {});
    twice
        .metadata_mut()
        .append("workload.spiffe.io", "true".parse().unwrap());
    codes.push(api.fetch_x509svid(twice).await.unwrap_err().code());
    assert_eq!(codes, [Code::InvalidArgument; 7]);
}

/// `spiffe_req_26`, `spiffe_req_27`: what this agent does not serve is Unimplemented.
#[tokio::test]
async fn spiffe_req_26_27_jwt_is_unimplemented() {
    let agent = TestAgent::new(&in_pod());
    let mut api = client(&agent).await;
    let jwt = api
        .fetch_jwtsvid(with_header(JwtsvidRequest::default()))
        .await
        .unwrap_err();
    let bundles = api
        .fetch_jwt_bundles(with_header(JwtBundlesRequest {}))
        .await
        .unwrap_err();
    let validate = with_header(ValidateJwtsvidRequest::default());
    let validate = api.validate_jwtsvid(validate).await.unwrap_err();
    for status in [jwt, bundles, validate] {
        assert_eq!(status.code(), Code::Unimplemented);
    }
}

/// `spiffe_req_23`, `spiffe_req_28`, `spiffe_req_30`: without any participation of the
/// workload the first response holds an SVID that verifies, with its key, at once.
#[tokio::test]
async fn spiffe_req_28_30_a_pod_gets_its_identity() {
    let agent = TestAgent::new(&in_pod());
    let mut stream = svids(&agent).await.unwrap();
    let response = next(&mut stream).await.unwrap();
    assert_eq!(ids(&response), [format!("spiffe://example.org/pod/{POD}")]);
    let svid = &response.svids[0];
    let leaf = vec![CertificateDer::from(svid.x509_svid.clone())];
    let key = citadel_identity::key::WorkloadKey::from_pkcs8(&svid.x509_svid_key).unwrap();
    let bundles = agent.world.ca.pki.bundles();
    let verified = verify::verify_svid(&leaf, &bundles, agent.world.clock.true_time()).unwrap();
    assert_eq!(verified.spiffe_id.to_string(), svid.spiffe_id);
    assert_eq!(
        verified.spki_sha256,
        citadel_identity::crypto::sha256(key.spki_der())
    );
    assert_eq!(svid.bundle, agent.world.ca.pki.root().to_vec());
    assert!(response.federated_bundles.is_empty());
    nothing_from(stream.message()).await;
}

/// `spiffe_req_28`: each message is the full set, also when one of several changes.
#[tokio::test]
async fn spiffe_req_28_every_message_is_the_full_set() {
    let agent = TestAgent::new("0::/\n");
    let user = this_user();
    agent.set_entries(&[
        ("one", &[&user]),
        ("two", &[&user]),
        ("other", &["unix:uid:4242424"]),
    ]);
    let mut stream = svids(&agent).await.unwrap();
    let response = next(&mut stream).await.unwrap();
    assert_eq!(
        ids(&response),
        ["spiffe://example.org/one", "spiffe://example.org/two"]
    );
    agent.set_entries(&[("one", &[&user]), ("two", &[&user]), ("three", &[&user])]);
    let full = loop {
        let response = next(&mut stream).await.unwrap();
        assert_eq!(
            ids(&response)[..2],
            ["spiffe://example.org/one", "spiffe://example.org/two"]
        );
        if response.svids.len() == 3 {
            break response;
        }
    };
    assert_eq!(ids(&full)[2], "spiffe://example.org/three");
    agent.set_entries(&[("three", &[&user])]);
    assert_eq!(
        ids(&next(&mut stream).await.unwrap()),
        ["spiffe://example.org/three"]
    );
    // Nothing is left: the stream says so and ends.
    agent.set_entries(&[]);
    assert_eq!(
        next(&mut stream).await.unwrap_err().code(),
        Code::PermissionDenied
    );
}

/// `spiffe_req_30`: hints are the entries', and unique among those of one answer. CRLs are an
/// empty list as long as there are none.
#[tokio::test]
async fn spiffe_req_30_hints_come_through_and_none_stands_twice() {
    let agent = TestAgent::new("0::/\n");
    let user = this_user();
    for (name, hint) in [
        ("one", "internal"),
        ("two", "internal"),
        ("four", "external"),
    ] {
        agent.world.ca.hint_of(name, hint);
    }
    let names = ["one", "two", "three", "four"];
    let selectors = [user.as_str()];
    let all = names.map(|name| (name, &selectors[..]));
    agent.set_entries(&all);
    let mut stream = svids(&agent).await.unwrap();
    let response = loop {
        let response = next(&mut stream).await.unwrap();
        if response.svids.len() == names.len() {
            break response;
        }
    };
    let hints = response.svids.iter().map(|svid| svid.hint.as_str());
    assert_eq!(hints.collect::<Vec<_>>(), ["internal", "", "", "external"]);
    assert!(response.crl.is_empty());
}

/// `spiffe_req_26`: no identity is `PermissionDenied`.
#[tokio::test]
async fn spiffe_req_26_who_has_no_identity_is_denied() {
    let agent = TestAgent::new("0::/\n");
    let mut stream = svids(&agent).await.unwrap();
    assert_eq!(
        next(&mut stream).await.unwrap_err().code(),
        Code::PermissionDenied
    );
    let mut api = client(&agent).await;
    let bundles = api
        .fetch_x509_bundles(with_header(X509BundlesRequest {}))
        .await;
    let mut bundles = bundles.unwrap().into_inner();
    assert_eq!(
        next(&mut bundles).await.unwrap_err().code(),
        Code::PermissionDenied
    );
    // A pod that the CA refuses.
    let agent = TestAgent::new(&in_pod());
    agent.world.ca.mode(Mode::Deny);
    let mut stream = svids(&agent).await.unwrap();
    assert_eq!(
        next(&mut stream).await.unwrap_err().code(),
        Code::PermissionDenied
    );
    // A peer whose cgroup makes no sense.
    let agent = TestAgent::new("0::/kubepods/podnonsense\n");
    assert_eq!(
        svids(&agent).await.unwrap_err().code(),
        Code::PermissionDenied
    );
}

/// `spiffe_req_26`: while the CA is away nothing is ready, which is Unavailable.
#[tokio::test]
async fn spiffe_req_26_nothing_ready_is_unavailable() {
    let agent = TestAgent::new(&in_pod());
    agent.world.ca.mode(Mode::Down);
    let mut stream = svids(&agent).await.unwrap();
    let status = next(&mut stream).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(
        status.message().contains("connection refused"),
        "{status:?}"
    );
    // The CA has not told this node's entries yet.
    let agent = TestAgent::new("0::/\n");
    agent.entries.send_replace(None);
    let mut stream = svids(&agent).await.unwrap();
    assert_eq!(
        next(&mut stream).await.unwrap_err().code(),
        Code::Unavailable
    );
}

#[tokio::test]
async fn a_workload_that_waits_is_served_when_the_ca_is_back() {
    let agent = TestAgent::new(&in_pod());
    agent.world.ca.mode(Mode::Down);
    let mut stream = svids(&agent).await.unwrap();
    nothing_from(stream.message()).await;
    agent.world.ca.mode(Mode::Good);
    assert_eq!(next(&mut stream).await.unwrap().svids.len(), 1);
}

/// `spiffe_req_31`: the bundles of at least the caller's own trust domain.
#[tokio::test]
async fn spiffe_req_31_bundles_are_by_trust_domain_and_follow() {
    let agent = TestAgent::new(&in_pod());
    let mut api = client(&agent).await;
    let stream = api
        .fetch_x509_bundles(with_header(X509BundlesRequest {}))
        .await;
    let mut stream = stream.unwrap().into_inner();
    let response = next(&mut stream).await.unwrap();
    let root = agent.world.ca.pki.root().to_vec();
    assert_eq!(response.bundles.len(), 1);
    assert_eq!(response.bundles["spiffe://example.org"], root);
    // spiffe_req_36: another trust domain's bundle stands beside it, never within it.
    let other = crate::testing::Pki::new().root();
    let mut set = agent.world.ca.pki.bundles();
    set.insert(Bundle {
        trust_domain: TrustDomain::new("other.org").unwrap(),
        authorities: vec![other.clone()],
        sequence: 1,
        refresh_hint: std::time::Duration::from_mins(5),
    });
    agent
        .world
        .bundles
        .send_replace(Some(std::sync::Arc::new(set)));
    let response = next(&mut stream).await.unwrap();
    assert_eq!(response.bundles["spiffe://example.org"], root);
    assert_eq!(response.bundles["spiffe://other.org"], other.to_vec());
    let mut stream = svids(&agent).await.unwrap();
    let response = next(&mut stream).await.unwrap();
    assert_eq!(
        response.federated_bundles.keys().collect::<Vec<_>>(),
        ["spiffe://other.org"]
    );
}

/// A message comes when what it shows changes, and not when only the numbers beside a
/// bundle do.
#[tokio::test]
async fn an_answer_is_repeated_only_when_it_is_another_one() {
    let agent = TestAgent::new(&in_pod());
    let mut stream = svids(&agent).await.unwrap();
    let first = next(&mut stream).await.unwrap();
    let set = |sequence, authorities| {
        let mut set = citadel_identity::bundle::BundleSet::default();
        set.insert(Bundle {
            trust_domain: TrustDomain::new("example.org").unwrap(),
            authorities,
            sequence,
            refresh_hint: std::time::Duration::from_mins(7),
        });
        agent
            .world
            .bundles
            .send_replace(Some(std::sync::Arc::new(set)));
    };
    let root = agent.world.ca.pki.root();
    set(2, vec![root.clone()]);
    nothing_from(stream.message()).await;
    let other = crate::testing::Pki::new().root();
    set(3, vec![root, other]);
    let second = next(&mut stream).await.unwrap();
    assert_eq!(second.svids[0].x509_svid, first.svids[0].x509_svid);
    assert!(second.svids[0].bundle.len() > first.svids[0].bundle.len());
}

/// Many entries could be for a pod and one is: neither are the others kept, nor do they
/// keep the one from it.
#[tokio::test]
async fn a_pod_that_hundreds_of_entries_could_be_for_gets_the_one_that_is() {
    let agent = TestAgent::new(&in_pod());
    let names: Vec<String> = (0..300).map(|number| format!("entry-{number}")).collect();
    let mut entries: Vec<(&str, &[&str])> = Vec::new();
    for name in &names {
        agent.world.ca.mode_of(name, Mode::Deny);
        entries.push((name, &["k8s:ns:shop"]));
    }
    entries.push(("matches", &["k8s:ns:shop"]));
    agent.set_entries(&entries);
    let mut stream = svids(&agent).await.unwrap();
    let response = next(&mut stream).await.unwrap();
    let pod = format!("spiffe://example.org/pod/{POD}");
    assert_eq!(ids(&response), [&pod, "spiffe://example.org/matches"]);
    assert_eq!(agent.world.ca.seen().len(), 302);
    // Another stream of the same pod asks nothing again.
    let mut again = svids(&agent).await.unwrap();
    assert_eq!(ids(&next(&mut again).await.unwrap()), ids(&response));
    assert_eq!(agent.world.ca.seen().len(), 302);
    // A change of entries does.
    for name in &names[..200] {
        agent.world.ca.mode_of(name, Mode::Good);
    }
    agent.set_entries(&entries[..200]);
    let full = loop {
        let response = next(&mut stream).await.unwrap();
        if response.svids.len() == 201 {
            break response;
        }
    };
    assert_eq!(ids(&full)[200], "spiffe://example.org/entry-199");
}
