//! Who is asking. The authenticator that recognises a credential decides, and its
//! rejection is final: no second one is asked in the hope of a yes.

pub mod claims;
mod client_cert;
#[cfg(test)]
mod cluster_tests;
mod external;
pub mod keyset;
mod liveness;
mod local;
#[cfg(test)]
mod outage_tests;
mod token_review;

use std::{net::SocketAddr, sync::Arc};

use citadel_identity::{TrustDomain, bundle::BundleSet, crypto};
pub use external::{PresentedCertificate, PresentedToken};
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;

use self::{
    claims::{Claims, ClaimsError},
    client_cert::ProvenChains,
    local::Verdict,
    token_review::Reviews,
};
use crate::{
    admission::Lane,
    authz::Policy,
    caller::{Authority, BearerToken, Caller, Evidence, Method, Origin, Role, Subject},
    clusters::{ClusterHandle, Clusters},
    config::X509PopConfig,
    store::Store,
};

/// Why nobody was authenticated. The text is for the log; the client learns only the kind.
#[derive(Debug, thiserror::Error)]
pub enum AuthnError {
    /// Neither a token nor a certificate.
    #[error("no credential: neither a bearer token nor a client certificate")]
    NoCredential,
    /// The credential is bad, and that is final.
    #[error("{0}")]
    Rejected(String),
    /// It can't be decided now.
    #[error("{0}")]
    Unavailable(String),
}

impl AuthnError {
    fn rejected(reason: impl Into<String>) -> Self {
        Self::Rejected(reason.into())
    }
}

/// What a request presents.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// `authorization: Bearer …`.
    pub token: Option<BearerToken>,
    /// The verified client chain of the TLS connection, leaf first; empty without one.
    pub client_chain: Arc<[CertificateDer<'static>]>,
    /// The `clusterid` header.
    pub cluster_id: Option<String>,
    /// The peer.
    pub address: SocketAddr,
    /// Whose turn the request takes, and whose lines its refusals are.
    pub lane: Lane,
}

/// Holds what authentication needs.
pub struct Authenticator {
    clusters: Arc<Clusters>,
    policy: Arc<Policy>,
    audiences: Vec<String>,
    store: Arc<dyn Store>,
    bundles: tokio::sync::watch::Receiver<Arc<BundleSet>>,
    issuer_key_id: Vec<u8>,
    reviews: Reviews,
    proven_chains: ProvenChains,
    x509pop: Option<X509PopConfig>,
    trust_domain: TrustDomain,
}

impl Authenticator {
    /// `audiences` are ours; `issuer_key_id` is that of the active issuer.
    pub fn new(
        clusters: Arc<Clusters>,
        policy: Arc<Policy>,
        audiences: Vec<String>,
        store: Arc<dyn Store>,
        bundles: tokio::sync::watch::Receiver<Arc<BundleSet>>,
        issuer_key_id: Vec<u8>,
    ) -> Self {
        let reviews = Reviews::default();
        let trust_domain = policy.options().trust_domain.clone();
        Self {
            clusters,
            policy,
            audiences,
            store,
            bundles,
            issuer_key_id,
            reviews,
            proven_chains: ProvenChains::default(),
            trust_domain,
            x509pop: None,
        }
    }

    /// Lets nodes in by certificates of these roots.
    #[must_use]
    pub fn with_x509pop(mut self, x509pop: Option<X509PopConfig>) -> Self {
        self.x509pop = x509pop;
        self
    }

    /// Authenticates the sender of a request. Where a token and a certificate are both
    /// presented, both must be good and name the same caller.
    pub async fn authenticate(
        &self,
        credentials: &Credentials,
        now: OffsetDateTime,
    ) -> Result<Caller, AuthnError> {
        let by_certificate = if credentials.client_chain.is_empty() {
            None
        } else {
            Some(self.client_certificate(credentials, now).await?)
        };
        let by_token = match &credentials.token {
            None => None,
            Some(token) => Some(
                self.token(
                    token,
                    credentials.cluster_id.as_deref(),
                    credentials.address,
                    now,
                )
                .await?,
            ),
        };
        match (by_token, by_certificate) {
            (None, None) => Err(AuthnError::NoCredential),
            (Some(caller), None) | (None, Some(caller)) => Ok(caller),
            (Some(token), Some(mut certificate)) => {
                if !same_caller(&token, &certificate) {
                    return Err(AuthnError::rejected(
                        "the token and the client certificate name different callers",
                    ));
                }
                certificate.evidence.token_id = token.evidence.token_id;
                Ok(certificate)
            }
        }
    }

