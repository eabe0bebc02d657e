//! The harness itself: what it starts is real, what it makes is accepted where
//! it should be, and what it watches for is noticed.

use std::process::Command;
use std::time::Duration;

use base64::Engine;
use citadel_tests::dir::TestDir;
use citadel_tests::kubernetes::{self, ApiServer, KeyType, Pod, Signer, SigningKey, TokenRequest};
use citadel_tests::parts::{part, program};
use citadel_tests::pki::{csr, hostile, openssl};
use citadel_tests::process::Launch;
use citadel_tests::{http, ports, secrets};
use serde_json::json;

/// A namespace with an account, a node, and a pod of that account on it.
async fn pod(api: &ApiServer, namespace: &str) -> (String, String) {
    api.create_namespace(namespace).await;
    api.create_account(namespace, "web").await;
    let node = format!("node-{namespace}");
    api.create_node(&node).await;
    let uid = api
        .create_pod(
            &Pod::new(namespace, "web-1", "web")
                .on(&node)
                .label("app", "web"),
        )
        .await;
    (uid, node)
}

#[tokio::test]
async fn the_api_server_is_the_version_that_was_asked_for() {
    let api = ApiServer::shared().await;
    let version = api
        .request(::http::Method::GET, "/version", None)
        .await
        .unwrap();
    assert_eq!(version["gitVersion"], "v1.36.3");
}

#[tokio::test]
async fn a_pod_bound_token_carries_pod_and_node_and_passes_review() {
    let api = ApiServer::shared().await;
    let (uid, node) = pod(api, "bound").await;
    let token = api.token("bound", "web", "web-1").await;

    let claims = kubernetes::claims_of(&token);
    assert_eq!(claims["kubernetes.io"]["pod"]["uid"], uid.as_str());
    assert_eq!(claims["kubernetes.io"]["node"]["name"], node.as_str());
    assert_eq!(claims["aud"], json!(["citadel"]));

    let review = api.review(&token, &["citadel"]).await;
    assert_eq!(review["authenticated"], true, "{review}");
    assert_eq!(
        review["user"]["username"],
        "system:serviceaccount:bound:web"
    );
    let other = api.review(&token, &["elsewhere"]).await;
    assert_ne!(other["authenticated"], true, "{other}");
}

#[tokio::test]
async fn made_up_tokens_are_as_good_as_their_signer() {
    let api = ApiServer::shared().await;
    pod(api, "made-up").await;
    let real = api.token("made-up", "web", "web-1").await;
    let mut claims = kubernetes::claims_of(&real);
    assert_eq!(kubernetes::header_of(&real), api.token_header());

    // Any difference in what follows is then the difference that was made.
    let signed = api.sign_token(&claims);
    assert_eq!(
        api.review(&signed, &["citadel"]).await["authenticated"],
        true
    );

    let foreign_key = SigningKey::generate(KeyType::Rsa2048);
    let foreign = kubernetes::assemble(&api.token_header(), &claims, Signer::Key(&foreign_key));
    let unsigned = kubernetes::assemble(&json!({ "alg": "none" }), &claims, Signer::Nobody);
    claims["exp"] = json!(1_700_000_000);
    for bad in [foreign, unsigned, api.sign_token(&claims)] {
        assert_ne!(
            api.review(&bad, &["citadel"]).await["authenticated"],
            true,
            "{bad}"
        );
    }
}

#[tokio::test]
async fn api_servers_sign_with_the_key_type_that_a_test_wants() {
    for key_type in [KeyType::P256, KeyType::P384] {
        let options = kubernetes::Options {
            key_type,
            ..Default::default()
        };
        let api = ApiServer::start_with(options).await;
        pod(&api, "curves").await;
        let real = api.token("curves", "web", "web-1").await;
        assert_eq!(kubernetes::header_of(&real), api.token_header());
        let made_up = api.sign_token(&kubernetes::claims_of(&real));
        let review = api.review(&made_up, &["citadel"]).await;
        assert_eq!(review["authenticated"], true, "{key_type:?}: {review}");
    }
}

