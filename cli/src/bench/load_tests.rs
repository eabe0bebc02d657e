//! The generator against a small server of its own: TLS, gRPC, refusals, connections
//! that break.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::SocketAddr;

use citadel_identity::bundle::BundleSet;
use citadel_proto::v1::workload_service_server::{WorkloadService, WorkloadServiceServer};
use citadel_proto::v1::{IssueSvidRequest, IssueSvidResponse};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tonic::{Request, Response, Status};

use super::*;
use crate::bench::material;
use crate::testing::TestCa;
use crate::trust;

/// Answers with certificates of random serials; every token that ends with 9 is refused.
#[derive(Clone)]
struct Counting {
    chain: Arc<Vec<Vec<u8>>>,
    seen: Arc<watch::Sender<Vec<String>>>,
}

#[tonic::async_trait]
impl WorkloadService for Counting {
    async fn issue_svid(
        &self,
        request: Request<IssueSvidRequest>,
    ) -> Result<Response<IssueSvidResponse>, Status> {
        let token = request
            .metadata()
            .get("authorization")
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned();
        citadel_identity::csr::prove_possession(&request.get_ref().csr).unwrap();
        let refused = token.ends_with('9');
        self.seen.send_modify(|seen| seen.push(token));
        if refused {
            return Err(Status::resource_exhausted("queue full"));
        }
        let svid = X509Svid {
            serial: hex::encode(rand::random::<[u8; 16]>()),
            certificate_chain: self.chain.to_vec(),
            ..Default::default()
        };
        Ok(Response::new(IssueSvidResponse {
            svid: Some(svid),
            ..Default::default()
        }))
    }
}

struct TestServer {
    address: SocketAddr,
    service: Counting,
    /// Each change breaks the connections that stand.
    breaks: watch::Sender<u32>,
}

impl TestServer {
    async fn start(ca: &TestCa) -> Self {
        let own = ca.svid("spiffe://example.org/citadel/ca");
        let chain = own
            .chain
            .iter()
            .map(|der| CertificateDer::from(der.clone()))
            .collect();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(own.key.to_vec()));
        let mut config =
            rustls::ServerConfig::builder_with_provider(citadel_identity::crypto::provider())
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(chain, key)
                .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = Counting {
            chain: Arc::new(ca.svid("spiffe://example.org/a").chain),
            seen: Arc::new(watch::Sender::new(Vec::new())),
        };
        let (breaks, broken) = watch::channel(0);
        let answers = service.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, answers, mut broken) =
                    (acceptor.clone(), answers.clone(), broken.clone());
                broken.mark_unchanged();
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    let service = TowerToHyperService::new(WorkloadServiceServer::new(answers));
                    let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service);
                    tokio::select! {
                        _ = connection => {}
                        _ = broken.changed() => {}
                    }
                });
            }
        });
        Self {
            address,
            service,
            breaks,
        }
    }

    /// Waits until it was asked so often.
    async fn asked(&self, times: usize) {
        let mut seen = self.service.seen.subscribe();
        let enough = seen.wait_for(|seen| seen.len() >= times);
        tokio::time::timeout(Duration::from_secs(60), enough)
            .await
            .unwrap()
            .unwrap();
    }

    fn load(&self, ca: &TestCa, tokens: usize, received: Option<Received>) -> Load {
        let trust_domain = trust::domain("example.org").unwrap();
        let bundles = BundleSet::from(trust::of(&trust_domain, std::slice::from_ref(&ca.root)));
        let tls = trust::client_config(&trust_domain, &bundles, None).unwrap();
        let csrs = material::csrs(4, &Progress::hidden()).unwrap();
        let tokens: Vec<String> = (0..tokens)
            .map(|number| format!("token-{number}"))
            .collect();
        let line = Line::new(&self.address.to_string(), tls);
        let calls = material::token_calls(&tokens, &csrs).unwrap();
        Load {
            path: Path::Token,
            lanes: vec![Lane {
                line,
                calls,
                next: Arc::default(),
            }],
            concurrency: 4,
            warm_up: Duration::ZERO,
            duration: Duration::from_secs(120),
            received,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_request_has_another_token_and_refusals_are_counted() {
    let ca = TestCa::new();
    let server = TestServer::start(&ca).await;
    let running = server.load(&ca, 50, None).start();
    server.asked(60).await;
    running.stop();
    let shared = Arc::clone(&running.shared);
    let (seen, first) = running.finish().await.unwrap();
    assert!(first.is_some());
    let tokens = server.service.seen.borrow().clone();
    let refused = tokens.iter().filter(|token| token.ends_with('9')).count() as u64;
    assert!(refused > 0);
    assert_eq!(
        seen.errors.get("ResourceExhausted: queue full"),
        Some(&refused)
    );
    let certificates = shared.certificates.load(Ordering::Relaxed);
    assert_eq!(certificates, tokens.len() as u64 - refused);
    assert_eq!(seen.latencies.len() as u64, certificates);
    assert!(seen.latencies.is_sorted());
    let mut distinct = tokens[..50].to_vec();
    distinct.sort();
    distinct.dedup();
    // Four requests at once overtake each other a little.
    assert!(distinct.len() >= 46, "{}", distinct.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_whose_connection_breaks_goes_on_and_keeps_what_arrived() {
    let ca = TestCa::new();
    let server = TestServer::start(&ca).await;
    let folder = tempfile::tempdir().unwrap();
    let received = Received::open(folder.path()).unwrap();
    let running = server.load(&ca, 5, Some(received)).start();
    for _ in 0..3 {
        let before = server.service.seen.borrow().len();
        server.asked(before + 20).await;
        server.breaks.send_modify(|count| *count += 1);
    }
    let before = server.service.seen.borrow().len();
    server.asked(before + 20).await;
    running.stop();
    let shared = Arc::clone(&running.shared);
    running.finish().await.unwrap();
    let arrived = shared.certificates.load(Ordering::Relaxed);
    assert!(arrived >= 60, "{arrived}");
    assert_eq!(
        std::fs::read_dir(folder.path()).unwrap().count() as u64,
        arrived
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_somebody_else_gets_no_load() {
    let (ca, other) = (TestCa::new(), TestCa::new());
    let server = TestServer::start(&ca).await;
    let mut load = server.load(&other, 5, None);
    load.duration = Duration::from_millis(500);
    let (seen, first) = load.start().finish().await.unwrap();
    assert!(first.is_none());
    assert!(!seen.errors.is_empty());
    assert!(server.service.seen.borrow().is_empty());
}
