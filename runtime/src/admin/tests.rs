#![allow(clippy::unwrap_used, clippy::expect_used)]

use prometheus_client::metrics::counter::Counter;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use super::*;
use crate::Shutdown;

const LONG: Duration = Duration::from_secs(30);

struct Bench {
    address: SocketAddr,
    readiness: Readiness,
    shutdown: Shutdown,
    served: tokio::task::JoinHandle<()>,
}

impl Bench {
    async fn new() -> Self {
        let readiness = Readiness::new();
        let mut registry = Registry::default();
        let requests = Counter::<u64>::default();
        requests.inc();
        registry.register("requests", "Requests", requests);
        crate::process::register(&mut registry);
        let any = ([127, 0, 0, 1], 0).into();
        let server = AdminServer::bind(any, readiness.clone(), Arc::new(registry))
            .await
            .unwrap();
        let (address, shutdown) = (server.address(), Shutdown::new());
        let served = tokio::spawn(server.serve(shutdown.signal()));
        Self {
            address,
            readiness,
            shutdown,
            served,
        }
    }

    /// The whole answer, headers first.
    async fn get(&self, path: &str, accept: &str) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let request = format!(
            "GET {path} HTTP/1.1\r\nhost: a\r\naccept: {accept}\r\nconnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(LONG, stream.read_to_string(&mut answer))
            .await
            .unwrap()
            .unwrap();
        answer
    }
}

#[tokio::test]
async fn readiness_names_each_part_and_its_reason() {
    let bench = Bench::new().await;
    assert!(
        bench
            .get("/readyz", "*/*")
            .await
            .starts_with("HTTP/1.1 200")
    );
    let store = bench.readiness.part("store");
    let watch = bench.readiness.part("kubernetes");
    let answer = bench.get("/readyz", "*/*").await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(answer.contains("store: not ready: starting"), "{answer}");

    store.set_ready();
    watch.set_not_ready("the API server does not answer");
    let answer = bench.get("/readyz", "*/*").await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(answer.contains("store: ready\n"), "{answer}");
    assert!(answer.contains("kubernetes: not ready: the API server does not answer\n"));
    assert!(!bench.readiness.is_ready());

    let answer = bench.get("/readyz", "application/json").await;
    let body = answer.split("\r\n\r\n").nth(1).unwrap();
    let json: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!(json["ready"], false);
    assert_eq!(
        json["parts"][0],
        serde_json::json!({ "part": "store", "reason": null, "degraded": false })
    );
    assert_eq!(json["parts"][1]["reason"], "the API server does not answer");

    // What the rest serves without is named, and no more.
    watch.set_degraded("one of two is away");
    let answer = bench.get("/readyz", "*/*").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("kubernetes: degraded: one of two is away\n"));
    store.set_not_ready("the disk is full");
    let answer = bench.get("/readyz", "*/*").await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    store.set_ready();
    watch.set_not_ready("one of two is away");
    let answer = bench.get("/readyz", "*/*").await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");

    // The same name is the same part; being alive is another question.
    bench.readiness.part("kubernetes").set_ready();
    assert!(
        bench
            .get("/readyz", "*/*")
            .await
            .starts_with("HTTP/1.1 200")
    );
    watch.set_not_ready("gone again");
    assert!(bench.get("/livez", "*/*").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn who_subscribes_hears_of_each_change_of_the_whole() {
    let readiness = Readiness::new();
    let mut ready = readiness.subscribe();
    assert!(*ready.borrow_and_update(), "no part means ready");
    let (one, other) = (readiness.part("one"), readiness.part("other"));
    assert!(!*ready.borrow_and_update(), "a part begins not ready");
    one.set_ready();
    other.set_not_ready("another reason");
    assert!(!ready.has_changed().unwrap(), "as a whole still not ready");
    other.set_ready();
    assert!(*ready.borrow_and_update());
    one.set_not_ready("gone");
    assert!(!*ready.borrow_and_update());
}

#[tokio::test]
async fn metrics_are_openmetrics_text() {
    let bench = Bench::new().await;
    let answer = bench.get("/metrics", "*/*").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("content-type: application/openmetrics-text; version=1.0.0"));
    assert!(answer.contains("\nrequests_total 1\n"), "{answer}");
    assert!(answer.contains("\nprocess_cpu_seconds_total "), "{answer}");
    assert!(answer.ends_with("# EOF\n"), "{answer}");
    assert!(bench.get("/debug", "*/*").await.starts_with("HTTP/1.1 404"));
}

#[tokio::test]
async fn more_connections_than_places_are_closed_at_once() {
    let bench = Bench::new().await;
    let mut held = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        let mut stream = TcpStream::connect(bench.address).await.unwrap();
        stream
            .write_all(b"GET /livez HTTP/1.1\r\nhost: a\r\n\r\n")
            .await
            .unwrap();
        let mut first = [0; 12];
        timeout(LONG, stream.read_exact(&mut first))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(&first, b"HTTP/1.1 200");
        held.push(stream);
    }
    let mut one_more = TcpStream::connect(bench.address).await.unwrap();
    let _ = one_more
        .write_all(b"GET /livez HTTP/1.1\r\nhost: a\r\n\r\n")
        .await;
    let read = timeout(LONG, one_more.read(&mut [0])).await.unwrap();
    assert_eq!(read.unwrap_or(0), 0);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_never_finishes_its_headers_is_cut_off() {
    let bench = Bench::new().await;
    let mut stream = TcpStream::connect(bench.address).await.unwrap();
    stream.write_all(b"GET /livez HTTP/1.1\r\n").await.unwrap();
    let begun = tokio::time::Instant::now();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(
        begun.elapsed() < HEADER_DEADLINE * 2,
        "{:?}",
        begun.elapsed()
    );
    assert!(!answer.starts_with(b"HTTP/1.1 200"));
}

#[tokio::test]
async fn a_shutdown_closes_the_port_and_idle_connections() {
    let bench = Bench::new().await;
    let mut idle = TcpStream::connect(bench.address).await.unwrap();
    idle.write_all(b"GET /livez HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .unwrap();
    timeout(LONG, idle.read_exact(&mut [0; 12]))
        .await
        .unwrap()
        .unwrap();
    bench.shutdown.trigger();
    timeout(LONG, bench.served).await.unwrap().unwrap();
    TcpStream::connect(bench.address).await.unwrap_err();
    timeout(LONG, idle.read_to_end(&mut Vec::new()))
        .await
        .unwrap()
        .unwrap();
}
