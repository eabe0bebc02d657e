//! Nodes outside Kubernetes: a join token, once, or a certificate of theirs, and afterwards the agent's own SVID for as long
//! as no operator evicts the node. What is known of both is in the store, which all servers share.

use citadel_identity::{crypto, csr, join_token, x509pop};
use citadel_proto::log::{self, NodeAttested, entry::Kind};
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;

use super::{Authenticator, AuthnError, Credentials};
use crate::{
    caller::{
        Authority, Caller, EXTERNAL_CLUSTER, Evidence, Method, ObjectRef, Origin, Role, unix_ms,
    },
    config::node_of,
    log::new_entry,
    store::{NodeChange, StoreError},
};

/// A join token as it was presented. Its secret is the caller's to wipe.
#[derive(Clone, Copy)]
pub struct PresentedToken<'a> {
    /// Names it.
    pub id: &'a [u8],
    /// Proves it.
    pub secret: &'a [u8],
    /// The request that the agent's SVID is asked for with: the token admits its key alone.
    pub csr: &'a [u8],
}

/// A node's certificate as it was presented.
#[derive(Clone, Copy)]
pub struct PresentedCertificate<'a> {
    /// DER, leaf first.
    pub chain: &'a [Vec<u8>],
    /// The challenge of the connection, which was taken for this request.
    pub challenge: Option<[u8; x509pop::CHALLENGE_BYTES]>,
    /// TLS `SignatureScheme`.
    pub scheme: u16,
    /// Over challenge and CSR.
    pub signature: &'a [u8],
    /// The request that the agent's SVID is asked for with.
    pub csr: &'a [u8],
}

impl Authenticator {
    /// Authenticates the agent of a node outside Kubernetes by its join token, and uses that up.
    /// Whoever proves the key that the token admitted may ask again until it expires: the answer
    /// may have been lost.
    pub async fn join(
        &self,
        credentials: &Credentials,
        presented: PresentedToken<'_>,
        now: OffsetDateTime,
    ) -> Result<Caller, AuthnError> {
        let rejected = |reason: String| AuthnError::Rejected(reason);
        if credentials.token.is_some() || !credentials.client_chain.is_empty() {
            return Err(AuthnError::rejected(
                "a join token beside another credential",
            ));
        }
        if presented.id.len() != join_token::ID_BYTES
            || presented.secret.len() != join_token::SECRET_BYTES
        {
            return Err(AuthnError::rejected("a join token of another size"));
        }
        let id = hex::encode(presented.id);
        let token = self
            .store
            .join_token(presented.id)
            .await
            .map_err(|error| unavailable(&error))?
            .ok_or_else(|| rejected(format!("there is no join token {id}")))?;
        if !crypto::same_secret(&crypto::sha256(presented.secret), &token.secret_sha256) {
            return Err(rejected(format!("the secret of join token {id} is wrong")));
        }
        let now_ms = unix_ms(now);
        let of = format!("join token {id} of node {}", token.node);
        if token.revoked_ms.is_some() {
            return Err(rejected(format!("{of} was revoked")));
        }
        if token.expires_ms <= now_ms {
            return Err(rejected(format!("{of} expired")));
        }
        let key = csr::prove_possession(presented.csr)
            .map_err(|error| rejected(format!("{of}: csr: {error}")))?;
        let spki_sha256 = key.spki_sha256();
        let known = self.store.external_node(&token.node).await;
        let known = known.map_err(|error| unavailable(&error))?;
        if known.as_ref().is_some_and(|node| node.evicted_ms.is_some()) {
            return Err(rejected(format!("{of}: the node is evicted")));
        }
        let uid = match &token.used {
            Some(used) if used.spki_sha256 != spki_sha256 => {
                return Err(rejected(format!("{of} was used before")));
            }
            Some(used) => known
                .map(|node| node.uid)
                .filter(|uid| *uid == used.uid)
                .ok_or_else(|| rejected(format!("{of} was used, and its node has ended since")))?,
            None => {
                let uid = hex::encode(crypto::random::<16>());
                let method = log::AuthenticationMethod::JoinToken;
                let attested = NodeAttested {
                    node: token.node.clone(),
                    node_uid: uid.clone(),
                    method: method.into(),
                    evidence: id.clone(),
                    address: credentials.address.to_string(),
                };
                let change = NodeChange::Join {
                    id: token.id,
                    spki_sha256: spki_sha256.to_vec(),
                    uid: uid.clone(),
                    method: i64::from(method as i32),
                    at_ms: now_ms,
                };
                let entry = new_entry(now, Kind::NodeAttested(attested), None);
                match self.store.change_nodes(change, entry).await {
                    Ok(_) => uid,
                    Err(StoreError::NotApplied) => {
                        return Err(rejected(format!(
                            "{of} was used or revoked, or the node evicted, at this moment"
                        )));
                    }
                    Err(error) => return Err(unavailable(&error)),
                }
            }
        };
        let node = ObjectRef {
            name: token.node,
            uid,
        };
        Ok(external_caller(
            Method::JoinToken,
            node,
            id,
            credentials,
            now,
        ))
    }

