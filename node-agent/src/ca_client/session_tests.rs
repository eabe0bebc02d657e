#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{net::SocketAddr, path::PathBuf, pin::Pin, sync::Mutex as StdMutex};

use citadel_identity::{
    crypto,
    key::WorkloadKey,
    tls::{BundleHandle, ClientVerifier},
    verify,
};
use citadel_proto::v1::{
    AttestAgentRequest, AttestAgentResponse, EntriesUpdate, EntryRecord, GetChallengeRequest,
    GetChallengeResponse, HoldersReport, IssueBatchResponse, ReportHoldersRequest,
    ReportHoldersResponse, StreamEntriesRequest, StreamTrustBundlesRequest, TrustBundle,
    TrustBundlesUpdate, X509Svid,
    agent_service_server::{AgentService, AgentServiceServer},
};
use citadel_runtime::{
    Shutdown,
    admin::Readiness,
    tls::{
        ConnectionLimits, ConnectionMetrics, PeerInfo, ReloadingCertificate, incoming,
        server_config,
    },
};
use futures::{Stream, StreamExt};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::wrappers::WatchStream;
use tonic::{Request, Response, Status, transport::Server};
use zeroize::Zeroizing;

use super::*;
use crate::{
    clock::SystemClock,
    holders::Holders,
    testing::{Pki, trust_domain},
    testing_agent::soon,
};

const CA_ID: &str = "spiffe://example.org/citadel/ca";
const AGENT_ID: &str = "spiffe://example.org/citadel/agent/east/node-1";

/// How a call was authenticated, as the server saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum By {
    Token(String),
    Svid(String),
    Both,
    Nothing,
}

#[derive(Debug, Clone, PartialEq)]
enum Event {
    Attest(By, Option<String>),
    Batch(By),
    Report(By, HoldersReport),
}

/// A CA as small as can be, over real TLS.
#[derive(Clone)]
struct TestCa {
    pki: Arc<Pki>,
    events: mpsc::UnboundedSender<Event>,
    refuse_svid: Arc<AtomicBool>,
    refuse_batches: Arc<AtomicBool>,
    lifetime: Arc<StdMutex<Duration>>,
    bundles: watch::Sender<TrustBundlesUpdate>,
    entries: watch::Sender<EntriesUpdate>,
}

impl TestCa {
    fn by<T>(request: &Request<T>) -> By {
        let token = request
            .metadata()
            .get("authorization")
            .map(|v| v.to_str().unwrap().to_owned());
        let chain = &request.extensions().get::<PeerInfo>().unwrap().client_chain;
        let svid = chain
            .first()
            .map(|leaf| verify::spiffe_id(leaf).unwrap().to_string());
        match (token, svid) {
            (Some(_), Some(_)) => By::Both,
            (Some(token), None) => By::Token(token),
            (None, Some(svid)) => By::Svid(svid),
            (None, None) => By::Nothing,
        }
    }
}

