//! Who was authenticated, by what, and what that identity rests on.

#[cfg(test)]
mod hostile_records;

use std::{fmt, net::SocketAddr, sync::Arc};

use citadel_identity::{SpiffeId, serial::Serial};
use citadel_proto::log;
use time::OffsetDateTime;
use zeroize::Zeroizing;

/// The reserved name of the cluster that nodes outside Kubernetes belong to.
pub const EXTERNAL_CLUSTER: &str = "external";

/// A service-account token as it was presented. Wiped on drop; prints only its length.
#[derive(Clone)]
pub struct BearerToken(Zeroizing<String>);

impl BearerToken {
    /// Takes over the token's text.
    pub fn new(token: impl Into<String>) -> Self {
        Self(Zeroizing::new(token.into()))
    }

    /// The secret itself: for verification alone.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for BearerToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BearerToken([redacted, {} bytes])", self.0.len())
    }
}

/// What proved the caller's identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Token checked against the cluster's JWKS and our own watches.
    Jwks,
    /// Token reviewed by the cluster's API server, then checked against our watches.
    TokenReview,
    /// A certificate that this CA issued.
    ClientCertificate,
    /// The CA itself, for its own serving certificate.
    Itself,
    /// The join token of a node outside Kubernetes.
    JoinToken,
    /// The X.509 certificate of a node outside Kubernetes.
    X509Pop,
}

/// A Kubernetes object by name and UID.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ObjectRef {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

/// By whose authority an identity was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Authority {
    /// The workload asked for itself.
    Itself,
    /// The agent of its node asked.
    Agent,
    /// A trusted account asked (ztunnel).
    Impersonation,
    /// The workload's own token, relayed by the agent of its node.
    RelayedToken,
}

/// The Kubernetes objects that a caller or a workload is, with their UIDs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// Name of the cluster, as the configuration has it.
    pub cluster: String,
    /// Namespace of the account.
    pub namespace: String,
    /// The service account; name and UID are empty for a static pod, which has none.
    pub account: ObjectRef,
    /// The pod; `None` for unbound tokens.
    pub pod: Option<ObjectRef>,
    /// The node, where it is known. Its UID is empty unless the credential names it: where the
    /// watch shows the pod says nothing about the Node object that the credential was made for.
    pub node: Option<ObjectRef>,
}

impl Subject {
    /// The node that the credential names, by name and UID.
    pub fn claimed_node(&self) -> Option<&ObjectRef> {
        self.node.as_ref().filter(|node| !node.uid.is_empty())
    }

    /// Whether it runs as a service account.
    pub fn has_account(&self) -> bool {
        !self.account.uid.is_empty()
    }
}

/// What an identity rests on. Each record of a chain of renewals repeats it, so that
/// a renewal needs no older record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// What proved it first.
    pub method: Method,
    /// Whose identity it is; `None` for a unix workload and for the CA itself.
    pub subject: Option<Arc<Subject>>,
    /// The node whose agent vouches for it, as `<cluster>/<node>`, where no pod does.
    pub node: Option<(String, ObjectRef)>,
    /// The registration entry that gave the identity, if one did.
    pub entry_id: Option<String>,
    /// When the chain of renewals began.
    pub first_authenticated: OffsetDateTime,
    /// By whose authority it was asked.
    pub authority: Authority,
}

/// How the caller proved itself, as the log records it.
#[derive(Clone, Debug)]
pub struct Evidence {
    /// What was checked.
    pub method: Method,
    /// `jti` of the token, or the SHA-256 of the token in hex where it has none. Of a node
    /// outside Kubernetes: id of its join token, or SHA-256 of its certificate, in hex.
    pub token_id: Option<String>,
    /// Serial and SPIFFE ID of the client certificate.
    pub certificate: Option<(Serial, SpiffeId)>,
}

/// What the caller may speak as.
#[derive(Clone, Debug)]
pub enum Role {
    /// A workload with its own token or certificate.
    Workload,
    /// The agent of a node: proven by an agent's SVID, or as the node outside Kubernetes that
    /// it is.
    Agent {
        /// `<cluster>` of its identity.
        cluster: String,
        /// The node, by name and Node UID.
        node: ObjectRef,
    },
    /// This server.
    CaServer,
}

