//! Clients that do what no client should: the others notice nothing.

use std::io::ErrorKind;
use std::time::Duration;

use citadel_tests::wait;
use envoy_types::pb::envoy::service::secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient;
use futures::StreamExt;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::net::UnixStream;
use tokio::task::yield_now;
use tokio::time::timeout;
use tonic::transport::{Endpoint, Uri};

use super::{FIRST, RENEWAL, Scene, TTL, try_metrics};
use crate::sds_protocol::script::{Script, request};
use crate::support::series;

/// Of the file descriptors that the agent may have.
const DESCRIPTORS: u64 = 96;

/// Every descriptor of the agent is taken by connections that say nothing: what is
/// connected goes on and is renewed, and afterwards others may come.
#[tokio::test]
async fn file_descriptors_exhausted() {
    let limit = format!("--nofile={DESCRIPTORS}:{DESCRIPTORS}");
    let scene = Scene::start(
        "descriptors",
        TTL,
        |ca| ca,
        |agent| {
            agent
                .wrapped(["prlimit", limit.as_str(), "--"])
                .set("limits.connections_per_peer", 1000)
        },
    )
    .await;
    wait::until("some fetches", RENEWAL, async || {
        scene.fetches.answers().checked_sub(11)
    })
    .await;
    // From here on they would fail, as they should.
    scene.fetches.stop().await.none_failed();
    let socket = scene.mesh.node.agent.socket();
    let mut held = Vec::new();
    wait::until("no descriptor is left", RENEWAL, async || {
        for _ in 0..20 {
            held.extend(UnixStream::connect(&socket).await);
        }
        let log = scene.mesh.node.agent.log();
        log.contains("a connection could not be accepted")
            .then_some(())
    })
    .await;
    for _ in 0..2 {
        scene.follower.renewed(RENEWAL).await;
    }
    drop(held);
    wait::until("others may come", FIRST, async || {
        super::workloads::one(&socket).await.ok()
    })
    .await;
    let seen = scene.traffic.stop().await;
    seen.none_failed();
    assert!(seen.client_serials.len() >= 2, "{:?}", seen.client_serials);
    scene.mesh.refused_nothing();
    assert_eq!(scene.follower.stop().await, 0, "its stream ended");
}

/// 1,000 connections that ask and never read, and 10,000 that open and close.
#[tokio::test]
async fn connections_that_never_read_and_those_that_come_and_go() {
    const SILENT: u32 = 1_000;
    const ROUNDS: u32 = 10;
    const PASSING: u32 = 10_000;
    let scene = Scene::start(
        "silent",
        TTL,
        |ca| ca,
        |agent| agent.set("limits.connections_per_peer", 2 * SILENT),
    )
    .await;
    let socket = scene.mesh.node.agent.socket();
    let words = words().await;
    let mut held = Vec::new();
    for round in 1..=ROUNDS {
        for _ in 0..SILENT / ROUNDS {
            let mut stream = UnixStream::connect(&socket).await.expect("a connection");
            let said = stream.write_all(&words).await;
            said.expect("it takes the request");
            held.push(stream);
        }
        wait::until("all of them are streams", RENEWAL, async || {
            let metrics = try_metrics(&scene.mesh.node.agent).await?;
            let streams = series(&metrics, "citadel_agent_streams{protocol=\"sds\"}")?;
            (streams >= f64::from(SILENT / ROUNDS * round)).then_some(())
        })
        .await;
    }
    scene.renewed().await;
    let passing = (0..8).map(|_| {
        let socket = socket.clone();
        tokio::spawn(async move {
            let mut made = 0;
            while made < PASSING / 8 {
                match UnixStream::connect(&socket).await {
                    Ok(_) => made += 1,
                    // The queue is full for a moment.
                    Err(error) if error.kind() == ErrorKind::WouldBlock => yield_now().await,
                    Err(error) => panic!("{error}"),
                }
            }
        })
    });
    for task in passing.collect::<Vec<_>>() {
        task.await.expect("all of them");
    }
    scene.renewed().await;
    drop(held);
    wait::until("their places are free again", RENEWAL, async || {
        let metrics = try_metrics(&scene.mesh.node.agent).await?;
        let connections = series(&metrics, "citadel_agent_connections")?;
        (connections < 20.0).then_some(())
    })
    .await;
    scene.stop().await;
}

/// Those that ACK everything twice, NACK everything, or ask for 10,000 names.
#[tokio::test]
async fn clients_that_acknowledge_twice_refuse_everything_or_want_too_much() {
    let scene = Scene::start("odd", TTL, |ca| ca, |agent| agent).await;
    let node = &scene.mesh.node;
    let names = ["default", "ROOTCA"];
    let (mut twice, mut never) = (Vec::new(), Vec::new());
    for _ in 0..20 {
        twice.push(Script::open(node, &names).await);
        never.push(Script::open(node, &names).await);
    }
    let first = twice[0].next().await;
    twice[0].ack(&first, &names);
    let many: Vec<String> = (0..10_000).map(|n| format!("name-{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    // Three renewals of everything; each comes once to each.
    let mut pushes = 0;
    let ended = timeout(3 * RENEWAL, async {
        for round in 0..3 {
            for (at, script) in twice.iter_mut().enumerate() {
                if round > 0 || at > 0 {
                    let pushed = script.within(RENEWAL).await;
                    script.ack(&pushed, &names);
                    script.ack(&pushed, &names);
                    pushes += 1;
                }
            }
            for script in &mut never {
                let pushed = script.within(RENEWAL).await;
                script.nack(&pushed, "", &names, "the test likes nothing");
            }
            let refused = match Script::try_open(node, request(&many)).await {
                Ok(mut stream) => stream.end().await,
                Err(status) => status,
            };
            let code = refused.code();
            assert!(
                matches!(
                    code,
                    tonic::Code::InvalidArgument
                        | tonic::Code::OutOfRange
                        | tonic::Code::ResourceExhausted
                ),
                "{refused:?}"
            );
        }
    });
    ended.await.expect("all of them in time");
    assert_eq!(pushes, 3 * 20 - 1);
    // They refused, and nobody else did.
    let traffic = scene.traffic.stop().await;
    traffic.none_failed();
    scene.follower.stop().await;
    scene.fetches.stop().await.none_failed();
}

/// What a client says to open a stream of secrets, as bytes: they are the same for each
/// new connection.
async fn words() -> Vec<u8> {
    let (near, far) = duplex(64 * 1024);
    let mut near = Some(near);
    let connector = tower::service_fn(move |_: Uri| {
        let near = near.take().expect("one connection");
        async move { Ok::<_, std::io::Error>(TokioIo::new(near)) }
    });
    let endpoint = Endpoint::from_static("http://agent.invalid");
    let channel = endpoint.connect_with_connector_lazy(connector);
    let mut client = SecretDiscoveryServiceClient::new(channel);
    let requests =
        futures::stream::iter([request(&["default", "ROOTCA"])]).chain(futures::stream::pending());
    let asking = tokio::spawn(async move { client.stream_secrets(requests).await });
    let mut said = Vec::new();
    let mut far = far;
    // Until it says nothing more.
    while let Ok(Ok(_)) = timeout(Duration::from_secs(1), far.read_buf(&mut said)).await {}
    asking.abort();
    assert!(said.len() > 100, "{} bytes", said.len());
    said
}
