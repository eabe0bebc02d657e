//! For this crate's tests: a CA that does what it is told, and clocks to go with it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use async_trait::async_trait;
use citadel_identity::{
    SpiffeId, TrustDomain,
    bundle::{Bundle, BundleSet},
    csr,
};
use citadel_proto::v1::{
    IssueItem, IssueResult, ItemError, X509Svid, issue_item::Subject, issue_result::Outcome,
};
use citadel_runtime::Shutdown;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use time::{OffsetDateTime, macros::datetime};
use tokio::{sync::watch, time::Instant};

use crate::{
    ca_client::{Ca, CaError, Issued},
    clock::Clock,
    metrics::Metrics,
    secrets::{ManagerOptions, SecretManager},
};

pub(crate) fn trust_domain() -> TrustDomain {
    TrustDomain::new("example.org").unwrap()
}

/// Wall time that follows tokio's clock until a test sets it.
#[derive(Debug)]
pub(crate) struct TestClock {
    base: OffsetDateTime,
    began: Instant,
    set: Mutex<time::Duration>,
}

impl TestClock {
    pub(crate) fn new() -> Arc<Self> {
        // The real time, so that certificates also satisfy those who look at a real clock.
        let base = OffsetDateTime::from(std::time::SystemTime::now());
        let base = base.replace_nanosecond(0).unwrap();
        Arc::new(Self {
            base,
            began: Instant::now(),
            set: Mutex::default(),
        })
    }

    /// The time as if nobody had set the clock.
    pub(crate) fn true_time(&self) -> OffsetDateTime {
        self.base + self.began.elapsed()
    }

    pub(crate) fn set_by(&self, by: time::Duration) {
        *self.set.lock().unwrap() += by;
    }
}

impl Clock for TestClock {
    fn now(&self) -> OffsetDateTime {
        self.true_time() + *self.set.lock().unwrap()
    }
}

/// A root that signs whatever a test wants.
pub(crate) struct Pki {
    issuer: CertifiedIssuer<'static, KeyPair>,
    serial: Mutex<u64>,
}

impl Pki {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "test root");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.subject_alt_names = vec![SanType::URI("spiffe://example.org".try_into().unwrap())];
        params.not_before = datetime!(2020-01-01 00:00:00 UTC);
        params.not_after = datetime!(2120-01-01 00:00:00 UTC);
        params.serial_number = Some(SerialNumber::from(1u64));
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self {
            issuer,
            serial: Mutex::new(1),
        }
    }

    pub(crate) fn root(&self) -> CertificateDer<'static> {
        self.issuer.der().clone()
    }

    pub(crate) fn bundles(&self) -> BundleSet {
        let mut set = BundleSet::default();
        set.insert(Bundle {
            trust_domain: trust_domain(),
            authorities: vec![self.root()],
            sequence: 1,
            refresh_hint: Duration::from_mins(5),
        });
        set
    }

    /// A leaf for the key of a CSR.
    pub(crate) fn leaf(
        &self,
        id: &str,
        csr: &[u8],
        not_before: OffsetDateTime,
        not_after: OffsetDateTime,
    ) -> (Vec<u8>, String) {
        let proven = csr::prove_possession(csr).expect("a CSR that proves its key");
        self.leaf_for(id, &proven, not_before, not_after)
    }

    pub(crate) fn leaf_for(
        &self,
        id: &str,
        key: &impl PublicKeyData,
        not_before: OffsetDateTime,
        not_after: OffsetDateTime,
    ) -> (Vec<u8>, String) {
        let mut serial = self.serial.lock().unwrap();
        *serial += 1;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
        params.use_authority_key_identifier_extension = true;
        params.not_before = not_before;
        params.not_after = not_after;
        params.serial_number = Some(SerialNumber::from(*serial));
        let certificate = params.signed_by(key, &self.issuer).unwrap();
        (certificate.der().to_vec(), format!("{:016x}", *serial))
    }
}

