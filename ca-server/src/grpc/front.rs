//! What every service does first: credentials, a turn in the queue, and one log line for each
//! refusal. The deadline is the gate's.

use std::{future::Future, pin::pin, sync::Arc, time::Duration};

use citadel_identity::{
    bundle::{Bundle, BundleSet},
    crypto, template,
};
use citadel_proto::v1;
use citadel_runtime::{ShutdownSignal, grpc::Call, tls::PeerInfo};
use http::Request;
use prost::Message;
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;
use tokio::sync::watch;
use tonic::{Extensions, Status, body::Body, metadata::MetadataMap};

use super::{MAX_SINGLE_REQUEST, refusal::Refusal, refusals::Refusals};
use crate::{
    admission::{Admission, Lane},
    authn::{Authenticator, AuthnError, Credentials},
    caller::{BearerToken, Caller, unix_ms},
    holders::Holders,
    issuance::{Issuance, Svid},
    metrics::{Metrics, Stage},
};

/// When a request that found its queue full is told so, at the earliest, and over how much more
/// time such refusals are spread. Whoever asks again at once, against the hint, would else cost
/// the server's CPU, which is everybody's: a refusal is as much work for HTTP/2 and TLS as an
/// answer, and hundreds at one instant hold up all others.
const REFUSED_AFTER: Duration = Duration::from_millis(500);
const REFUSED_WITHIN: Duration = Duration::from_secs(1);

/// What the services share.
pub(crate) struct FrontParts {
    /// Who is asking.
    pub(crate) authenticator: Arc<Authenticator>,
    /// The line.
    pub(crate) issuance: Arc<Issuance>,
    /// Whose turn it is.
    pub(crate) admission: Arc<Admission>,
    /// Counters.
    pub(crate) metrics: Arc<Metrics>,
    /// The trust bundles, as they change.
    pub(crate) bundles: watch::Receiver<Arc<BundleSet>>,
    /// Counts and logs those who get nothing.
    pub(crate) refusals: Arc<Refusals>,
    /// What agents report of their workloads.
    pub(crate) holders: Arc<Holders>,
    /// Ends open streams, so that a shutdown does not wait for them.
    pub(crate) shutdown: ShutdownSignal,
}

/// Shared by all services; cheap to clone.
#[derive(Clone)]
pub(crate) struct Front(Arc<FrontParts>);

impl std::ops::Deref for Front {
    type Target = FrontParts;

    fn deref(&self) -> &FrontParts {
        &self.0
    }
}

impl Front {
    /// Puts the parts together.
    pub(crate) fn new(parts: FrontParts) -> Self {
        Self(Arc::new(parts))
    }

    /// Serves one request: waits for a turn, counts, and logs a refusal. Work that is asked for
    /// most is better pinned by its caller: a future that is handed on is kept twice by each that
    /// takes it.
    pub(super) async fn serve<T>(
        &self,
        rpc: &'static str,
        credentials: &Credentials,
        work: impl Future<Output = Result<T, Refusal>>,
    ) -> Result<T, Status> {
        let admitted = async {
            let turn = self.admission.enter(credentials.lane.clone()).await;
            if turn.is_err() {
                let share = f64::from(u16::from_be_bytes(crypto::random())) / f64::from(u16::MAX);
                tokio::time::sleep(REFUSED_AFTER + REFUSED_WITHIN.mul_f64(share)).await;
            }
            let _turn = turn?;
            self.metrics.waiting(self.admission.waiting());
            work.await
        };
        match admitted.await {
            Ok(value) => {
                self.metrics.request(rpc, "Ok");
                Ok(value)
            }
            Err(refusal) => {
                self.refused(rpc, credentials, &refusal);
                Err(refusal.into())
            }
        }
    }

    /// Counts and logs a refusal, of a request or of one item.
    pub(super) fn refused(&self, rpc: &'static str, credentials: &Credentials, refusal: &Refusal) {
        self.refusals
            .record(rpc, &credentials.lane, credentials.address, refusal);
    }

    /// Authenticates the sender.
    pub(super) async fn caller(
        &self,
        credentials: &Credentials,
        now: OffsetDateTime,
    ) -> Result<Caller, Refusal> {
        let authenticating = pin!(self.authenticator.authenticate(credentials, now));
        self.authenticated(authenticating).await
    }

    /// Times and counts an authentication.
    pub(super) async fn authenticated(
        &self,
        work: impl Future<Output = Result<Caller, AuthnError>>,
    ) -> Result<Caller, Refusal> {
        let timer = self.metrics.stage(Stage::Authenticate);
        match work.await {
            Ok(caller) => {
                timer.end();
                Ok(caller)
            }
            Err(error) => {
                if !matches!(error, AuthnError::Unavailable(_)) {
                    self.metrics.authentication_failed();
                }
                Err(error.into())
            }
        }
    }

