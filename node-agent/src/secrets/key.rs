//! What a secret is for, and what the CA is asked for it.

use std::{fmt, sync::Arc};

use citadel_identity::SpiffeId;
use citadel_proto::v1::{EntrySubject, PodSubject, RelayedToken as WireToken, issue_item::Subject};

use crate::attest::relayed::RelayedToken;

/// Names one secret: whoever asks for the same gets the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SecretKey {
    /// The identity of a pod's service account.
    Pod {
        /// UID of the pod.
        uid: String,
    },
    /// The identity of a registration entry.
    Entry {
        /// The CA's name of the entry.
        entry_id: String,
        /// The pod that asks; none for a unix process.
        pod_uid: Option<String>,
    },
    /// The identity that a relayed token proves.
    Relayed {
        /// SHA-256 of the token.
        token: [u8; 32],
        /// The pod attested on the connection, if any.
        pod_uid: Option<String>,
    },
}

impl SecretKey {
    /// The pod that it is for, if any.
    pub fn pod_uid(&self) -> Option<&str> {
        match self {
            Self::Pod { uid } => Some(uid),
            Self::Entry { pod_uid, .. } | Self::Relayed { pod_uid, .. } => pod_uid.as_deref(),
        }
    }
}

impl fmt::Display for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod { uid } => write!(f, "pod {uid}"),
            Self::Entry {
                entry_id,
                pod_uid: Some(uid),
            } => write!(f, "entry {entry_id} of pod {uid}"),
            Self::Entry {
                entry_id,
                pod_uid: None,
            } => write!(f, "entry {entry_id}"),
            Self::Relayed {
                pod_uid: Some(uid), ..
            } => write!(f, "relayed token of pod {uid}"),
            Self::Relayed { pod_uid: None, .. } => f.write_str("relayed token"),
        }
    }
}

/// A key, and what is needed beside it to ask for its secret.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Which secret.
    pub key: SecretKey,
    /// Whom limits count for it (see [`crate::attest::Peer::principal`]).
    pub principal: Arc<str>,
    /// Of the entries that an entry's key is of; a refusal holds for this revision alone.
    pub revision: u64,
    /// The only ID that is accepted in the answer, where it is known beforehand.
    pub spiffe_id: Option<SpiffeId>,
    /// Lifetime to ask for, in seconds; 0 leaves it to the CA.
    pub ttl_seconds: i64,
    /// For [`SecretKey::Relayed`].
    pub token: Option<RelayedToken>,
}

impl Wanted {
    /// What the CA is asked for. `proven_pod`: the pod that an earlier answer to a
    /// relayed token named; from then on the agent's authority for that pod suffices.
    pub(super) fn subject(&self, proven_pod: Option<&str>) -> Subject {
        let pod = |uid: &str| {
            Subject::Pod(PodSubject {
                pod_uid: uid.to_owned(),
                ..PodSubject::default()
            })
        };
        match (&self.key, &self.token, proven_pod) {
            (SecretKey::Pod { uid }, ..) => pod(uid),
            (SecretKey::Entry { entry_id, pod_uid }, ..) => Subject::Entry(EntrySubject {
                entry_id: entry_id.clone(),
                pod_uid: pod_uid.clone().unwrap_or_default(),
            }),
            (SecretKey::Relayed { .. }, _, Some(proven)) => pod(proven),
            (SecretKey::Relayed { pod_uid, .. }, token, None) => Subject::RelayedToken(WireToken {
                token: token
                    .as_ref()
                    .map(|t| t.expose().to_owned())
                    .unwrap_or_default(),
                pod_uid: pod_uid.clone().unwrap_or_default(),
            }),
        }
    }
}
