//! How the agent stands with its CA, on its way to the process after this one and from the
//! one before.

use std::{
    mem,
    sync::{Arc, PoisonError},
    time::Duration,
};

use citadel_identity::{
    TrustDomain,
    bundle::{Bundle, BundleSet},
    key::KeyError,
};
use citadel_proto::{
    agent::{HandedBundle, HandedSvid},
    v1::EntriesUpdate,
};
use prost::Message;
use rustls::pki_types::CertificateDer;
use tokio::time::Instant;

use super::{
    attest::AttestError,
    identity::{AgentSvid, AgentSvidError},
    session::Session,
    streams,
};
use crate::handover::certificate::{Given, Holding};

/// What is handed over beside the secrets.
#[derive(Default)]
pub(crate) struct HandedStanding {
    pub bundles: Vec<HandedBundle>,
    /// As the CA sent them.
    pub entries: Option<Vec<u8>>,
    pub agent: Option<HandedSvid>,
}

/// Why the agent's identity is not taken over: it proves itself anew.
#[derive(Debug, thiserror::Error)]
enum OwnError {
    #[error("{0}")]
    Key(#[from] KeyError),
    #[error("{0}")]
    Svid(#[from] AgentSvidError),
    #[error("it has expired")]
    Expired,
    #[error("{0}")]
    Channel(#[from] AttestError),
}

impl Session {
    /// Everything that the process after this one needs to go on.
    pub(crate) fn hand_over(&self) -> HandedStanding {
        let bundles = self.bundles().borrow().clone().unwrap_or_default();
        let entries = self.entries_as_sent.lock();
        HandedStanding {
            bundles: bundles.iter().map(to_handed).collect(),
            entries: entries.unwrap_or_else(PoisonError::into_inner).clone(),
            agent: self.own().map(|own| {
                let holding = Holding {
                    spiffe_id: own.id.to_string(),
                    chain: own.chain(),
                    key: &own.key,
                    planned_by: own.planned_by,
                    received: own.received,
                    received_at: self.clock.now() - own.received.elapsed(),
                    hint: "",
                    pod_uid: None,
                };
                holding.to_handed(Instant::now())
            }),
        }
    }

    /// Goes on where the process before this one was. Returns the bundles that count now.
    /// What makes no sense is left out: the CA says it again.
    pub(crate) fn take_over(&self, standing: HandedStanding) -> BundleSet {
        let mut bundles = BundleSet::default();
        for handed in standing.bundles {
            if let Some(bundle) = from_handed(handed) {
                bundles.insert(bundle);
            } else {
                tracing::warn!("a bundle that was handed over is not taken");
            }
        }
        if !bundles.is_empty() {
            self.trust.update(bundles);
        }
        let bundles = self.bundles().borrow().clone().unwrap_or_default();
        if let Some(entries) = standing.entries {
            match EntriesUpdate::decode(entries.as_slice()) {
                Ok(update) => streams::take_entries(self, update),
                Err(error) => tracing::warn!(%error, "the entries are not taken"),
            }
        }
        if let Some(agent) = standing.agent
            && let Err(error) = self.take_over_identity(agent, &bundles)
        {
            tracing::warn!(%error, "the identity of the agent before this one is not taken");
        }
        (*bundles).clone()
    }

    fn take_over_identity(&self, handed: HandedSvid, bundles: &BundleSet) -> Result<(), OwnError> {
        let given = Given::from_handed(handed, Instant::now())?;
        let mut svid = AgentSvid::accept(
            Some(given.answer),
            Arc::new(given.key),
            self.trust_domain(),
            bundles,
            given.planned_by.server_ms,
            given.planned_by.jitter,
        )?;
        svid.received = given.received;
        if svid.has_expired() {
            return Err(OwnError::Expired);
        }
        Ok(self.adopt(svid)?)
    }

    pub(super) fn keep_entries_as_sent(&self, update: &EntriesUpdate) {
        let kept = self.entries_as_sent.lock();
        *kept.unwrap_or_else(PoisonError::into_inner) = Some(update.encode_to_vec());
    }
}

fn to_handed(bundle: &Bundle) -> HandedBundle {
    HandedBundle {
        trust_domain: bundle.trust_domain.to_string(),
        x509_authorities: bundle.authorities.iter().map(|der| der.to_vec()).collect(),
        sequence: bundle.sequence,
        refresh_hint_seconds: bundle.refresh_hint.as_secs(),
    }
}

fn from_handed(mut handed: HandedBundle) -> Option<Bundle> {
    let authorities = mem::take(&mut handed.x509_authorities);
    Some(Bundle {
        trust_domain: TrustDomain::new(&handed.trust_domain).ok()?,
        authorities: authorities.into_iter().map(CertificateDer::from).collect(),
        sequence: handed.sequence,
        refresh_hint: Duration::from_secs(handed.refresh_hint_seconds),
    })
}
