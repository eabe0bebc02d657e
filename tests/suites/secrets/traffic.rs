//! Everything that carries a key or a token, in its place and out of it.

use std::time::Duration;

use citadel_proto::v1::issue_item::Subject;
use citadel_proto::v1::{IssueSvidRequest, RelayedToken};
use citadel_proto::workload::X509svidRequest;
use citadel_proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use citadel_tests::citadel::{Agent, AgentBuilder};
use citadel_tests::kubernetes::{Signer, TokenRequest, assemble, claims_of};
use citadel_tests::pki::{csr, openssl};
use citadel_tests::{secrets, wait};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::UnixStream;
use tonic::Request;
use tonic::transport::{Endpoint, Uri};

use super::searched;
use crate::support::{AgentClient, Scene, Workload, certificate_request, with_metadata};

#[tokio::test]
async fn no_log_shows_a_secret_in_json() {
    nothing_is_shown("json").await;
}

#[tokio::test]
async fn no_log_shows_a_secret_in_text() {
    nothing_is_shown("text").await;
}

async fn nothing_is_shown(format: &str) {
    let node = format!("secrets-{format}");
    let scene = Scene::with(|ca| {
        ca.set("log", json!({ "level": "trace", "format": format }))
            .set(
                "entries",
                json!([{
                    "id": "/unix/root", "nodes": [format!("default/{node}")],
                    "selectors": ["unix:uid:0"],
                }]),
            )
    })
    .await;
    let client = scene.agent(&node).await;
    let web = scene.pod(&node, "web", "web-1", &node).await;
    scene.seen_by(&client, &web).await;
    let agent = AgentBuilder::new(&scene.ca, &client.pod.token)
        .set("log", json!({ "level": "trace", "format": format }))
        .start()
        .await;

    as_it_should_be(&scene, &client, &web).await;
    out_of_place(&scene, &client, &web).await;
    over_the_workload_api(&agent).await;
    // What only the logs of a crash or an end would show.
    scene.api.delete_pod(&node, "web-1").await;
    assert!(scene.ca.terminate().await.success());
    let status = agent.process().terminate(Duration::from_secs(20)).await;
    assert!(status.success(), "{status}");

    let signature = web.token.rsplit('.').next().unwrap();
    searched(&[scene.ca.dir(), agent.dir()], "citadel-ca.log", signature);
}

async fn as_it_should_be(scene: &Scene<'_>, agent: &AgentClient, web: &Workload) {
    let by_token = scene.client_of(web);
    let identity = scene.identity_of(web).await;
    let by_certificate = scene.client().identity(&identity).token(&web.token).build();
    for client in [&by_token, &by_certificate] {
        client.issue(&csr::plain()).await.unwrap();
        let request = certificate_request(&csr::plain().pem(), 0);
        client.create_certificate(request).await.unwrap();
    }
    let relayed = RelayedToken {
        token: web.token.clone(),
        pod_uid: web.uid.clone(),
    };
    agent
        .one(AgentClient::item(Subject::RelayedToken(relayed)))
        .await
        .unwrap();
    agent.client.attest(&csr::plain()).await.unwrap();
}

/// Each of these is refused, with words that come near the secret.
async fn out_of_place(scene: &Scene<'_>, agent: &AgentClient, web: &Workload) {
    let plain = csr::plain();
    let claims = claims_of(&web.token);
    let wanted = TokenRequest::for_pod(&web.namespace, "web", "web-1").audiences(&["elsewhere"]);
    let mut late = claims.clone();
    late["exp"] = 1_700_000_000.into();
    let mut fat = claims.clone();
    fat["padding"] = "x".repeat(9000).into();
    let mut wrong = claims.clone();
    wrong["exp"] = "never".into();
    let unknown = json!({ "alg": "RS256", "kid": "unknown" });
    for token in [
        scene.api.request_token(&wanted).await.unwrap(),
        scene.api.sign_token(&late),
        scene.api.sign_token(&fat),
        scene.api.sign_token(&wrong),
        assemble(&unknown, &claims, Signer::Key(scene.api.signing_key())),
        web.token.replace('.', ":"),
        format!("{}.more", web.token),
        web.token[..web.token.len() - 3].to_owned(),
    ] {
        let client = scene.client().token(&token).build();
        client.issue(&plain).await.unwrap_err();
        let relayed = RelayedToken {
            token,
            pod_uid: String::new(),
        };
        agent
            .one(AgentClient::item(Subject::RelayedToken(relayed)))
            .await
            .unwrap_err();
    }
    // In headers of other names.
    for name in ["clusterid", "x-token", "cookie"] {
        let client = scene.client().header(name, web.token.clone()).build();
        client.issue(&plain).await.unwrap_err();
    }
    let basic = scene
        .client()
        .header("authorization", format!("Basic {}", web.token))
        .build();
    basic.issue(&plain).await.unwrap_err();
    // In the fields of messages; a key in the place of a request.
    let client = scene.client_of(web);
    let key = openssl::ec_key("P-256");
    secrets::register_key_pem("misplaced key", &key);
    client
        .create_certificate(certificate_request(&key, 0))
        .await
        .unwrap_err();
    client
        .create_certificate(certificate_request(&web.token, 0))
        .await
        .unwrap_err();
    let der = openssl::run(&["pkey", "-outform", "DER"], key.as_bytes());
    for csr in [der, key.into_bytes(), web.token.clone().into_bytes()] {
        let request = IssueSvidRequest {
            csr,
            ..Default::default()
        };
        client.issue_with(request).await.unwrap_err();
    }
    let request = IssueSvidRequest {
        csr: plain.der.clone(),
        previous_serial: web.token.clone(),
        ..Default::default()
    };
    client.issue_with(request).await.unwrap_err();
    for field in ["CertSigner", "ImpersonatedIdentity"] {
        let request = with_metadata(&plain.pem(), 0, &[(field, &web.token)]);
        client.create_certificate(request).await.unwrap_err();
    }
    // A megabyte of token.
    let huge = scene.client().token(&web.token.repeat(1000)).build();
    huge.issue(&plain).await.unwrap_err();
}

/// The one interface that hands out private keys.
async fn over_the_workload_api(agent: &Agent) {
    let socket = agent.socket();
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    let channel =
        Endpoint::from_static("http://agent.invalid").connect_with_connector_lazy(connector);
    let client = SpiffeWorkloadApiClient::new(channel);
    let response = wait::until("an SVID", Duration::from_secs(20), async || {
        let mut request = Request::new(X509svidRequest {});
        request
            .metadata_mut()
            .insert("workload.spiffe.io", "true".parse().expect("a value"));
        let mut stream = client
            .clone()
            .fetch_x509svid(request)
            .await
            .ok()?
            .into_inner();
        stream.message().await.ok()?
    })
    .await;
    for svid in &response.svids {
        assert_eq!(svid.spiffe_id, "spiffe://example.org/unix/root");
        secrets::register_key("key from the Workload API", &svid.x509_svid_key);
    }
    assert!(!response.svids.is_empty());
}
