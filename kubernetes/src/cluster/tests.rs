#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::Mutex;

use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use tokio::net::TcpListener;

use super::*;

// === an API server on loopback ===

async fn serve(router: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

/// A server that answers every request with the same.
async fn answering(status: u16, body: impl Into<String>) -> SocketAddr {
    let body = body.into();
    serve(Router::new().fallback(move || {
        let body = body.clone();
        async move { (StatusCode::from_u16(status).unwrap(), body) }
    }))
    .await
}

fn kubeconfig(server: &str, cluster: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    write!(
        file,
        "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
         contexts: [{{name: c, context: {{cluster: k, user: u}}}}]\n\
         clusters: [{{name: k, cluster: {{server: '{server}'{cluster}}}}}]\n\
         users: [{{name: u, user: {{token: own-credential-of-the-ca}}}}]\n"
    )
    .unwrap();
    file
}

async fn try_connect(server: &str, settings: &str) -> Result<Arc<Cluster>, ConnectError> {
    let file = kubeconfig(server, settings);
    let mut config = ClusterConfig::new("test", Some(file.path().into()));
    config.deadline = Duration::from_millis(500);
    Cluster::connect(config).await
}

async fn connect(address: SocketAddr) -> Arc<Cluster> {
    try_connect(&format!("http://{address}"), "").await.unwrap()
}

fn status_object(reason: &str, code: u16) -> String {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code})
        .to_string()
}

#[tokio::test]
async fn objects_by_name() {
    let object = json!({
        "metadata": {"uid": "u1", "name": "web-0", "namespace": "shop"},
        "spec": {"serviceAccountName": "web", "nodeName": "n1"}
    });
    let cluster = connect(answering(200, object.to_string()).await).await;
    assert_eq!(
        &*cluster.get_pod("shop", "web-0").await.unwrap().unwrap().uid,
        "u1"
    );
    assert_eq!(
        &*cluster
            .get_account("shop", "web")
            .await
            .unwrap()
            .unwrap()
            .uid,
        "u1"
    );
    assert_eq!(&*cluster.get_node("n1").await.unwrap().unwrap().uid, "u1");
}

#[tokio::test]
async fn absent_is_only_what_the_api_server_calls_absent() {
    let absent = connect(answering(404, status_object("NotFound", 404)).await).await;
    assert_eq!(absent.get_pod("shop", "web-0").await, Ok(None));

    for (status, body) in [
        (404, "404 page not found".to_string()),
        (404, json!({"kind": "Status", "reason": "Gone"}).to_string()),
        (200, "<html>".into()),
        (200, json!({"kind": "Pod"}).to_string()),
    ] {
        let odd = connect(answering(status, body.clone()).await).await;
        let outcome = odd.get_pod("shop", "web-0").await;
        assert!(
            matches!(outcome, Err(ApiError::Malformed(_))),
            "{status} {body}: {outcome:?}"
        );
    }
    for status in [429, 500, 503, 504] {
        let later = connect(answering(status, status_object("Later", status)).await).await;
        let outcome = later.get_pod("shop", "web-0").await;
        assert!(
            matches!(outcome, Err(ApiError::Unreachable(_))),
            "{status}: {outcome:?}"
        );
    }
    for status in [401, 403] {
        let denied = connect(answering(status, status_object("Denied", status)).await).await;
        let outcome = denied.get_pod("shop", "web-0").await;
        assert!(matches!(outcome, Err(ApiError::Denied { status: s, .. }) if s == status));
    }
}

