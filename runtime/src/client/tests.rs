#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{net::SocketAddr, sync::Mutex};

use axum::{
    Router,
    body::Body,
    extract::{Extension, Request},
    http::{Response, StatusCode},
    routing::get,
};
use tokio::sync::Notify;
use tonic::{service::Routes, transport::Server};
use tower::ServiceExt;

use super::*;
use crate::{
    Shutdown,
    tls::{ConnectionLimits, PeerInfo, bind, testing::Bench},
};

const LONG: Duration = Duration::from_secs(30);

async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(LONG, future)
        .await
        .expect("it takes too long")
}

#[derive(Clone, Default)]
struct Handler {
    peers: Arc<Mutex<Vec<PeerInfo>>>,
    entered: Arc<Notify>,
    released: Arc<Notify>,
}

/// A tonic server with two plain HTTP/2 routes.
fn serve(bench: Bench, handler: Handler) -> (Shutdown, tokio::task::JoinHandle<()>) {
    let quick = |Extension(peer): Extension<PeerInfo>, Extension(handler): Extension<Handler>| async move {
        handler.peers.lock().unwrap().push(peer);
    };
    let slow = |Extension(handler): Extension<Handler>| async move {
        handler.entered.notify_one();
        handler.released.notified().await;
    };
    let router = Router::new()
        .route("/quick", get(quick))
        .route("/slow", get(slow))
        .layer(Extension(handler));
    let served = Server::builder()
        .add_routes(Routes::from(router))
        .serve_with_incoming_shutdown(bench.incoming, std::future::pending());
    (
        bench.shutdown,
        tokio::spawn(async move { served.await.unwrap() }),
    )
}

async fn call(
    channel: &Channel,
    path: &str,
) -> Result<Response<tonic::body::Body>, tonic::transport::Error> {
    let request = Request::builder()
        .uri(path)
        .body(tonic::body::Body::new(Body::empty()))
        .unwrap();
    soon(channel.clone().oneshot(request)).await
}

fn address(socket: SocketAddr) -> Address {
    format!("localhost:{}", socket.port()).parse().unwrap()
}

async fn closed_port() -> SocketAddr {
    bind(([127, 0, 0, 1], 0).into())
        .await
        .unwrap()
        .local_addr()
        .unwrap()
}

/// A source that always gives the same configuration.
fn always(tls: Arc<ClientConfig>) -> TlsSource {
    Arc::new(move || tls.clone())
}

#[tokio::test]
async fn the_next_address_is_tried_when_one_fails() {
    let bench = Bench::new(ConnectionLimits::default()).await;
    let tls = always(bench.authority.client_config(None));
    let addresses = vec![
        address(closed_port().await),
        address(bench.address),
        address(closed_port().await),
    ];
    let channel = channel(addresses, tls, ChannelOptions::default()).unwrap();
    let handler = Handler::default();
    let (shutdown, served) = serve(bench, handler.clone());
    for _ in 0..2 {
        assert_eq!(
            call(&channel, "/quick").await.unwrap().status(),
            StatusCode::OK
        );
    }
    {
        let peers = handler.peers.lock().unwrap();
        assert_eq!(
            peers[0].address, peers[1].address,
            "one connection serves both requests"
        );
    }
    shutdown.trigger();
    soon(served).await.unwrap();
    let error = format!("{:?}", call(&channel, "/quick").await.unwrap_err());
    assert_eq!(error.matches("Connection refused").count(), 3, "{error}");
}