#[tokio::test]
async fn the_ca_account_may_what_a_deployment_grants_and_no_more() {
    let api = ApiServer::shared().await;
    let dir = TestDir::new("rights");
    let access = api.ca_access("citadel-system", &dir).await;
    let can = |args: &[&str]| {
        let output = Command::new(part("KUBECTL"))
            .env("KUBECONFIG", &access.kubeconfig)
            .args(["auth", "can-i", "--quiet"])
            .args(args)
            .output()
            .unwrap();
        output.status.success()
    };
    assert!(can(&["watch", "pods", "--all-namespaces"]));
    assert!(can(&["list", "nodes"]));
    assert!(can(&["create", "tokenreviews.authentication.k8s.io"]));
    assert!(can(&["get", "/openid/v1/jwks"]));
    let bundle = "configmaps/citadel-bundle";
    for verb in ["create", "get", "patch"] {
        assert!(can(&[verb, bundle, "--namespace", "citadel-system"]));
        assert!(!can(&[verb, bundle, "--namespace", "default"]));
        assert!(!can(&[verb, "configmaps", "--namespace", "citadel-system"]));
    }
    assert!(!can(&["get", "secrets", "--namespace", "citadel-system"]));
    assert!(!can(&[
        "create",
        "serviceaccounts/token",
        "--namespace",
        "default"
    ]));
    assert!(!can(&["delete", "pods", "--all-namespaces"]));
}

#[tokio::test]
async fn an_api_server_of_its_own_stops_hangs_and_comes_back() {
    let api = ApiServer::start().await;
    pod(&api, "outage").await;
    let wanted = TokenRequest::for_pod("outage", "web", "web-1");
    api.request_token(&wanted).await.unwrap();

    api.stop().await;
    assert_eq!(api.request_token(&wanted).await.unwrap_err().code, 0);
    api.start_again().await;
    api.request_token(&wanted).await.unwrap();

    api.pause().await;
    let hung = tokio::time::timeout(Duration::from_secs(1), api.request_token(&wanted)).await;
    assert!(hung.is_err(), "a stopped process answered");
    api.resume().await;
    api.request_token(&wanted).await.unwrap();
}

#[tokio::test]
async fn an_agents_token_names_its_node_and_pod() {
    let api = ApiServer::shared().await;
    let agent = api.create_agent("agents-node").await;
    let claims = kubernetes::claims_of(&agent.token);
    assert_eq!(
        claims["sub"],
        "system:serviceaccount:citadel-system:citadel-agent"
    );
    assert_eq!(claims["kubernetes.io"]["pod"]["uid"], agent.uid.as_str());
    assert_eq!(
        claims["kubernetes.io"]["node"]["uid"],
        agent.node_uid.as_str()
    );
    let first = api
        .create_workload("fixtures", "web", "web-1", "agents-node")
        .await;
    let second = api
        .create_workload("fixtures", "web", "web-2", "agents-node")
        .await;
    assert_ne!(first, second);
}

#[tokio::test]
async fn a_deleted_pod_gets_no_token() {
    let api = ApiServer::shared().await;
    pod(api, "deleted").await;
    api.begin_pod_deletion("deleted", "web-1").await;
    api.request_token(&TokenRequest::for_pod("deleted", "web", "web-1"))
        .await
        .unwrap();
    api.delete_pod("deleted", "web-1").await;
    let refused = api
        .request_token(&TokenRequest::for_pod("deleted", "web", "web-1"))
        .await;
    assert_eq!(refused.unwrap_err().code, 404);
}

#[tokio::test]
async fn a_secret_planted_in_a_log_is_found_in_every_form() {
    let token = secrets::random_token("planted token");
    let key = csr::plain().key_pem;
    let der = openssl::run(&["pkey", "-outform", "DER"], key.as_bytes());
    let base64 = base64::engine::general_purpose::STANDARD.encode(&der);
    let forms = [
        (
            "plain",
            format!("authorization: Bearer {token}").into_bytes(),
        ),
        ("json", json!({ "message": key }).to_string().into_bytes()),
        ("base64", format!("key={base64}").into_bytes()),
        (
            "shifted",
            base64::engine::general_purpose::STANDARD
                .encode(format!("x{token}"))
                .into_bytes(),
        ),
        ("hex", hex::encode(&der).into_bytes()),
        ("upper", hex::encode_upper(&der).into_bytes()),
        ("list", format!("PrivateKey({der:?})").into_bytes()),
        ("der", der.clone()),
    ];
    for (name, content) in forms {
        // Outside the suite's folder, or the run's own search would fail.
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(
            folder.path().join("program.log"),
            [b"before ", &content[..], b" after"].concat(),
        )
        .unwrap();
        let planted = std::panic::catch_unwind(|| secrets::assert_none_in(folder.path()));
        assert!(planted.is_err(), "{name} was not found");
    }

    let clean = tempfile::tempdir().unwrap();
    std::fs::write(
        clean.path().join("program.log"),
        "serial 0123456789abcdef, 100 % fine",
    )
    .unwrap();
    secrets::assert_none_in(clean.path());
}