/// What the fake CA does with everything.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Mode {
    Good,
    /// The call fails.
    Down,
    /// Each item is refused, for good.
    Deny,
    /// Each item is put off by so many milliseconds.
    Later(i64),
    /// The certificate is for this ID.
    WrongId(String),
    /// The certificate is for the key of another CSR.
    WrongKey,
    /// The certificate is signed by a stranger.
    Stranger,
}

/// One item as the fake CA saw it.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub at: Instant,
    pub call: usize,
    pub subject: Subject,
    pub previous_serial: String,
}

pub(crate) struct FakeCa {
    pub pki: Pki,
    clock: Arc<TestClock>,
    state: Mutex<Fake>,
}

struct Fake {
    mode: Mode,
    /// By name of the subject, before `mode`.
    modes: HashMap<String, Mode>,
    /// By name of the subject.
    hints: HashMap<String, String>,
    lifetime: Duration,
    assign_slots: bool,
    /// How long a call takes, and one with relayed tokens.
    takes: Duration,
    tokens_take: Duration,
    calls: usize,
    seen: Vec<Seen>,
}

impl FakeCa {
    pub(crate) fn new(clock: Arc<TestClock>) -> Arc<Self> {
        let state = Fake {
            mode: Mode::Good,
            modes: HashMap::new(),
            hints: HashMap::new(),
            lifetime: Duration::from_hours(1),
            assign_slots: true,
            takes: Duration::from_millis(10),
            tokens_take: Duration::from_millis(10),
            calls: 0,
            seen: Vec::new(),
        };
        Arc::new(Self {
            pki: Pki::new(),
            clock,
            state: Mutex::new(state),
        })
    }

    fn state(&self) -> MutexGuard<'_, Fake> {
        self.state.lock().unwrap()
    }

    pub(crate) fn mode(&self, mode: Mode) {
        self.state().mode = mode;
    }

    pub(crate) fn mode_of(&self, subject: &str, mode: Mode) {
        self.state().modes.insert(subject.to_owned(), mode);
    }

    pub(crate) fn hint_of(&self, subject: &str, hint: &str) {
        let hints = &mut self.state().hints;
        hints.insert(subject.to_owned(), hint.to_owned());
    }

    pub(crate) fn lifetime(&self, lifetime: Duration) {
        self.state().lifetime = lifetime;
    }

    pub(crate) fn tokens_take(&self, takes: Duration) {
        self.state().tokens_take = takes;
    }

    pub(crate) fn no_slots(&self) {
        self.state().assign_slots = false;
    }

    pub(crate) fn calls(&self) -> usize {
        self.state().calls
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.state().seen.clone()
    }

    fn answer(&self, item: &IssueItem, mode: &Mode) -> Outcome {
        let error = |code, retry_after_ms| {
            Outcome::Error(ItemError {
                code,
                message: "so told".into(),
                retry_after_ms,
            })
        };
        let (lifetime, assign_slots) = {
            let state = self.state();
            (state.lifetime, state.assign_slots)
        };
        let subject = item.subject.as_ref().unwrap();
        let mut id = format!("spiffe://example.org/{}", name_of(subject));
        let mut csr = item.csr.clone();
        let mut stranger = None;
        match mode {
            Mode::Good => {}
            Mode::Down => unreachable!("the whole call fails"),
            Mode::Deny => return error(7, 0),
            Mode::Later(ms) => return error(14, *ms),
            Mode::WrongId(other) => id.clone_from(other),
            Mode::WrongKey => {
                csr = citadel_identity::key::WorkloadKey::generate()
                    .unwrap()
                    .csr()
                    .unwrap();
            }
            Mode::Stranger => stranger = Some(Pki::new()),
        }
        let now = self.clock.true_time();
        let not_after = (now + lifetime).replace_nanosecond(0).unwrap();
        let pki = stranger.as_ref().unwrap_or(&self.pki);
        let (leaf, serial) = pki.leaf(&id, &csr, now - Duration::from_mins(2), not_after);
        let pod_uid = match subject {
            Subject::Pod(pod) => pod.pod_uid.clone(),
            Subject::Entry(entry) => entry.pod_uid.clone(),
            Subject::RelayedToken(_) => RELAYED_POD.to_owned(),
        };
        Outcome::Svid(X509Svid {
            spiffe_id: id,
            certificate_chain: vec![leaf],
            serial,
            not_before: 0,
            not_after: not_after.unix_timestamp(),
            renew_at: if assign_slots {
                (now + lifetime / 2).unix_timestamp()
            } else {
                0
            },
            log_index: 0,
            hint: self
                .state()
                .hints
                .get(&name_of(subject))
                .cloned()
                .unwrap_or_default(),
            pod_uid,
        })
    }
}