    /// Authenticates the agent of a node outside Kubernetes by the node's X.509 certificate. Each
    /// time it is a join anew, and on record.
    pub async fn join_by_certificate(
        &self,
        credentials: &Credentials,
        presented: PresentedCertificate<'_>,
        now: OffsetDateTime,
    ) -> Result<Caller, AuthnError> {
        let rejected = |reason: String| AuthnError::Rejected(reason);
        if credentials.token.is_some() || !credentials.client_chain.is_empty() {
            return Err(AuthnError::rejected(
                "a node's certificate beside another credential",
            ));
        }
        let Some(x509pop) = &self.x509pop else {
            return Err(AuthnError::rejected(
                "a node's certificate, and external.x509pop is not configured",
            ));
        };
        let challenge = presented.challenge.ok_or_else(|| {
            AuthnError::rejected("no challenge was given on this connection, or it was used")
        })?;
        if presented.signature.len() > x509pop::MAX_SIGNATURE {
            return Err(AuthnError::rejected("a signature longer than any"));
        }
        let chain: Vec<CertificateDer<'_>> = presented
            .chain
            .iter()
            .map(|der| CertificateDer::from(der.as_slice()))
            .collect();
        let proof = x509pop::Proof {
            chain: &chain,
            challenge: &challenge,
            csr: presented.csr,
            scheme: presented.scheme,
            signature: presented.signature,
        };
        let certificate = x509pop::verify(proof, &x509pop.roots, &self.trust_domain, now)
            .map_err(|error| rejected(format!("the node's certificate: {error}")))?;
        let name = node_of(&x509pop.rules, &certificate)
            .map_err(|reason| rejected(format!("the node's certificate: {reason}")))?;
        let evidence = hex::encode(certificate.sha256);
        // Before the node of before is ended for it.
        csr::prove_possession(presented.csr)
            .map_err(|error| rejected(format!("certificate {evidence}: csr: {error}")))?;
        let uid = hex::encode(crypto::random::<16>());
        let method = log::AuthenticationMethod::X509pop;
        let attested = NodeAttested {
            node: name.clone(),
            node_uid: uid.clone(),
            method: method.into(),
            evidence: evidence.clone(),
            address: credentials.address.to_string(),
        };
        let change = NodeChange::Attest {
            node: name.clone(),
            uid: uid.clone(),
            method: i64::from(method as i32),
            at_ms: unix_ms(now),
        };
        let entry = new_entry(now, Kind::NodeAttested(attested), None);
        match self.store.change_nodes(change, entry).await {
            Ok(_) => {}
            Err(StoreError::NotApplied) => {
                return Err(rejected(format!(
                    "certificate {evidence}: node {EXTERNAL_CLUSTER}/{name} is evicted"
                )));
            }
            Err(error) => return Err(unavailable(&error)),
        }
        let node = ObjectRef { name, uid };
        Ok(external_caller(
            Method::X509Pop,
            node,
            evidence,
            credentials,
            now,
        ))
    }

    /// Whether a node outside Kubernetes is still the one that was let in.
    pub(super) async fn check_external(&self, node: &ObjectRef) -> Result<(), AuthnError> {
        let known = self.store.external_node(&node.name).await;
        let known = known.map_err(|error| unavailable(&error))?;
        let why = match known {
            Some(known) if known.evicted_ms.is_some() => "is evicted",
            Some(known) if known.uid == node.uid => return Ok(()),
            Some(_) => "has joined anew: this is the certificate of before",
            None => "was evicted and admitted again: it has to join anew",
        };
        Err(AuthnError::Rejected(format!(
            "node {EXTERNAL_CLUSTER}/{} {why}",
            node.name
        )))
    }
}

fn external_caller(
    method: Method,
    node: ObjectRef,
    evidence: String,
    credentials: &Credentials,
    now: OffsetDateTime,
) -> Caller {
    Caller {
        role: Role::Agent {
            cluster: EXTERNAL_CLUSTER.to_owned(),
            node: node.clone(),
        },
        subject: None,
        evidence: Evidence {
            method,
            token_id: Some(evidence),
            certificate: None,
        },
        origin: Origin {
            method,
            subject: None,
            node: Some((EXTERNAL_CLUSTER.to_owned(), node)),
            entry_id: None,
            first_authenticated: now,
            authority: Authority::Itself,
        },
        address: credentials.address,
    }
}

fn unavailable(error: &StoreError) -> AuthnError {
    AuthnError::Unavailable(format!("store: {error}"))
}