    /// Authenticates a service-account token: the caller's own, or one that an agent relays.
    pub async fn token(
        &self,
        token: &BearerToken,
        cluster_id: Option<&str>,
        address: SocketAddr,
        now: OffsetDateTime,
    ) -> Result<Caller, AuthnError> {
        let unreadable = |error: ClaimsError| AuthnError::rejected(error.to_string());
        let parts = claims::Parts::decode(token.expose()).map_err(unreadable)?;
        let parsed = parts.read().map_err(unreadable)?;
        self.check_cheaply(&parsed.claims, now)?;
        let (cluster, method, subject, token_id) = match self.local(&parsed, cluster_id).await? {
            Verdict::Valid(cluster) => {
                let token_id = parsed.claims.jti.as_deref().map(ToOwned::to_owned);
                let subject = local::subject(cluster.name(), &parsed.claims)?;
                (cluster, Method::Jwks, subject, token_id)
            }
            Verdict::NotMine(reason) => {
                let cluster = self.review_cluster(cluster_id, &reason)?;
                let reviewed = self.reviews.review(cluster, token, &self.audiences).await?;
                (
                    cluster,
                    Method::TokenReview,
                    reviewed.subject,
                    reviewed.token_id,
                )
            }
        };
        let subject = self.check_alive(cluster, Arc::new(subject), false).await?;
        if subject.pod.is_none()
            && !self
                .policy
                .allows_unbound(&subject.namespace, &subject.account.name)
        {
            return Err(AuthnError::rejected(format!(
                "the token is bound to no pod, and {}/{} is not in allow_unbound",
                subject.namespace, subject.account.name
            )));
        }
        let token_id =
            token_id.unwrap_or_else(|| hex::encode(crypto::sha256(token.expose().as_bytes())));
        Ok(Caller {
            role: Role::Workload,
            origin: Origin {
                method,
                subject: Some(subject.clone()),
                node: None,
                entry_id: None,
                first_authenticated: now,
                authority: Authority::Itself,
            },
            subject: Some(subject),
            evidence: Evidence {
                method,
                token_id: Some(token_id),
                certificate: None,
            },
            address,
        })
    }

    /// What needs no key: audience and times. First, since it keeps floods of plainly bad
    /// tokens cheap.
    fn check_cheaply(&self, claims: &Claims<'_>, now: OffsetDateTime) -> Result<(), AuthnError> {
        let audience = claims
            .aud
            .single()
            .ok_or_else(|| AuthnError::rejected("the token must have exactly one audience"))?;
        if !self.audiences.iter().any(|ours| ours == audience) {
            return Err(AuthnError::rejected(format!(
                "audience {audience:.100} is not ours"
            )));
        }
        let seconds = now.unix_timestamp();
        if claims.exp <= seconds - claims::LEEWAY_SECONDS {
            return Err(AuthnError::rejected(format!(
                "the token expired at {}",
                claims.exp
            )));
        }
        if claims
            .nbf
            .is_some_and(|nbf| nbf > seconds + claims::LEEWAY_SECONDS)
        {
            return Err(AuthnError::rejected("the token is not valid yet"));
        }
        Ok(())
    }

    /// The one API server that may see a token: the sole cluster's, else the named one's.
    fn review_cluster(
        &self,
        cluster_id: Option<&str>,
        reason: &str,
    ) -> Result<&ClusterHandle, AuthnError> {
        match (self.clusters.sole(), cluster_id) {
            (Some(cluster), _) => Ok(cluster),
            (None, Some(name)) => self.clusters.get(name).ok_or_else(|| {
                AuthnError::rejected(format!("{reason}, and there is no cluster {name:.100}"))
            }),
            (None, None) => Err(AuthnError::rejected(format!(
                "{reason}, and no clusterid says which cluster may review it"
            ))),
        }
    }
}

fn same_caller(a: &Caller, b: &Caller) -> bool {
    let key = |subject: &Subject| {
        (
            subject.cluster.clone(),
            subject.namespace.clone(),
            subject.account.clone(),
            subject.pod.as_ref().map(|pod| pod.uid.clone()),
        )
    };
    match (&a.subject, &b.subject) {
        (Some(a), Some(b)) => key(a) == key(b),
        _ => false,
    }
}