/// An authenticated caller. Only the authenticators make one.
#[derive(Clone, Debug)]
pub struct Caller {
    /// What it may speak as.
    pub role: Role,
    /// The Kubernetes objects it is; `None` for a unix workload and the CA itself.
    pub subject: Option<Arc<Subject>>,
    /// How it was proven.
    pub evidence: Evidence,
    /// What its certificate rests on, or what a token starts.
    pub origin: Origin,
    /// Where the request came from.
    pub address: SocketAddr,
}

// === impl conversions to the log's records ===

impl From<Method> for log::AuthenticationMethod {
    fn from(method: Method) -> Self {
        match method {
            Method::Jwks => Self::Jwks,
            Method::TokenReview => Self::TokenReview,
            Method::ClientCertificate => Self::ClientCertificate,
            Method::Itself => Self::Self_,
            Method::JoinToken => Self::JoinToken,
            Method::X509Pop => Self::X509pop,
        }
    }
}

impl From<Authority> for log::Authority {
    fn from(authority: Authority) -> Self {
        match authority {
            Authority::Itself => Self::Self_,
            Authority::Agent => Self::Agent,
            Authority::Impersonation => Self::Impersonation,
            Authority::RelayedToken => Self::RelayedToken,
        }
    }
}

impl Caller {
    /// The caller as the log records it. Holds no token.
    pub fn to_record(&self) -> log::Caller {
        let mut record = log::Caller {
            method: log::AuthenticationMethod::from(self.evidence.method).into(),
            token_id: self.evidence.token_id.clone().unwrap_or_default(),
            address: self.address.to_string(),
            ..Default::default()
        };
        if let Some((serial, id)) = &self.evidence.certificate {
            record.client_serial = serial.as_bytes().to_vec();
            record.spiffe_id = id.to_string();
        }
        if let Some(subject) = &self.subject {
            record.cluster.clone_from(&subject.cluster);
            record.namespace.clone_from(&subject.namespace);
            record.service_account.clone_from(&subject.account.name);
            record.service_account_uid.clone_from(&subject.account.uid);
            if let Some(pod) = &subject.pod {
                record.pod.clone_from(&pod.name);
                record.pod_uid.clone_from(&pod.uid);
            }
            if let Some(node) = &subject.node {
                record.node.clone_from(&node.name);
                record.node_uid.clone_from(&node.uid);
            }
        } else if let Role::Agent { cluster, node } = &self.role {
            record.cluster.clone_from(cluster);
            record.node.clone_from(&node.name);
            record.node_uid.clone_from(&node.uid);
        }
        record
    }
}

impl Origin {
    /// The origin as the log records it.
    pub fn to_record(&self) -> log::Origin {
        let mut record = log::Origin {
            method: log::AuthenticationMethod::from(self.method).into(),
            entry_id: self.entry_id.clone().unwrap_or_default(),
            first_authenticated_ms: unix_ms(self.first_authenticated),
            authority: log::Authority::from(self.authority).into(),
            ..Default::default()
        };
        if let Some(subject) = &self.subject {
            record.cluster.clone_from(&subject.cluster);
            record.namespace.clone_from(&subject.namespace);
            record.service_account.clone_from(&subject.account.name);
            record.service_account_uid.clone_from(&subject.account.uid);
            if let Some(pod) = &subject.pod {
                record.pod.clone_from(&pod.name);
                record.pod_uid.clone_from(&pod.uid);
            }
        }
        // A node that only the watch told is no part of what was proven.
        let subject_node = self.subject.as_deref().and_then(Subject::claimed_node);
        if let Some(node) = subject_node {
            record.node.clone_from(&node.name);
            record.node_uid.clone_from(&node.uid);
        } else if let Some((cluster, node)) = &self.node {
            record.cluster.clone_from(cluster);
            record.node.clone_from(&node.name);
            record.node_uid.clone_from(&node.uid);
        }
        record
    }