#[tokio::test]
async fn a_new_connection_asks_for_the_configuration_of_the_moment() {
    let bench = Bench::new(ConnectionLimits::default()).await;
    let authority = bench.authority.clone();
    let second = bind(([127, 0, 0, 1], 0).into()).await.unwrap();
    let addresses = vec![
        address(bench.address),
        address(second.local_addr().unwrap()),
    ];
    let config = Arc::new(Mutex::new(authority.client_config(None)));
    let tls: TlsSource = {
        let config = config.clone();
        Arc::new(move || config.lock().unwrap().clone())
    };
    let channel = channel(addresses, tls, ChannelOptions::default()).unwrap();
    let handler = Handler::default();
    let (shutdown, served) = serve(bench, handler.clone());
    call(&channel, "/quick").await.unwrap();
    let own = authority.certificate();
    *config.lock().unwrap() = authority.client_config(Some(own.clone()));
    call(&channel, "/quick").await.unwrap();
    shutdown.trigger();
    soon(served).await.unwrap();

    let second = Bench::on(second, ConnectionLimits::default(), authority);
    let (_shutdown, _served) = serve(second, handler.clone());
    let response = match call(&channel, "/quick").await {
        Ok(response) => response,
        // The first may still be written to the connection that has gone.
        Err(_) => call(&channel, "/quick").await.unwrap(),
    };
    assert_eq!(response.status(), StatusCode::OK);
    let peers = handler.peers.lock().unwrap();
    let chains: Vec<_> = peers
        .iter()
        .map(|peer| peer.client_chain.to_vec())
        .collect();
    assert_eq!(chains, [vec![], vec![], own.chain()]);
}

#[tokio::test]
async fn a_shutdown_loses_no_request_that_was_accepted() {
    let bench = Bench::new(ConnectionLimits::default()).await;
    let tls = always(bench.authority.client_config(None));
    let addresses = vec![address(bench.address)];
    let channel = channel(addresses, tls, ChannelOptions::default()).unwrap();
    let handler = Handler::default();
    let (shutdown, served) = serve(bench, handler.clone());
    let request = tokio::spawn(async move { call(&channel, "/slow").await });
    soon(handler.entered.notified()).await;
    shutdown.trigger();
    handler.released.notify_one();
    assert_eq!(
        soon(request).await.unwrap().unwrap().status(),
        StatusCode::OK
    );
    soon(served).await.unwrap();
}

#[tokio::test]
async fn a_server_that_accepts_and_is_silent_costs_one_timeout() {
    let bench = Bench::new(ConnectionLimits::default()).await;
    let silent = bind(([127, 0, 0, 1], 0).into()).await.unwrap();
    let addresses = vec![
        address(silent.local_addr().unwrap()),
        address(bench.address),
    ];
    let tls = always(bench.authority.client_config(None));
    let options = ChannelOptions {
        connect_timeout: Duration::from_millis(200),
        ..Default::default()
    };
    let channel = channel(addresses, tls, options).unwrap();
    let (_shutdown, _served) = serve(bench, Handler::default());
    assert_eq!(
        call(&channel, "/quick").await.unwrap().status(),
        StatusCode::OK
    );
}

#[test]
fn addresses_are_host_and_port() {
    for (text, host, port) in [
        (
            "citadel-ca.citadel-system.svc:15012",
            "citadel-ca.citadel-system.svc",
            15012,
        ),
        ("127.0.0.1:1", "127.0.0.1", 1),
        ("[::1]:15012", "::1", 15012),
    ] {
        let address: Address = text.parse().unwrap();
        assert_eq!((address.host(), address.port()), (host, port));
        assert_eq!(address.to_string(), text);
    }
    for text in [
        "",
        "host",
        "host:",
        "host:0",
        "host:99999",
        ":1",
        "u@host:1",
        "https://host:1",
        "::1:1",
        "a b:1",
    ] {
        let error = text.parse::<Address>().unwrap_err().to_string();
        assert!(error.contains("write host:port"), "{error}");
    }
    let none = channel(
        vec![],
        Arc::new(|| unreachable!()),
        ChannelOptions::default(),
    );
    assert!(matches!(none, Err(ClientError::NoAddress)));
}

proptest::proptest! {
    #[test]
    fn any_text_is_an_address_or_an_error(text in "(\\PC{0,40}|[a-z0-9.:\\[\\]@/%-]{0,24}:[0-9]{0,6})") {
        if let Ok(address) = text.parse::<Address>() {
            let again: Address = address.to_string().parse().unwrap();
            proptest::prop_assert_eq!(again, address);
        }
    }
}
