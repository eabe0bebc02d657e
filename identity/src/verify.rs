//! Verification of presented X509-SVIDs: RFC 5280 path validation by webpki, what
//! webpki leaves out, and the SPIFFE rules (requirements 7 to 13).

use rustls_pki_types::CertificateDer;
use spiffe::{SpiffeId, TrustDomain};
use time::OffsetDateTime;

use crate::bundle::BundleSet;
use crate::crypto;
use crate::facts::Facts;
use crate::limits;
use crate::serial::Serial;

mod error;
mod issuers;
mod path;
pub use error::{VerifyError, Which};
pub use issuers::ProvenIssuers;
use path::{Purposes, Search};

/// An SVID whose chain leads to an authority of its trust domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedSvid {
    /// Whose it is.
    pub spiffe_id: SpiffeId,
    /// Start of the leaf's validity.
    pub not_before: OffsetDateTime,
    /// End of the leaf's validity.
    pub not_after: OffsetDateTime,
    /// The leaf's serial number.
    pub serial: Serial,
    /// DNS names in the leaf, besides its SPIFFE ID.
    pub dns_names: Vec<String>,
    /// SHA-256 of the leaf's `SubjectPublicKeyInfo`.
    pub spki_sha256: [u8; 32],
    /// The authority that the chain leads to.
    pub authority: CertificateDer<'static>,
    /// When all certificates of the path are valid: within it, and with the same bundles, the
    /// same chain verifies again.
    pub path_valid: PathValidity,
}

/// What the validities of all certificates of a path have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathValidity {
    from: OffsetDateTime,
    /// The last second, in Unix time.
    until: i64,
}

impl PathValidity {
    /// From `from` to the second of `until`.
    pub fn new(from: OffsetDateTime, until: OffsetDateTime) -> Self {
        Self {
            from,
            until: until.unix_timestamp(),
        }
    }

    fn of(certificate: &Facts<'_>) -> Self {
        Self::new(certificate.not_before, certificate.not_after)
    }

    fn and(self, certificate: &Facts<'_>) -> Self {
        let other = Self::of(certificate);
        Self {
            from: self.from.max(other.from),
            until: self.until.min(other.until),
        }
    }

    /// Whether `now` is within it, by the rule that [`verify_svid`] follows.
    pub fn contains(&self, now: OffsetDateTime) -> bool {
        now >= self.from && now.unix_timestamp() <= self.until
    }
}