    /// Reads an origin back from a record; `None` where the record is not one of ours.
    /// One that says more than an origin can hold (a pod without its account, an object
    /// without its UID) is none: what is left out would not be checked again, and the
    /// renewal would rest on less than was proven.
    pub fn from_record(record: &log::Origin) -> Option<Self> {
        let method = match record.method() {
            log::AuthenticationMethod::Jwks => Method::Jwks,
            log::AuthenticationMethod::TokenReview => Method::TokenReview,
            log::AuthenticationMethod::ClientCertificate => Method::ClientCertificate,
            log::AuthenticationMethod::Self_ => Method::Itself,
            log::AuthenticationMethod::JoinToken => Method::JoinToken,
            log::AuthenticationMethod::X509pop => Method::X509Pop,
            log::AuthenticationMethod::Unspecified => return None,
        };
        let authority = match record.authority() {
            log::Authority::Self_ => Authority::Itself,
            log::Authority::Agent => Authority::Agent,
            log::Authority::Impersonation => Authority::Impersonation,
            log::Authority::RelayedToken => Authority::RelayedToken,
            log::Authority::Unspecified => return None,
        };
        let object = |name: &str, uid: &str| {
            (!name.is_empty() && !uid.is_empty()).then(|| ObjectRef {
                name: name.to_owned(),
                uid: uid.to_owned(),
            })
        };
        let node = object(&record.node, &record.node_uid);
        let account = object(&record.service_account, &record.service_account_uid);
        let pod = object(&record.pod, &record.pod_uid);
        let is_subject = account.is_some() || pod.is_some();
        let subject = is_subject.then(|| Subject {
            cluster: record.cluster.clone(),
            namespace: record.namespace.clone(),
            account: account.unwrap_or_default(),
            pod,
            node: node.clone(),
        });
        let vouching_node = match &subject {
            None => node.map(|node| (record.cluster.clone(), node)),
            Some(_) => None,
        };
        let origin = Self {
            method,
            subject: subject.map(Arc::new),
            node: vouching_node,
            entry_id: (!record.entry_id.is_empty()).then(|| record.entry_id.clone()),
            first_authenticated: from_unix_ms(record.first_authenticated_ms)?,
            authority,
        };
        (origin.to_record() == *record).then_some(origin)
    }
}

/// Milliseconds since the epoch; the log's and the protocol's unit.
pub fn unix_ms(time: OffsetDateTime) -> i64 {
    i64::try_from(time.unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX)
}

fn from_unix_ms(ms: i64) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_origin_survives_its_record() {
        let object = |n: &str| ObjectRef {
            name: n.into(),
            uid: format!("{n}-uid"),
        };
        let pod_origin = Origin {
            method: Method::Jwks,
            subject: Some(Arc::new(Subject {
                cluster: "default".into(),
                namespace: "shop".into(),
                account: object("web"),
                pod: Some(object("web-1")),
                node: Some(object("node-1")),
            })),
            node: None,
            entry_id: None,
            first_authenticated: OffsetDateTime::from_unix_timestamp(1_700_000_000).unwrap(),
            authority: Authority::Agent,
        };
        assert_eq!(
            Origin::from_record(&pod_origin.to_record()).unwrap(),
            pod_origin
        );

        let mut static_pod = pod_origin.clone();
        let subject = Arc::make_mut(static_pod.subject.as_mut().unwrap());
        subject.account = ObjectRef::default();
        assert_eq!(
            Origin::from_record(&static_pod.to_record()).unwrap(),
            static_pod
        );

        // A node that only the watch told is no part of what was proven.
        let mut unclaimed = pod_origin.clone();
        let subject = Arc::make_mut(unclaimed.subject.as_mut().unwrap());
        subject.node.as_mut().unwrap().uid.clear();
        let record = unclaimed.to_record();
        assert_eq!(record.node, "");
        let read = Origin::from_record(&record).unwrap();
        assert_eq!(read.subject.unwrap().node.clone(), None);

        let unix_origin = Origin {
            subject: None,
            node: Some(("default".into(), object("node-1"))),
            entry_id: Some("/unix/alice#1".into()),
            ..pod_origin.clone()
        };
        assert_eq!(
            Origin::from_record(&unix_origin.to_record()).unwrap(),
            unix_origin
        );
        assert!(Origin::from_record(&log::Origin::default()).is_none());
    }

    #[test]
    fn a_token_prints_only_its_length() {
        let debug = format!("{:?}", BearerToken::new("eyJhbGciOi"));
        assert_eq!(debug, "BearerToken([redacted, 10 bytes])");
    }
}