#[tokio::test]
async fn names_that_no_object_has_reach_no_path() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = asked.clone();
    let address = serve(Router::new().fallback(move |request: Request| {
        seen.lock().unwrap().push(request.uri().to_string());
        async { "{}" }
    }))
    .await;
    let cluster = connect(address).await;
    for name in ["../../secrets/x", "a/log", "a?x=y", "", ".."] {
        assert_eq!(cluster.get_pod("shop", name).await, Ok(None));
        assert_eq!(cluster.get_account(name, "web").await, Ok(None));
        assert_eq!(cluster.get_node(name).await, Ok(None));
        assert!(
            cluster
                .publish("ns", name, &Published::default())
                .await
                .is_err()
        );
    }
    assert_eq!(*asked.lock().unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn the_deadline_holds_whatever_hangs() {
    // Never answers a connection: the kernel takes it, as for a stopped process.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    // Says "later" with a wish for patience, which the client library would grant.
    let busy = serve(Router::new().fallback(|| async {
        (
            StatusCode::TOO_MANY_REQUESTS,
            [("retry-after", "30")],
            "busy",
        )
    }))
    .await;
    // Begins an answer and does not end it.
    let half = serve(Router::new().fallback(|| async {
        let begun = futures::stream::once(async { Ok::<_, io::Error>("{\"metadata\":") });
        let body = futures::StreamExt::chain(begun, futures::stream::pending());
        Response::new(axum::body::Body::from_stream(body))
    }))
    .await;
    for address in [silent.local_addr().unwrap(), busy, half] {
        let cluster = connect(address).await;
        let asking = async {
            for outcome in [
                cluster.get_pod("shop", "web-0").await.err(),
                cluster.review_token("t", &["citadel".into()]).await.err(),
                cluster.fetch_jwks().await.err(),
            ] {
                assert!(
                    matches!(outcome, Some(ApiError::Unreachable(_))),
                    "{outcome:?}"
                );
            }
        };
        // Three times half a second, and patience for a slow machine.
        tokio::time::timeout(Duration::from_secs(10), asking)
            .await
            .expect("the deadline passed");
    }
}

#[tokio::test]
async fn any_answer_but_later_is_a_sign_of_life() {
    for (status, alive) in [
        (200, true),
        (401, true),
        (403, true),
        (404, true),
        (500, false),
    ] {
        let cluster = connect(answering(status, "x").await).await;
        assert_eq!(cluster.probe().await.is_ok(), alive, "{status}");
    }
    let closed = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    assert!(connect(closed).await.probe().await.is_err());
}

#[tokio::test]
async fn a_key_set_has_a_largest_size() {
    let largest = "x".repeat(MAX_JWKS);
    let cluster = connect(answering(200, largest.clone()).await).await;
    assert_eq!(cluster.fetch_jwks().await.unwrap().len(), MAX_JWKS);
    let cluster = connect(answering(200, largest + "x").await).await;
    assert!(matches!(
        cluster.fetch_jwks().await,
        Err(ApiError::Malformed(_))
    ));
}

#[tokio::test]
async fn the_bundle_is_applied_to_its_configmap() {
    let asked = Arc::new(Mutex::new(None));
    let seen = asked.clone();
    let address = serve(Router::new().fallback(move |request: Request| {
        let seen = seen.clone();
        async move {
            let (parts, body) = request.into_parts();
            let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
            *seen.lock().unwrap() = Some((parts, body));
            "{}".into_response()
        }
    }))
    .await;
    let published = Published {
        bundle: "PEM".into(),
        checkpoint: Some("signed".into()),
    };
    connect(address)
        .await
        .publish("citadel-system", "citadel-bundle", &published)
        .await
        .unwrap();
    let (parts, body) = asked.lock().unwrap().take().unwrap();
    assert_eq!(parts.method, "PATCH");
    assert_eq!(
        parts.uri.to_string(),
        "/api/v1/namespaces/citadel-system/configmaps/citadel-bundle?fieldManager=citadel-ca&force=true"
    );
    assert_eq!(
        parts.headers["content-type"],
        "application/apply-patch+yaml"
    );
    assert_eq!(
        parts.headers["authorization"],
        "Bearer own-credential-of-the-ca"
    );
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(
        body["data"],
        json!({"root-cert.pem": "PEM", "log.checkpoint": "signed"})
    );
    assert_eq!(
        (&body["kind"], &body["metadata"]["name"]),
        (&json!("ConfigMap"), &json!("citadel-bundle"))
    );
}

// === secrets and logs ===

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn no_token_is_logged_or_in_an_error_at_the_most_verbose_level() {
    let token = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ3ZWIifQ.c2lnbmF0dXJlLW9mLXRoZS10b2tlbg";
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    let guard = tracing::subscriber::set_default(subscriber);

    let echo = |status: Value| json!({"spec": {"token": token}, "status": status}).to_string();
    for (code, body) in [
        (
            201,
            echo(json!({"authenticated": true, "user": {"username": "x"}})),
        ),
        (
            201,
            echo(json!({"authenticated": false, "error": format!("bad {token}")})),
        ),
        (201, echo(json!({"authenticated": token}))),
        (201, format!("{token} is no JSON")),
        (400, format!("bad token {token}")),
        (404, echo(json!({}))),
        (503, echo(json!({}))),
    ] {
        let cluster = connect(answering(code, body).await).await;
        let outcome = cluster.review_token(token, &["citadel".into()]).await;
        let shown = format!("{outcome:?}");
        assert!(
            !token.split('.').any(|piece| shown.contains(piece)),
            "{shown}"
        );
        if let Err(error) = outcome {
            tracing::error!(%error, "as a caller would log it");
        }
    }
    tracing::warn!("planted-secret-that-must-be-found");
    drop(guard);

    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(text.contains("planted-secret-that-must-be-found"));
    for secret in token.split('.').chain(["own-credential-of-the-ca"]) {
        assert!(!text.contains(secret), "{secret} is in the log");
    }
}

// === configuration ===

#[tokio::test]
async fn an_api_server_that_is_not_authenticated_is_refused() {
    for (server, settings) in [
        ("https://127.0.0.1:1", ", insecure-skip-tls-verify: true"),
        ("http://192.0.2.1:1", ""),
        ("http://api.example", ""),
    ] {
        let outcome = try_connect(server, settings).await.err();
        assert!(
            matches!(outcome, Some(ConnectError::Unauthenticated { .. })),
            "{outcome:?}"
        );
    }
    let outcome = try_connect("https://127.0.0.1:1", ", proxy-url: 'http://127.0.0.1:2'")
        .await
        .err();
    assert!(
        matches!(outcome, Some(ConnectError::Proxy { .. })),
        "{outcome:?}"
    );
    for server in ["http://127.0.0.1:1", "http://[::1]:1", "http://localhost:1"] {
        assert!(try_connect(server, "").await.is_ok(), "{server}");
    }
}

#[tokio::test]
async fn a_bad_kubeconfig_is_named_and_not_quoted() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"users: [{token: secret-in-the-file\n")
        .unwrap();
    let config = ClusterConfig::new("test", Some(file.path().into()));
    let error = Cluster::connect(config).await.err().unwrap();
    let shown = format!("{error} {error:?}");
    assert!(shown.contains(file.path().to_str().unwrap()), "{shown}");
    assert!(!shown.contains("secret-in-the-file"), "{shown}");

    let missing = ClusterConfig::new("test", Some("/nowhere/kubeconfig".into()));
    let error = Cluster::connect(missing).await.err().unwrap().to_string();
    assert!(
        error.contains("/nowhere/kubeconfig") && error.contains("can't be read"),
        "{error}"
    );
}

