//! Requests that want more than a certificate for their key.

use citadel_proto::v1::IssueSvidRequest;
use citadel_tests::client::{Client, Identity};
use citadel_tests::pki::csr::{self, Csr};
use citadel_tests::pki::{hostile, openssl};
use tonic::{Code, Status};

use crate::support::{Scene, certificate_request, check_leaf, verify_with_openssl};

/// None of them is refused: from a request the proven key is taken, and nothing else is even
/// looked at.
#[tokio::test]
async fn a_greedy_request_gets_nothing_but_its_key() {
    let scene = Scene::start().await;
    let web = scene.workload("greedy").await;
    let client = scene.client_of(&web);
    for request in hostile::greedy() {
        let der = request.der.unwrap();
        let spki = key_of(&der);
        for (service, answer) in [
            ("citadel.v1", citadel(&client, &der).await),
            ("istio", istio(&client, &request.pem).await),
        ] {
            let what = format!("{service}: {}", request.name);
            let identity = answer.unwrap_or_else(|status| panic!("{what}: {status:?}"));
            assert_eq!(identity.leaf().spki(), spki, "{what}");
            let wanted = citadel_tests::client::Grants::of_leaf(&web.spiffe_id());
            assert_eq!(identity.leaf().grants(), wanted, "{what}");
            let verified = verify_with_openssl(scene.ca.dir(), &identity, &scene.ca.bundle_file());
            assert_eq!(verified, Ok(()), "{what}");
        }
    }
}

#[tokio::test]
async fn an_unacceptable_request_gets_nothing_at_all_and_hears_why() {
    let scene = Scene::start().await;
    let web = scene.workload("unacceptable").await;
    let client = scene.client_of(&web);
    citadel(&client, &csr::plain().der)
        .await
        .expect("a good one is accepted");
    for request in hostile::unacceptable() {
        let fault = match request.name {
            "trailing bytes" => "bytes follow",
            "a broken signature" | "another key's proof" => "not proven",
            "P-521" | "secp256k1" | "Ed25519" | "RSA-1024" | "RSA-8192" => "key is refused",
            "RSA with e=3" => "65537",
            "too large" => "at most",
            "two PEM blocks" | "no PEM" => "one PEM block",
            "a certificate's label" => "CERTIFICATE REQUEST",
            _ => "CSR",
        };
        if let Some(der) = &request.der {
            let status = scene
                .refuses(Code::InvalidArgument, fault, citadel(&client, der))
                .await;
            assert!(
                status.message().contains(fault),
                "{}: {status:?}",
                request.name
            );
        }
        scene
            .refuses(Code::InvalidArgument, fault, istio(&client, &request.pem))
            .await;
    }
}

#[tokio::test]
async fn a_request_of_a_megabyte_is_not_even_read() {
    let scene = Scene::start().await;
    let web = scene.workload("megabyte").await;
    let client = scene.client_of(&web);
    let size = scene.admin.size().await;
    let huge = hostile::oversized(1 << 20);
    for answer in [
        citadel(&client, &huge.der).await,
        istio(&client, &huge.pem()).await,
    ] {
        // By the gRPC layer's limit of 64 KB, in front of everything else.
        let status = answer.unwrap_err();
        assert!(
            matches!(status.code(), Code::OutOfRange | Code::ResourceExhausted),
            "{status:?}"
        );
    }
    assert_eq!(scene.admin.size().await, size);
    citadel(&client, &csr::plain().der)
        .await
        .expect("the connection lives on");
}

#[tokio::test]
async fn every_key_of_a_good_kind_is_accepted() {
    let scene = Scene::start().await;
    let web = scene.workload("keys").await;
    let client = scene.client_of(&web);
    for key in [
        openssl::ec_key("P-256"),
        openssl::ec_key("P-384"),
        openssl::rsa_key(2048),
        openssl::rsa_key(4096),
    ] {
        let request = csr::for_key(&key);
        let answer = client.issue(&request).await.unwrap();
        let identity = Identity::new(&answer.svid.unwrap(), &request);
        check_leaf(&identity, &web.spiffe_id(), &key);
        verify_with_openssl(scene.ca.dir(), &identity, &scene.ca.bundle_file()).unwrap();
    }
}

#[tokio::test]
async fn another_kind_of_credential_is_not_answered_with_this_one() {
    let scene = Scene::start().await;
    let web = scene.workload("kinds").await;
    let client = scene.client_of(&web);
    let wanted = IssueSvidRequest {
        kind: 77,
        csr: csr::plain().der,
        ..Default::default()
    };
    scene
        .refuses(Code::InvalidArgument, "kind", client.issue_with(wanted))
        .await;
    let wanted = IssueSvidRequest {
        csr: csr::plain().der,
        previous_serial: "no serial".into(),
        ..Default::default()
    };
    scene
        .refuses(
            Code::InvalidArgument,
            "previous_serial",
            client.issue_with(wanted),
        )
        .await;
}

async fn citadel(client: &Client, der: &[u8]) -> Result<Identity, Status> {
    let request = IssueSvidRequest {
        csr: der.to_vec(),
        ..Default::default()
    };
    let answer = client.issue_with(request).await?;
    Ok(Identity::new(
        &answer.svid.expect("an SVID"),
        &without_key(der),
    ))
}

async fn istio(client: &Client, pem: &str) -> Result<Identity, Status> {
    let answer = client
        .create_certificate(certificate_request(pem, 0))
        .await?;
    Ok(Identity::of_istio(&answer.cert_chain, &without_key(&[])))
}

/// Only the certificate is of interest.
fn without_key(der: &[u8]) -> Csr {
    Csr {
        der: der.to_vec(),
        key_pem: String::new(),
    }
}

/// The key that a request proves, as openssl reads it.
fn key_of(der: &[u8]) -> Vec<u8> {
    let pem = openssl::run(&["req", "-noout", "-pubkey", "-inform", "DER"], der);
    openssl::run(&["pkey", "-pubin", "-outform", "DER"], &pem)
}
