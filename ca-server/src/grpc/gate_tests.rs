#![allow(clippy::unwrap_used)]

use std::{
    convert::Infallible,
    sync::atomic::{AtomicUsize, Ordering},
};

use prometheus_client::registry::Registry;
use tonic::Code;
use tower::ServiceExt as _;

use super::*;
use crate::metrics::Metrics;

/// A body that sends pieces and then, if it is to hang, nothing more; it counts what was read.
struct Pieces {
    left: usize,
    size: usize,
    hangs: bool,
    read: Arc<AtomicUsize>,
}

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left == 0 {
            return if self.hangs {
                Poll::Pending
            } else {
                Poll::Ready(None)
            };
        }
        self.left -= 1;
        self.read.fetch_add(self.size, Ordering::Relaxed);
        Poll::Ready(Some(Ok(Frame::data(Bytes::from(vec![0; self.size])))))
    }
}

/// Reads whole bodies, as tonic does, and answers with Ok.
fn service(
    gate: &Gate,
) -> impl Service<Request<Body>, Response = Response<Body>, Error = Infallible> {
    gate.layer(tower::service_fn(|request: Request<Body>| async {
        let mut body = request.into_body();
        loop {
            match std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
                Some(Ok(_)) => {}
                Some(Err(status)) => return Ok(status.into_http()),
                None => return Ok(Status::ok("").into_http()),
            }
        }
    }))
}

struct Bench {
    gate: Gate,
    in_flight: Arc<InFlight>,
    read: Arc<AtomicUsize>,
}

impl Bench {
    fn new() -> Self {
        let metrics = Arc::new(Metrics::register(&mut Registry::default()));
        let in_flight = InFlight::new(PER_LANE, IN_ALL);
        let deadline = Duration::from_secs(10);
        Self {
            gate: Gate::with(
                Arc::new(Refusals::new(metrics, None)),
                deadline,
                in_flight.clone(),
            ),
            in_flight,
            read: Arc::default(),
        }
    }

    /// A request with a token of somebody without a certificate, or with one for this ID.
    fn request(&self, rpc: &str, id: Option<&str>, pieces: usize, hangs: bool) -> Request<Body> {
        let body = Pieces {
            left: pieces,
            size: 1024,
            hangs,
            read: self.read.clone(),
        };
        let mut request = Request::post(format!("https://ca/{rpc}"))
            .header("authorization", "Bearer t")
            .body(Body::new(body))
            .unwrap();
        let mut peer = PeerInfo::new(([192, 0, 2, 1], 1).into(), Arc::new([]));
        peer.client_id = id.map(|id| id.parse().unwrap());
        request.extensions_mut().insert(peer);
        request
    }

    async fn code(&self, request: Request<Body>) -> Code {
        let answer = service(&self.gate).oneshot(request).await.unwrap();
        Status::from_header_map(answer.headers()).unwrap().code()
    }

    fn read(&self) -> usize {
        self.read.load(Ordering::Relaxed)
    }
}

const AGENT: Option<&str> = Some("spiffe://example.org/citadel/agent/default/n1");
const WORKLOAD: Option<&str> = Some("spiffe://example.org/ns/shop/sa/web");

#[tokio::test]
async fn without_an_agents_svid_nothing_of_an_agents_request_is_read() {
    let bench = Bench::new();
    for rpc in FOR_AGENTS {
        for id in [None, WORKLOAD] {
            let code = bench.code(bench.request(rpc, id, 1, true)).await;
            assert_eq!(code, Code::PermissionDenied, "{rpc} {id:?}");
        }
        let mut nobody = bench.request(rpc, None, 1, true);
        nobody.headers_mut().remove("authorization");
        assert_eq!(bench.code(nobody).await, Code::Unauthenticated, "{rpc}");
    }
    assert_eq!(bench.read(), 0);
    // An agent's is, and so is everybody's request to become one.
    let batch = bench.request(agent::ISSUE, AGENT, 1024, false);
    assert_eq!(bench.code(batch).await, Code::Ok);
    let attest = bench.request(agent::ATTEST, None, 64, false);
    assert_eq!(bench.code(attest).await, Code::Ok);
}

#[tokio::test]
async fn only_an_agents_batch_may_be_large() {
    let bench = Bench::new();
    for (rpc, id) in [
        (agent::ATTEST, None),
        (agent::ATTEST, AGENT),
        (workload::ISSUE_SVID, WORKLOAD),
        ("grpc.health.v1.Health/Check", None),
    ] {
        let before = bench.read();
        let code = bench.code(bench.request(rpc, id, 1000, false)).await;
        assert_eq!(code, Code::InvalidArgument, "{rpc}");
        let read = bench.read() - before;
        assert_eq!(read, MAX_SINGLE_REQUEST + 1024, "no more is read: {rpc}");
    }
    let larger = bench.request(agent::ISSUE, AGENT, 1025, false);
    assert_eq!(bench.code(larger).await, Code::InvalidArgument);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_never_ends_ends_with_the_deadline() {
    let bench = Bench::new();
    let began = tokio::time::Instant::now();
    for (rpc, id) in [(agent::ATTEST, None), (agent::ISSUE, AGENT)] {
        let code = bench.code(bench.request(rpc, id, 1, true)).await;
        assert_eq!(code, Code::Unavailable, "{rpc}");
    }
    assert_eq!(began.elapsed(), Duration::from_secs(20));
    assert!(bench.in_flight.is_empty(), "all of it is given back");
}

#[tokio::test(start_paused = true)]
async fn one_callers_unfinished_requests_hold_so_much_and_no_more() {
    let bench = Bench::new();
    let mut codes = Vec::new();
    let requests = (0..1000).map(|_| bench.code(bench.request(agent::ATTEST, None, 60, true)));
    let flood = async { codes = futures::future::join_all(requests).await };
    let other = async {
        let mut request = bench.request(agent::ATTEST, None, 60, false);
        let other = PeerInfo::new(([192, 0, 2, 2], 1).into(), Arc::new([]));
        request.extensions_mut().insert(other);
        bench.code(request).await
    };
    let ((), other) = tokio::join!(flood, other);
    assert_eq!(other, Code::Ok, "another caller has room of its own");
    let held = codes.iter().filter(|code| **code == Code::Unavailable);
    let held = held.count() * 60 * 1024;
    assert!(held <= PER_LANE && held > PER_LANE / 2, "{held} bytes");
    let refused = codes.iter().filter(|c| **c == Code::ResourceExhausted);
    assert_eq!(held / (60 * 1024) + refused.count(), 1000);
    assert!(bench.in_flight.is_empty(), "all of it is given back");
}