#[tokio::test]
async fn the_search_after_a_suite_finds_what_the_suite_registered() {
    let token = secrets::random_token("planted for the search");
    let suite = tempfile::tempdir().unwrap();
    let registered =
        std::path::Path::new(&std::env::var_os("CITADEL_TEST_DIR").unwrap()).join("secrets");
    std::fs::copy(registered, suite.path().join("secrets")).unwrap();
    let scan = || {
        Command::new(program("citadel-test-scan"))
            .arg(suite.path())
            .output()
            .unwrap()
    };
    assert!(scan().status.success());

    std::fs::create_dir(suite.path().join("ca")).unwrap();
    std::fs::write(
        suite.path().join("ca/citadel-ca.log"),
        format!("token={token}"),
    )
    .unwrap();
    let found = scan();
    assert_eq!(found.status.code(), Some(1), "{found:?}");
    assert!(String::from_utf8_lossy(&found.stdout).contains("planted for the search"));
}

#[tokio::test]
async fn a_child_dies_with_its_handle_and_says_how_it_ended() {
    let dir = TestDir::new("child");
    let sleeper = Launch::new("sleeper", "sleep").arg("600").start(&dir);
    let proc = format!("/proc/{}", sleeper.pid());
    assert!(std::path::Path::new(&proc).exists());
    drop(sleeper);
    assert!(!std::path::Path::new(&proc).exists());

    let shell = Launch::new("shell", "sh")
        .args(["-c", "echo out; echo err >&2; exit 7"])
        .start(&dir);
    assert_eq!(shell.wait(Duration::from_secs(5)).await.code(), Some(7));
    assert_eq!(
        (shell.output().as_str(), shell.log().as_str()),
        ("out\n", "err\n")
    );
}

#[tokio::test]
async fn hostile_requests_are_wrong_in_nothing_but_what_they_say() {
    let proven = |der: &[u8]| {
        let args = ["req", "-verify", "-noout", "-inform", "DER"];
        // Its exit code is 0 either way.
        openssl::attempt(&args, der).2.contains("verify OK")
    };
    for request in hostile::greedy() {
        assert!(proven(request.der.as_ref().unwrap()), "{}", request.name);
    }
    let all = hostile::unacceptable();
    let find = |name: &str| {
        all.iter()
            .find(|request| request.name == name)
            .unwrap()
            .der
            .as_deref()
            .unwrap()
    };
    let text =
        |name: &str| openssl::run_text(&["req", "-noout", "-text", "-inform", "DER"], find(name));
    assert!(text("RSA-8192").contains("(8192 bit"));
    assert!(text("RSA with e=3").contains("Exponent: 3 "));
    for name in [
        "P-521",
        "secp256k1",
        "Ed25519",
        "RSA-1024",
        "RSA-8192",
        "RSA with e=3",
        "too large",
    ] {
        assert!(proven(find(name)), "{name}");
    }
    assert!(!proven(find("another key's proof")));
    assert!(!proven(find("a broken signature")));
}

#[tokio::test]
async fn envoy_and_the_foreign_program_run() {
    let dir = TestDir::new("parts");
    let admin = ports::address();
    let bootstrap = json!({ "admin": { "address": { "socket_address": {
        "address": admin.ip().to_string(), "port_value": admin.port(),
    } } } });
    let envoy =
        citadel_tests::envoy::Envoy::start("envoy", &dir, &bootstrap.to_string(), admin).await;
    assert!(
        envoy
            .get("/server_info")
            .await
            .unwrap()
            .contains("/1.40.0/")
    );
    assert_eq!(envoy.stat("server.live").await, 1);
    assert_eq!(http::get(admin, "/no-such-page").await.unwrap().status, 404);

    let refused = citadel_tests::foreign::Foreign::verify(
        &dir,
        &dir.write("svid.pem", "no certificate"),
        &dir.write("key.pem", "no key"),
        &dir.write("bundle.pem", ""),
    )
    .await;
    assert!(refused.unwrap_err().contains("x509svid"));
}

#[test]
fn strace_and_faketime_are_there() {
    let strace = Command::new(part("STRACE"))
        .args(["-D", "-f", "-o", "/dev/null", "true"])
        .status()
        .unwrap();
    assert!(strace.success());
    let date = Command::new("date")
        .arg("+%Y")
        .env("LD_PRELOAD", part("FAKETIME"))
        .env("FAKETIME", "2001-01-01 00:00:00")
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&date.stdout).trim(), "2001");
}