    /// The chain to send with a leaf: leaf, then intermediates; no root.
    pub(super) fn chain(&self, leaf: &CertificateDer<'_>) -> Vec<Vec<u8>> {
        let issuer = &self.issuance.line().issuer;
        std::iter::once(leaf.as_ref().to_vec())
            .chain(
                issuer
                    .certificate()
                    .chain()
                    .iter()
                    .map(|der| der.as_ref().to_vec()),
            )
            .collect()
    }

    /// An SVID as citadel.v1 sends it.
    pub(super) fn svid(&self, svid: &Svid) -> v1::X509Svid {
        v1::X509Svid {
            spiffe_id: svid.spiffe_id.to_string(),
            certificate_chain: self.chain(&svid.certificate),
            serial: svid.serial.to_string(),
            not_before: svid.not_before.unix_timestamp(),
            not_after: svid.not_after.unix_timestamp(),
            renew_at: svid.renew_at.unix_timestamp(),
            log_index: svid.index.0,
            hint: svid.hint.clone(),
            pod_uid: svid.pod_uid.clone().unwrap_or_default(),
        }
    }

    /// The hash of the bundle that is handed out now, as holders show it.
    pub(super) fn bundle_sha256(&self) -> String {
        let own = self.issuance.line().issuer.trust_domain();
        let bundles = self.bundles.borrow();
        bundles
            .get(own)
            .map(Bundle::authorities_sha256)
            .unwrap_or_default()
    }

    /// The current trust bundles as citadel.v1 sends them.
    pub(super) fn bundles(&self) -> Vec<v1::TrustBundle> {
        to_bundles(&self.bundles.borrow())
    }
}

/// Trust bundles as citadel.v1 sends them.
pub(super) fn to_bundles(set: &BundleSet) -> Vec<v1::TrustBundle> {
    set.iter()
        .map(|bundle| v1::TrustBundle {
            trust_domain: bundle.trust_domain.to_string(),
            x509_authorities: bundle
                .authorities
                .iter()
                .map(|der| der.as_ref().to_vec())
                .collect(),
            sequence: bundle.sequence,
            refresh_hint_seconds: i64::try_from(bundle.refresh_hint.as_secs()).unwrap_or_default(),
        })
        .collect()
}

/// What a request presents. A second `authorization` header, or one that is no bearer
/// token, counts as no token.
pub(super) fn credentials<T>(request: &tonic::Request<T>) -> Result<Credentials, Status> {
    Ok(credentials_of(
        peer_of(request.extensions())?,
        request.metadata(),
    ))
}

/// The one message of a call that issues one certificate, and what the call presents.
pub(super) async fn single<M: Message + Default>(
    request: Request<Body>,
) -> Result<(Credentials, M), Status> {
    // The gate counts what is held of it.
    let mut call = Call::new(request, MAX_SINGLE_REQUEST, None)?;
    let credentials = credentials_of(peer_of(&call.extensions)?, &call.metadata);
    Ok((credentials, call.requests.only().await?))
}

/// Who is at the other end of the request's connection.
pub(super) fn peer_of(extensions: &Extensions) -> Result<&PeerInfo, Status> {
    extensions
        .get::<PeerInfo>()
        .ok_or_else(|| Status::internal("the connection has no peer"))
}

/// As [`credentials`].
pub(super) fn credentials_of(peer: &PeerInfo, metadata: &MetadataMap) -> Credentials {
    Credentials {
        token: bearer(metadata),
        client_chain: peer.client_chain.clone(),
        cluster_id: metadata
            .get("clusterid")
            .and_then(|value| value.to_str().ok())
            .map(ToOwned::to_owned),
        address: peer.address,
        lane: lane(peer),
    }
}

fn bearer(metadata: &MetadataMap) -> Option<BearerToken> {
    let mut values = metadata.get_all("authorization").iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return None;
    };
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    (scheme.eq_ignore_ascii_case("bearer") && !token.trim().is_empty())
        .then(|| BearerToken::new(token.trim()))
}

/// Agents queue by their node; everybody else by address. The chain was verified by TLS.
pub(super) fn lane(peer: &PeerInfo) -> Lane {
    match peer.client_id.as_ref().and_then(template::parse_agent_id) {
        Some((cluster, node)) => Lane::Node(format!("{cluster}/{node}")),
        None => Lane::of_peer(peer.address.ip()),
    }
}

pub(super) fn now_ms() -> i64 {
    unix_ms(OffsetDateTime::now_utc())
}

pub(super) fn code_name(code: tonic::Code) -> &'static str {
    use tonic::Code;
    match code {
        Code::Ok => "Ok",
        Code::InvalidArgument => "InvalidArgument",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::Unauthenticated => "Unauthenticated",
        Code::Unavailable => "Unavailable",
        Code::NotFound => "NotFound",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        _ => "Other",
    }
}
