//! Issuers that were proven before: one CA signs thousands of SVIDs, and its own certificate
//! costs as much to verify as any of theirs.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::EndEntityCert;

use super::PathValidity;
use super::path::{Path, Search};
use crate::bundle::Bundle;
use crate::crypto;

/// The issuer that was proven last, with all that its proof hung on.
#[derive(Debug, Default)]
pub struct ProvenIssuers(Mutex<Option<Arc<Proven>>>);

#[derive(Debug)]
struct Proven {
    /// What came with the leaf, the issuer's certificate among it.
    above: Vec<CertificateDer<'static>>,
    authorities: Vec<CertificateDer<'static>>,
    /// The issuer, as webpki takes whom it need not verify.
    anchor: TrustAnchor<'static>,
    issuer: CertificateDer<'static>,
    authority: CertificateDer<'static>,
    /// When the issuer and all above it are valid.
    valid: PathValidity,
}

impl ProvenIssuers {
    /// The path above the leaf, if the very same certificates came with it as with a leaf
    /// before, by the same roots, all of them are valid now, and the issuer signed this leaf
    /// too. Otherwise the whole search has to tell.
    pub(super) fn find(
        &self,
        search: &Search<'_>,
        chain: &[CertificateDer<'_>],
        bundle: &Bundle,
    ) -> Option<Path> {
        // Not held while a signature is verified.
        let known = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()?;
        let same = known.above == chain[1..]
            && known.authorities == bundle.authorities
            && known.valid.contains(search.now);
        if !same {
            return None;
        }
        let since_epoch = u64::try_from(search.now.unix_timestamp()).ok()?;
        EndEntityCert::try_from(&chain[0])
            .ok()?
            .verify_for_usage(
                crypto::signature_algorithms(),
                std::slice::from_ref(&known.anchor),
                &[],
                UnixTime::since_unix_epoch(Duration::from_secs(since_epoch)),
                search.purposes,
                None,
                None,
            )
            .ok()?;
        Some(Path {
            issuer: Some(known.issuer.clone()),
            authority: known.authority.clone(),
            valid: known.valid,
            constrained: false,
        })
    }

    /// Remembers the path above a leaf. Not one that constrains names: what its CAs say of
    /// one leaf's names says nothing of another's.
    pub(super) fn remember(&self, path: &Path, chain: &[CertificateDer<'_>], bundle: &Bundle) {
        let Some(issuer) = &path.issuer else { return };
        if path.constrained {
            return;
        }
        let Ok(anchor) = webpki::anchor_from_trusted_cert(issuer) else {
            return;
        };
        let proven = Proven {
            above: chain[1..]
                .iter()
                .map(|der| der.clone().into_owned())
                .collect(),
            authorities: bundle.authorities.clone(),
            anchor: anchor.to_owned(),
            issuer: issuer.clone(),
            authority: path.authority.clone(),
            valid: path.valid,
        };
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *known = Some(Arc::new(proven));
    }
}