type Updates<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl AgentService for TestCa {
    async fn attest_agent(
        &self,
        request: Request<AttestAgentRequest>,
    ) -> Result<Response<AttestAgentResponse>, Status> {
        let by = Self::by(&request);
        let cluster = request
            .metadata()
            .get("clusterid")
            .map(|v| v.to_str().unwrap().to_owned());
        self.events
            .send(Event::Attest(by.clone(), cluster))
            .unwrap();
        if matches!(by, By::Svid(_)) && self.refuse_svid.load(Ordering::Relaxed) {
            return Err(Status::unauthenticated("the node has gone"));
        }
        let now = time::OffsetDateTime::from(std::time::SystemTime::now());
        let not_after = now + *self.lifetime.lock().unwrap();
        let csr = &request.get_ref().csr;
        let (leaf, serial) = self
            .pki
            .leaf(AGENT_ID, csr, now - Duration::from_mins(1), not_after);
        let svid = X509Svid {
            spiffe_id: AGENT_ID.to_owned(),
            certificate_chain: vec![leaf],
            serial,
            ..X509Svid::default()
        };
        Ok(Response::new(AttestAgentResponse {
            svid: Some(svid),
            bundles: self.bundles.borrow().bundles.clone(),
            server_time_ms: now_ms(),
        }))
    }

    async fn get_challenge(
        &self,
        _: Request<GetChallengeRequest>,
    ) -> Result<Response<GetChallengeResponse>, Status> {
        Err(Status::unimplemented("no node joins by a certificate here"))
    }

    async fn issue_batch(
        &self,
        request: Request<IssueBatchRequest>,
    ) -> Result<Response<IssueBatchResponse>, Status> {
        self.events.send(Event::Batch(Self::by(&request))).unwrap();
        if self.refuse_batches.load(Ordering::Relaxed) {
            return Err(Status::unauthenticated("the node has gone"));
        }
        let results = vec![IssueResultOf::default(); request.get_ref().items.len()];
        Ok(Response::new(IssueBatchResponse {
            results,
            server_time_ms: now_ms(),
        }))
    }

    async fn report_holders(
        &self,
        request: Request<ReportHoldersRequest>,
    ) -> Result<Response<ReportHoldersResponse>, Status> {
        let by = Self::by(&request);
        let report = request.into_inner().report.unwrap();
        self.events.send(Event::Report(by, report)).unwrap();
        Ok(Response::new(ReportHoldersResponse {
            server_time_ms: now_ms(),
        }))
    }

    type StreamEntriesStream = Updates<EntriesUpdate>;

    async fn stream_entries(
        &self,
        _: Request<StreamEntriesRequest>,
    ) -> Result<Response<Self::StreamEntriesStream>, Status> {
        let updates = WatchStream::new(self.entries.subscribe()).map(Ok);
        Ok(Response::new(Box::pin(updates)))
    }

    type StreamTrustBundlesStream = Updates<TrustBundlesUpdate>;

    async fn stream_trust_bundles(
        &self,
        _: Request<StreamTrustBundlesRequest>,
    ) -> Result<Response<Self::StreamTrustBundlesStream>, Status> {
        let updates = WatchStream::new(self.bundles.subscribe()).map(Ok);
        Ok(Response::new(Box::pin(updates)))
    }
}

type IssueResultOf = citadel_proto::v1::IssueResult;

fn now_ms() -> i64 {
    let now = time::OffsetDateTime::from(std::time::SystemTime::now());
    i64::try_from(now.unix_timestamp_nanos() / 1_000_000).unwrap()
}

fn bundle_of(pki: &Pki) -> TrustBundle {
    TrustBundle {
        trust_domain: "example.org".into(),
        x509_authorities: vec![pki.root().to_vec()],
        sequence: 1,
        refresh_hint_seconds: 300,
    }
}

struct Running {
    ca: TestCa,
    events: mpsc::UnboundedReceiver<Event>,
    address: SocketAddr,
    shutdown: Shutdown,
    dir: tempfile::TempDir,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shutdown.trigger();
    }
}