#[tokio::test]
async fn every_answer_shows_the_api_servers_clock() {
    let (date, dates) = tokio::sync::watch::channel(None);
    let address = serve(Router::new().fallback(move || {
        let date: Option<String> = dates.borrow().clone();
        // No answer that anybody likes, but an answer.
        let mut answer = StatusCode::INTERNAL_SERVER_ERROR.into_response();
        if let Some(date) = date {
            answer.headers_mut().insert("date", date.parse().unwrap());
        }
        async { answer }
    }))
    .await;
    let cluster = connect(address).await;
    assert_eq!(cluster.clock_skew(), None, "nobody was asked");
    let in_an_hour = time::OffsetDateTime::now_utc() + time::Duration::HOUR;
    let text = time::macros::format_description!(
        "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
    );
    date.send_replace(Some(in_an_hour.format(text).unwrap()));
    cluster.probe().await.unwrap_err();
    let skew = cluster.clock_skew().unwrap();
    assert!(
        (skew - time::Duration::HOUR).abs() < time::Duration::MINUTE,
        "{skew}"
    );
    // What can't be read changes nothing.
    date.send_replace(Some("soon".into()));
    cluster.get_node("n1").await.unwrap_err();
    assert_eq!(cluster.clock_skew(), Some(skew));
}