/// The pod that every relayed token of these tests proves.
pub(crate) const RELAYED_POD: &str = "relayed-pod";

/// How the tests call what is asked for; also the path of its SPIFFE ID.
pub(crate) fn name_of(subject: &Subject) -> String {
    match subject {
        Subject::Pod(pod) => format!("pod/{}", pod.pod_uid),
        Subject::Entry(entry) => entry.entry_id.clone(),
        Subject::RelayedToken(_) => "relayed".to_owned(),
    }
}

#[async_trait]
impl Ca for FakeCa {
    async fn issue_batch(&self, items: Vec<IssueItem>) -> Result<Issued, CaError> {
        let (takes, mode) = {
            let mut state = self.state();
            state.calls += 1;
            let call = state.calls;
            let seen = items.iter().map(|item| Seen {
                at: Instant::now(),
                call,
                subject: item.subject.clone().unwrap(),
                previous_serial: item.previous_serial.clone(),
            });
            let seen: Vec<Seen> = seen.collect();
            state.seen.extend(seen);
            let with_tokens = items
                .iter()
                .any(|item| matches!(item.subject, Some(Subject::RelayedToken(_))));
            let takes = if with_tokens {
                state.tokens_take
            } else {
                state.takes
            };
            (takes, state.mode.clone())
        };
        tokio::time::sleep(takes).await;
        if mode == Mode::Down {
            return Err(CaError::Unreachable("connection refused".into()));
        }
        let results = items
            .iter()
            .map(|item| {
                let own = name_of(item.subject.as_ref().unwrap());
                let own = self.state().modes.get(&own).cloned();
                IssueResult {
                    idempotency_key: item.idempotency_key.clone(),
                    outcome: Some(self.answer(item, own.as_ref().unwrap_or(&mode))),
                }
            })
            .collect();
        let server_time_ms = self.clock.true_time().unix_timestamp_nanos() / 1_000_000;
        Ok(Issued {
            results,
            server_time_ms: i64::try_from(server_time_ms).unwrap(),
        })
    }
}

/// A running manager with its fake CA.
pub(crate) struct World {
    pub ca: Arc<FakeCa>,
    pub clock: Arc<TestClock>,
    pub manager: SecretManager,
    pub bundles: watch::Sender<Option<Arc<BundleSet>>>,
    pub metrics: Metrics,
    pub shutdown: Shutdown,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with(ManagerOptions::default())
    }

    pub(crate) fn with(options: ManagerOptions) -> Self {
        citadel_identity::crypto::install_default();
        let clock = TestClock::new();
        let ca = FakeCa::new(Arc::clone(&clock));
        let bundles = watch::Sender::new(Some(Arc::new(ca.pki.bundles())));
        let metrics = Metrics::default();
        let manager = SecretManager::new(
            Arc::clone(&ca) as Arc<dyn Ca>,
            Arc::clone(&clock) as Arc<dyn Clock>,
            trust_domain(),
            bundles.subscribe(),
            metrics.clone(),
            options,
        );
        let shutdown = Shutdown::new();
        tokio::spawn(manager.clone().run(shutdown.signal()));
        Self {
            ca,
            clock,
            manager,
            bundles,
            metrics,
            shutdown,
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.shutdown.trigger();
    }
}

pub(crate) fn id(path: &str) -> SpiffeId {
    SpiffeId::new(format!("spiffe://example.org/{path}")).unwrap()
}