impl Running {
    /// A CA that presents `id`.
    async fn start(id: &str) -> Self {
        crypto::install_default();
        let pki = Arc::new(Pki::new());
        let (sender, events) = mpsc::unbounded_channel();
        let ca = TestCa {
            pki: Arc::clone(&pki),
            events: sender,
            refuse_svid: Arc::default(),
            refuse_batches: Arc::default(),
            lifetime: Arc::new(StdMutex::new(Duration::from_hours(1))),
            bundles: watch::Sender::new(TrustBundlesUpdate {
                bundles: vec![bundle_of(&pki)],
                server_time_ms: now_ms(),
            }),
            entries: watch::Sender::new(EntriesUpdate::default()),
        };
        let now = time::OffsetDateTime::from(std::time::SystemTime::now());
        let key = WorkloadKey::generate().unwrap();
        let (leaf, _) = pki.leaf_for(
            id,
            &key,
            now - Duration::from_mins(1),
            now + Duration::from_hours(1),
        );
        let chain = vec![leaf.into(), pki.root()];
        let certificate = Arc::new(ReloadingCertificate::new(chain, key.pkcs8_der()).unwrap());
        let clients = ClientVerifier::new(trust_domain(), BundleHandle::new(pki.bundles()));
        let config = server_config(certificate, Arc::new(clients)).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = Shutdown::new();
        let incoming = incoming(
            listener,
            config,
            ConnectionLimits::default(),
            ConnectionMetrics::default(),
            shutdown.signal(),
        );
        let server = Server::builder()
            .add_service(AgentServiceServer::new(ca.clone()))
            .serve_with_incoming_shutdown(incoming, shutdown.signal().wait_owned());
        tokio::spawn(server);
        Self {
            ca,
            events,
            address,
            shutdown,
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn write_bundle(&self, pki: &Pki) -> PathBuf {
        let path = self.dir.path().join("root-cert.pem");
        let pem = citadel_identity::pem::encode("CERTIFICATE", &pki.root());
        std::fs::write(&path, pem.as_bytes()).unwrap();
        path
    }

    fn bundle_file(&self) -> FirstTrust {
        FirstTrust::BundleFile(self.write_bundle(&self.ca.pki))
    }

    fn session(&self, first_trust: FirstTrust) -> (Arc<Session>, Readiness) {
        #[derive(Debug)]
        struct Fixed;
        impl TokenSource for Fixed {
            fn token(&self) -> std::io::Result<Zeroizing<String>> {
                Ok(Zeroizing::new("the-token".to_owned()))
            }
        }
        let config = SessionConfig {
            knows_containers: false,
            trust_domain: trust_domain(),
            addresses: vec![self.address.to_string().parse().unwrap()],
            first_trust,
            cluster: "east".into(),
        };
        let readiness = Readiness::new();
        let session = Session::new(
            config,
            Credential::Token(Arc::new(Fixed)),
            Arc::new(SystemClock),
            Metrics::default(),
            readiness.part("ca"),
        );
        tokio::spawn(Arc::clone(&session).run(self.shutdown.signal()));
        (session, readiness)
    }

    async fn event(&mut self) -> Event {
        soon(self.events.recv()).await.unwrap()
    }
}

fn by_token() -> Event {
    Event::Attest(By::Token("Bearer the-token".into()), Some("east".into()))
}

fn by_svid() -> Event {
    Event::Attest(By::Svid(AGENT_ID.into()), Some("east".into()))
}

async fn attested(session: &Session) {
    soon(session.links().wait_for(Option::is_some))
        .await
        .unwrap();
}

/// Waits until the agent has failed to prove itself, and tells why.
async fn trouble(session: &Session, about: &str) -> String {
    soon(async {
        loop {
            let trouble = session.last_trouble.lock().unwrap().clone();
            if trouble.contains(about) {
                return trouble;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
}

#[tokio::test]
async fn the_token_proves_the_agent_and_its_svid_carries_everything_else() {
    let mut running = Running::start(CA_ID).await;
    running.ca.entries.send_replace(EntriesUpdate {
        entries: vec![EntryRecord {
            entry_id: "a".into(),
            spiffe_id: "spiffe://example.org/a".into(),
            selectors: vec!["unix:uid:1".into()],
            ..EntryRecord::default()
        }],
        revision: 7,
    });
    let (session, readiness) = running.session(running.bundle_file());
    assert_eq!(running.event().await, by_token());
    attested(&session).await;
    soon(
        session
            .entries()
            .wait_for(|e| e.as_ref().is_some_and(|e| e.list.len() == 1)),
    )
    .await
    .unwrap();
    let bundles = session.bundles().borrow().clone().unwrap();
    assert_eq!(
        *bundles.get(&trust_domain()).unwrap().authorities,
        [running.ca.pki.root()]
    );
    assert!(readiness.is_ready());
    session
        .issue_batch(vec![IssueItem::default()])
        .await
        .unwrap();
    assert_eq!(
        running.event().await,
        Event::Batch(By::Svid(AGENT_ID.into()))
    );
}

#[tokio::test]
async fn the_svid_renews_itself_and_the_token_is_the_way_back() {
    let mut running = Running::start(CA_ID).await;
    *running.ca.lifetime.lock().unwrap() = Duration::from_secs(3);
    let (session, _) = running.session(running.bundle_file());
    assert_eq!(running.event().await, by_token());
    assert_eq!(running.event().await, by_svid());
    running.ca.refuse_svid.store(true, Ordering::Relaxed);
    // Refused, and then by the token at once.
    loop {
        match running.event().await {
            event if event == by_svid() => {}
            event => {
                assert_eq!(event, by_token());
                break;
            }
        }
    }
    attested(&session).await;
}

#[tokio::test]
async fn a_refused_batch_makes_the_agent_prove_itself_anew() {
    let mut running = Running::start(CA_ID).await;
    let (session, _) = running.session(running.bundle_file());
    attested(&session).await;
    assert_eq!(running.event().await, by_token());
    let first = session.links().borrow().clone().unwrap();
    running.ca.refuse_batches.store(true, Ordering::Relaxed);
    let refused = session.issue_batch(vec![]).await.unwrap_err();
    assert!(matches!(refused, CaError::Refused(_)), "{refused}");
    running.event().await;
    running.ca.refuse_batches.store(false, Ordering::Relaxed);
    assert_eq!(running.event().await, by_token());
    let another = |link: &Option<Arc<Link>>| link.as_ref().is_some_and(|l| !Arc::ptr_eq(l, &first));
    soon(session.links().wait_for(another)).await.unwrap();
    session.issue_batch(vec![]).await.unwrap();
}

#[tokio::test]
async fn a_server_with_a_workloads_svid_is_refused() {
    let mut running = Running::start("spiffe://example.org/ns/shop/sa/web").await;
    let (session, readiness) = running.session(running.bundle_file());
    trouble(&session, "/ns/shop/sa/web").await;
    assert!(!readiness.is_ready());
    // The token never left.
    assert!(running.events.try_recv().is_err());
}

#[tokio::test]
async fn a_server_outside_of_first_trust_is_refused() {
    let mut running = Running::start(CA_ID).await;
    let stranger = Pki::new();
    let (session, _) = running.session(FirstTrust::BundleFile(running.write_bundle(&stranger)));
    trouble(&session, "invalid peer certificate").await;
    assert!(running.events.try_recv().is_err());
    // The operator replaces the file, and the agent reads it again.
    running.write_bundle(&running.ca.pki);
    assert_eq!(running.event().await, by_token());
    attested(&session).await;
}

#[tokio::test]
async fn the_hash_of_a_root_is_first_trust_too() {
    let mut running = Running::start(CA_ID).await;
    let (session, _) = running.session(FirstTrust::RootSha256([7; 32]));
    trouble(&session, "invalid peer certificate").await;
    assert!(running.events.try_recv().is_err());
    let digest = crypto::sha256(&running.ca.pki.root());
    let (session, _) = running.session(FirstTrust::RootSha256(digest));
    attested(&session).await;
    assert_eq!(running.event().await, by_token());
}

#[tokio::test]
async fn a_missing_bundle_file_is_said_and_waited_for() {
    let running = Running::start(CA_ID).await;
    let missing = running.dir.path().join("root-cert.pem");
    let (session, _) = running.session(FirstTrust::BundleFile(missing));
    trouble(&session, "root-cert.pem").await;
    running.write_bundle(&running.ca.pki);
    attested(&session).await;
}

#[tokio::test]
async fn bundles_follow_the_ca_and_an_empty_one_is_not_taken() {
    let running = Running::start(CA_ID).await;
    let (session, _) = running.session(running.bundle_file());
    attested(&session).await;
    let send = |authorities: Vec<Vec<u8>>, sequence| {
        let bundle = TrustBundle {
            x509_authorities: authorities,
            sequence,
            ..bundle_of(&running.ca.pki)
        };
        let update = TrustBundlesUpdate {
            bundles: vec![bundle],
            server_time_ms: now_ms(),
        };
        running.ca.bundles.send_replace(update);
    };
    let own = running.ca.pki.root().to_vec();
    let next = Pki::new().root().to_vec();
    let mut bundles = session.bundles();
    let has = |roots: usize| {
        move |set: &Option<Arc<citadel_identity::bundle::BundleSet>>| {
            set.as_ref()
                .and_then(|set| set.get(&trust_domain()))
                .is_some_and(|bundle| bundle.authorities.len() == roots)
        }
    };
    send(vec![own.clone(), next.clone()], 2);
    soon(bundles.wait_for(has(2))).await.unwrap();
    send(vec![], 3);
    send(
        vec![own.clone(), next.clone(), Pki::new().root().to_vec()],
        4,
    );
    soon(bundles.wait_for(has(3))).await.unwrap();
    assert_eq!(
        session.bundles().borrow().as_ref().unwrap().iter().count(),
        1
    );
}

#[tokio::test]
async fn what_workloads_run_on_is_reported_under_the_agents_svid() {
    let mut running = Running::start(CA_ID).await;
    let (session, _) = running.session(running.bundle_file());
    let holders = Holders::new(Arc::new(SystemClock), Metrics::default());
    let reporting = Arc::clone(&session);
    let shutdown = running.shutdown.signal();
    tokio::spawn(async move { reporting.report(holders, shutdown).await });
    let bundle = crypto::sha256(&running.ca.pki.root());
    let report = loop {
        if let Event::Report(by, report) = running.event().await {
            assert_eq!(by, By::Svid(AGENT_ID.into()));
            break report;
        }
    };
    assert_eq!(report.bundle_sha256, hex::encode(bundle));
    assert!(report.complete && report.behind == 0 && report.bundles.is_empty());
    let standing = session.standing();
    assert_eq!(standing.identity.unwrap().0.to_string(), AGENT_ID);
    assert!(standing.contact.is_some() && standing.trouble.is_none());
}

#[tokio::test]
async fn a_session_goes_on_where_the_one_before_it_was_without_the_ca() {
    let running = Running::start(CA_ID).await;
    let (first, _) = running.session(running.bundle_file());
    attested(&first).await;
    let mut entries = first.entries();
    soon(entries.wait_for(Option::is_some)).await.unwrap();
    let mut bundles = first.bundles();
    soon(bundles.wait_for(Option::is_some)).await.unwrap();
    let before = first.standing().identity;
    let handed = first.hand_over();

    // Its file of first trust is gone, and nobody answers at the CA's address.
    let gone = FirstTrust::BundleFile("/nonexistent/bundle.pem".into());
    let (second, readiness) = running.session(gone);
    drop(running);
    let set = second.take_over(handed);
    assert_eq!(Some(&set), first.bundles().borrow().as_deref());
    assert_eq!(*second.entries().borrow(), *first.entries().borrow());
    assert_eq!(second.standing().identity, before);
    assert!(readiness.is_ready());
    // What makes no sense is left, and nothing is lost by it.
    let mut nonsense = first.hand_over();
    nonsense.entries = Some(vec![0xff; 8]);
    nonsense.bundles[0].trust_domain = "not a name".into();
    nonsense.agent.as_mut().unwrap().private_key = vec![1, 2, 3];
    second.take_over(nonsense);
    assert_eq!(second.standing().identity, before);
    assert_eq!(*second.entries().borrow(), *first.entries().borrow());
    assert_eq!(Some(&set), second.bundles().borrow().as_deref());
}
