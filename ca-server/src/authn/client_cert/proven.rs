//! Chains that were verified and found in the log: neither the signatures nor the record can
//! change, so an agent that sends a request each second need not pay for both each time. What
//! can change (time, bundles, what the origin rests on) is looked at for each request.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use citadel_identity::{SpiffeId, bundle::BundleSet, crypto, serial::Serial, verify::PathValidity};
use citadel_proto::log;
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;

use crate::caller::Origin;

/// Chains kept, about 1 KB each.
const MOST_KEPT: usize = 4_096;

/// SHA-256 over the chain.
pub(super) type Key = [u8; 32];

/// A verified chain whose leaf is the certificate recorded under its serial.
pub(super) struct Proven {
    pub(super) spiffe_id: SpiffeId,
    pub(super) serial: Serial,
    /// As recorded.
    pub(super) certificate_use: log::CertificateUse,
    /// As recorded.
    pub(super) issuer_key_id: Vec<u8>,
    /// As recorded.
    pub(super) origin: Origin,
    pub(super) valid: PathValidity,
    /// Against which the chain was verified.
    pub(super) bundles: Arc<BundleSet>,
}

/// Bounded; any number of requests at once.
#[derive(Default)]
pub(in crate::authn) struct ProvenChains(Mutex<HashMap<Key, Arc<Proven>>>);

impl ProvenChains {
    /// What a chain is kept under.
    pub(super) fn key(chain: &[CertificateDer<'_>]) -> Key {
        // A DER certificate tells its own length: two chains never are the same bytes.
        let ders: Vec<&[u8]> = chain.iter().map(AsRef::as_ref).collect();
        crypto::sha256(&ders.concat())
    }

    /// What is still proven now, against these bundles.
    pub(super) fn get(
        &self,
        key: &Key,
        bundles: &Arc<BundleSet>,
        now: OffsetDateTime,
    ) -> Option<Arc<Proven>> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let proven = kept.get(key)?;
        let holds = Arc::ptr_eq(&proven.bundles, bundles) && proven.valid.contains(now);
        holds.then(|| Arc::clone(proven))
    }

    /// Keeps a proven chain; where there are too many, those go that are no longer valid, and
    /// else all.
    pub(super) fn keep(&self, key: Key, proven: Arc<Proven>, now: OffsetDateTime) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= MOST_KEPT {
            kept.retain(|_, proven| proven.valid.contains(now));
            if kept.len() >= MOST_KEPT {
                kept.clear();
            }
        }
        kept.insert(key, proven);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use time::{Duration, macros::datetime};

    use super::*;
    use crate::caller::{Authority, Method};

    const NOW: OffsetDateTime = datetime!(2026-11-26 12:00 UTC);

    fn proven(bundles: &Arc<BundleSet>, until: OffsetDateTime) -> Arc<Proven> {
        Arc::new(Proven {
            spiffe_id: SpiffeId::new("spiffe://example.org/citadel/agent/c/n").unwrap(),
            serial: Serial::from_bytes(&[1; 18]).unwrap(),
            certificate_use: log::CertificateUse::Agent,
            issuer_key_id: vec![1],
            origin: Origin {
                method: Method::Jwks,
                subject: None,
                node: None,
                entry_id: None,
                first_authenticated: NOW,
                authority: Authority::Itself,
            },
            valid: PathValidity::new(NOW, until),
            bundles: Arc::clone(bundles),
        })
    }

    #[test]
    fn a_chain_is_proven_no_longer_than_its_path_is_valid_and_the_bundles_are_the_same() {
        let chains = ProvenChains::default();
        let bundles = Arc::new(BundleSet::default());
        let key = ProvenChains::key(&[vec![1].into(), vec![2].into()]);
        assert_ne!(key, ProvenChains::key(&[vec![1].into(), vec![3].into()]));
        let until = NOW + Duration::HOUR;
        chains.keep(key, proven(&bundles, until), NOW);
        let holds = |bundles, now| chains.get(&key, bundles, now).is_some();
        assert!(holds(&bundles, NOW));
        assert!(holds(&bundles, until));
        assert!(!holds(&bundles, until + Duration::SECOND), "expired");
        assert!(!holds(&bundles, NOW - Duration::SECOND), "not yet valid");
        assert!(!holds(&Arc::new(BundleSet::default()), NOW), "new bundles");
    }

    #[test]
    fn the_chains_kept_are_bounded() {
        let chains = ProvenChains::default();
        let bundles = Arc::new(BundleSet::default());
        let key = |at: usize| ProvenChains::key(&[at.to_be_bytes().to_vec().into()]);
        for at in 0..MOST_KEPT {
            let hours = if at == 7 { 2 } else { 1 };
            chains.keep(key(at), proven(&bundles, NOW + Duration::hours(hours)), NOW);
        }
        let later = NOW + Duration::hours(2);
        chains.keep(key(MOST_KEPT), proven(&bundles, later), later);
        assert_eq!(chains.0.lock().unwrap().len(), 2, "the expired ones go");
    }
}