/// Verifies a presented chain, leaf first, at the time `now`, against the bundle of the
/// leaf's own trust domain. The root may be among the presented certificates.
pub fn verify_svid(
    chain: &[CertificateDer<'_>],
    bundles: &BundleSet,
    now: OffsetDateTime,
) -> Result<VerifiedSvid, VerifyError> {
    verify(chain, bundles, now, None)
}

/// The same with a memory: what stands above the leaf is not verified again where it was
/// before, by the same roots.
pub fn verify_svid_again(
    chain: &[CertificateDer<'_>],
    bundles: &BundleSet,
    now: OffsetDateTime,
    proven: &ProvenIssuers,
) -> Result<VerifiedSvid, VerifyError> {
    verify(chain, bundles, now, Some(proven))
}

fn verify(
    chain: &[CertificateDer<'_>],
    bundles: &BundleSet,
    now: OffsetDateTime,
    proven: Option<&ProvenIssuers>,
) -> Result<VerifiedSvid, VerifyError> {
    let facts = facts_of(chain)?;
    let (leaf, intermediates) = facts.split_first().ok_or(VerifyError::Empty)?;
    let spiffe_id = check_leaf(leaf)?;
    let trust_domain = spiffe_id.trust_domain();
    let bundle = bundles
        .get(trust_domain)
        .ok_or_else(|| VerifyError::UnknownTrustDomain(trust_domain.clone()))?;
    check_time(leaf, || Which::Leaf, now)?;
    if let Some(oid) = &leaf.unknown_critical {
        return Err(VerifyError::UnknownCritical {
            which: Which::Leaf,
            oid: oid.clone(),
        });
    }
    let search = Search {
        leaf,
        intermediates,
        trust_domain,
        now,
        purposes: Purposes::ServerAndClient,
    };
    let known = proven.and_then(|proven| proven.find(&search, chain, bundle));
    let path = if let Some(path) = known {
        path
    } else {
        let path = search.run(chain, &bundle.authorities)?;
        if let Some(proven) = proven {
            proven.remember(&path, chain, bundle);
        }
        path
    };
    Ok(VerifiedSvid {
        not_before: leaf.not_before,
        not_after: leaf.not_after,
        serial: leaf.serial.clone(),
        dns_names: leaf.dns_names.iter().map(ToString::to_string).collect(),
        spki_sha256: crypto::sha256(leaf.spki),
        authority: path.authority,
        path_valid: path.valid.and(leaf),
        spiffe_id,
    })
}

/// The names of a client's certificate that is none of ours.
pub(crate) struct ClientNames {
    pub(crate) dns_names: Vec<String>,
    pub(crate) common_name: Option<String>,
}

/// Verifies the chain of a client under roots of the operator's, leaf first, at the time `now`:
/// path, validity and usage, as [`verify_svid`] does, without the SPIFFE rules.
pub(crate) fn verify_client(
    chain: &[CertificateDer<'_>],
    roots: &[CertificateDer<'static>],
    trust_domain: &TrustDomain,
    now: OffsetDateTime,
) -> Result<ClientNames, VerifyError> {
    let facts = facts_of(chain)?;
    let (leaf, intermediates) = facts.split_first().ok_or(VerifyError::Empty)?;
    if leaf.is_ca {
        return Err(VerifyError::CaAsLeaf);
    }
    if leaf
        .key_usage
        .as_ref()
        .is_some_and(|usage| !usage.digital_signature())
    {
        return Err(VerifyError::NoDigitalSignature);
    }
    // Where purposes are listed, a client's is one of them.
    if leaf.extended_key_usage.is_some_and(|(_, client)| !client) {
        return Err(VerifyError::ExtendedKeyUsage);
    }
    check_time(leaf, || Which::Leaf, now)?;
    if let Some(oid) = &leaf.unknown_critical {
        return Err(VerifyError::UnknownCritical {
            which: Which::Leaf,
            oid: oid.clone(),
        });
    }
    let search = Search {
        leaf,
        intermediates,
        trust_domain,
        now,
        purposes: Purposes::Client,
    };
    search.run(chain, roots)?;
    Ok(ClientNames {
        dns_names: leaf.dns_names.iter().map(ToString::to_string).collect(),
        common_name: leaf.common_name.clone(),
    })
}

fn facts_of<'c>(chain: &'c [CertificateDer<'_>]) -> Result<Vec<Facts<'c>>, VerifyError> {
    if chain.len() > limits::CHAIN_CERTIFICATES {
        return Err(VerifyError::TooMany(chain.len()));
    }
    let numbered = chain.iter().enumerate();
    let parsed = numbered.map(|(at, der)| {
        Facts::parse(der).map_err(|error| VerifyError::Certificate {
            position: at + 1,
            error,
        })
    });
    parsed.collect()
}

/// The SPIFFE ID that a certificate claims. Nothing is verified: for certificates that
/// have been verified before, and for messages.
pub fn spiffe_id(certificate: &[u8]) -> Result<SpiffeId, VerifyError> {
    let facts = Facts::parse(certificate)
        .map_err(|error| VerifyError::Certificate { position: 1, error })?;
    Ok(facts.spiffe_id()?)
}

/// The SPIFFE rules for a leaf.
fn check_leaf(leaf: &Facts<'_>) -> Result<SpiffeId, VerifyError> {
    if leaf.is_ca {
        return Err(VerifyError::CaAsLeaf);
    }
    let id = leaf.spiffe_id()?;
    if id.path().is_empty() {
        return Err(VerifyError::NoPath(id));
    }
    let usage = leaf.key_usage.as_ref().ok_or(VerifyError::KeyUsage)?;
    if usage.key_cert_sign() || usage.crl_sign() {
        return Err(VerifyError::LeafMaySign);
    }
    if !leaf.key_usage_critical {
        return Err(VerifyError::KeyUsage);
    }
    if !usage.digital_signature() {
        return Err(VerifyError::NoDigitalSignature);
    }
    match leaf.extended_key_usage {
        None | Some((true, true)) => Ok(id),
        Some(_) => Err(VerifyError::ExtendedKeyUsage),
    }
}

fn check_time(
    certificate: &Facts<'_>,
    which: impl Fn() -> Which,
    now: OffsetDateTime,
) -> Result<(), VerifyError> {
    let Facts {
        not_before,
        not_after,
        ..
    } = *certificate;
    // Certificates count whole seconds; notAfter's own second is still valid.
    if now.unix_timestamp() > not_after.unix_timestamp() {
        return Err(VerifyError::Expired {
            which: which(),
            not_after,
        });
    }
    if now < not_before {
        return Err(VerifyError::NotYetValid {
            which: which(),
            not_before,
        });
    }
    Ok(())
}
