//! The secrets on their way to the process after this one, and from the one before.

use std::time::Duration;

use citadel_identity::{
    SpiffeId, TrustDomain, bundle::BundleSet, key::KeyError, template, verify::ProvenIssuers,
};
use citadel_proto::agent::{HandedEntry, HandedSecret, HandedToken, handed_secret::Subject};
use tokio::time::Instant;

use super::{
    key::{SecretKey, Wanted},
    manager::SecretManager,
    svid::{Expected, Svid, SvidError},
    table::{Entry, Restored},
};
use crate::{
    attest::relayed::{MAX_TOKEN, RelayedToken},
    handover::certificate::{Given, Holding},
};

/// The longest name in a secret that is handed over, in bytes.
const MAX_NAME: usize = 512;

/// The longest that a secret is kept for which nobody has asked yet.
const LONGEST_PREPARED: Duration = Duration::from_mins(10);

/// Why a secret that was handed over is not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandedError {
    /// A field is missing, too long or nonsense.
    #[error("{0} is missing or malformed")]
    Field(&'static str),
    /// The private key is none.
    #[error("{0}")]
    Key(#[from] KeyError),
    /// The certificate is not one that would be taken from the CA.
    #[error("{0}")]
    Svid(#[from] SvidError),
    /// The table is full, or has the secret already.
    #[error("there is no room for it")]
    NoRoom,
}

/// How many were taken, and how many were not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Restoration {
    pub taken: usize,
    pub left: usize,
}

impl SecretManager {
    /// All secrets that are held. What nobody has been given yet is not among them.
    pub(crate) fn hand_over(&self) -> Vec<HandedSecret> {
        let now = Instant::now();
        let table = self.shared.table();
        table
            .entries()
            .filter_map(|entry| to_handed(entry, now))
            .collect()
    }

    /// Holds what the process before this one held. Each certificate is judged as if the
    /// CA had sent it: what does not pass is left, and asked for anew when it is wanted.
    pub(crate) fn restore(&self, secrets: Vec<HandedSecret>, bundles: &BundleSet) -> Restoration {
        let now = Instant::now();
        let (trust_domain, issuers) = (&self.shared.trust_domain, &self.shared.issuers);
        let mut done = Restoration::default();
        for handed in secrets {
            let restored = restored(handed, (trust_domain, bundles), issuers, now);
            let taken = restored.and_then(|restored| {
                let taken = self.shared.table().restore(restored, now);
                taken.then_some(()).ok_or(HandedError::NoRoom)
            });
            match taken {
                Ok(()) => done.taken += 1,
                Err(error) => {
                    done.left += 1;
                    tracing::warn!(%error, "a secret that was handed over is not taken");
                }
            }
        }
        done
    }
}

fn to_handed(entry: &Entry, now: Instant) -> Option<HandedSecret> {
    let svid = entry.held.as_ref()?;
    let wanted = &entry.wanted;
    let holding = Holding {
        spiffe_id: svid.id.to_string(),
        chain: &svid.chain,
        key: &svid.key,
        planned_by: svid.planned_by,
        received: svid.received,
        received_at: svid.received_at,
        hint: &svid.hint,
        pod_uid: svid.pod_uid.as_deref(),
    };
    let subject = match &wanted.key {
        SecretKey::Pod { uid } => Subject::Pod(uid.clone()),
        SecretKey::Entry { entry_id, pod_uid } => Subject::Entry(HandedEntry {
            entry_id: entry_id.clone(),
            pod_uid: pod_uid.clone().unwrap_or_default(),
        }),
        SecretKey::Relayed { token, pod_uid } => Subject::Token(HandedToken {
            sha256: token.to_vec(),
            pod_uid: pod_uid.clone().unwrap_or_default(),
            token: wanted
                .token
                .as_ref()
                .map(|token| token.expose().to_owned())
                .unwrap_or_default(),
        }),
    };
    let (due_in, prepared_for) = entry.time_left(now);
    let millis = |left: Duration| u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
    Some(HandedSecret {
        subject: Some(subject),
        principal: wanted.principal.to_string(),
        revision: wanted.revision,
        spiffe_id: wanted
            .spiffe_id
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        ttl_seconds: wanted.ttl_seconds,
        proven_pod: entry.proven_pod.clone().unwrap_or_default(),
        svid: Some(holding.to_handed(now)),
        due_in_ms: millis(due_in),
        failures: entry.failures(),
        prepared_for_ms: prepared_for.map_or(0, |left| millis(left).max(1)),
    })
}

fn restored(
    handed: HandedSecret,
    (trust_domain, bundles): (&TrustDomain, &BundleSet),
    issuers: &ProvenIssuers,
    now: Instant,
) -> Result<Restored, HandedError> {
    let proven_pod = optional(handed.proven_pod, "proven_pod")?;
    let (key, token) = key(handed.subject)?;
    if matches!(key, SecretKey::Relayed { .. }) && token.is_none() && proven_pod.is_none() {
        return Err(HandedError::Field("token"));
    }
    let spiffe_id = optional(handed.spiffe_id, "spiffe_id")?
        .map(|text| SpiffeId::new(&text).map_err(|_| HandedError::Field("spiffe_id")))
        .transpose()?
        .filter(|id| !template::is_reserved(id));
    // An entry's answer is held against its ID, now and at each renewal.
    if matches!(key, SecretKey::Entry { .. }) && spiffe_id.is_none() {
        return Err(HandedError::Field("spiffe_id"));
    }
    let wanted = Wanted {
        key,
        principal: name(handed.principal, "principal")?.into(),
        revision: handed.revision,
        spiffe_id,
        ttl_seconds: handed.ttl_seconds.max(0),
        token,
    };
    let svid = handed.svid.ok_or(HandedError::Field("svid"))?;
    let given = Given::from_handed(svid, now)?;
    let expected = Expected {
        trust_domain,
        bundles,
        issuers,
        id: wanted.spiffe_id.as_ref(),
        server_ms: given.planned_by.server_ms,
        jitter: given.planned_by.jitter,
        received: given.received,
        received_at: given.received_at,
    };
    let prepared = Duration::from_millis(handed.prepared_for_ms);
    Ok(Restored {
        svid: Svid::accept(given.answer, given.key, &expected)?,
        wanted,
        proven_pod,
        due_in: Duration::from_millis(handed.due_in_ms),
        failures: handed.failures,
        prepared_for: (!prepared.is_zero()).then(|| prepared.min(LONGEST_PREPARED)),
    })
}

fn key(subject: Option<Subject>) -> Result<(SecretKey, Option<RelayedToken>), HandedError> {
    match subject.ok_or(HandedError::Field("subject"))? {
        Subject::Pod(uid) => {
            let uid = name(uid, "pod")?;
            Ok((SecretKey::Pod { uid }, None))
        }
        Subject::Entry(entry) => {
            let key = SecretKey::Entry {
                entry_id: name(entry.entry_id, "entry_id")?,
                pod_uid: optional(entry.pod_uid, "pod_uid")?,
            };
            Ok((key, None))
        }
        Subject::Token(mut handed) => {
            let digest: Result<[u8; 32], _> = handed.sha256.as_slice().try_into();
            let digest = digest.map_err(|_| HandedError::Field("sha256"))?;
            let pod_uid = optional(std::mem::take(&mut handed.pod_uid), "pod_uid")?;
            let token = if handed.token.is_empty() {
                None
            } else {
                let known = handed.token.len() <= MAX_TOKEN;
                let token = known
                    .then(|| RelayedToken::handed_over(&handed.token))
                    .flatten();
                let token = token.filter(|token| token.digest() == digest);
                Some(token.ok_or(HandedError::Field("token"))?)
            };
            let key = SecretKey::Relayed {
                token: digest,
                pod_uid,
            };
            Ok((key, token))
        }
    }
}

fn name(text: String, field: &'static str) -> Result<String, HandedError> {
    let good = !text.is_empty() && text.len() <= MAX_NAME;
    good.then_some(text).ok_or(HandedError::Field(field))
}

fn optional(text: String, field: &'static str) -> Result<Option<String>, HandedError> {
    if text.is_empty() {
        return Ok(None);
    }
    // An ID may have 2048 bytes.
    if text.len() > 4 * MAX_NAME {
        return Err(HandedError::Field(field));
    }
    Ok(Some(text))
}

#[cfg(test)]
#[path = "handed_tests.rs"]
mod tests;
