//! Verification of presented X509-SVIDs: RFC 5280 path validation by webpki, what
//! webpki leaves out, and the SPIFFE rules (requirements 7 to 13).

use std::cell::RefCell;
use std::time::Duration;

use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use spiffe::{SpiffeId, TrustDomain};
use time::OffsetDateTime;
use webpki::{
    EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeIdIter, RequiredEkuNotFoundContext,
    VerifiedPath,
};
use x509_parser::extensions::KeyUsage;

use crate::bundle::BundleSet;
use crate::crypto;
use crate::facts::{Constrains, Facts, FactsError};
use crate::limits;
use crate::serial::Serial;

mod error;
mod issuers;
pub use error::{VerifyError, Which};
pub use issuers::ProvenIssuers;

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

/// What was found above a leaf.
struct Path {
    /// The intermediate that signed the leaf; none where the authority did.
    issuer: Option<CertificateDer<'static>>,
    authority: CertificateDer<'static>,
    /// When the intermediates and the authority are valid.
    valid: PathValidity,
    /// Whether one of them constrains the names of the leaf.
    constrained: bool,
}

/// One search for a path from the leaf to an authority.
struct Search<'s> {
    leaf: &'s Facts<'s>,
    intermediates: &'s [Facts<'s>],
    trust_domain: &'s TrustDomain,
    now: OffsetDateTime,
    purposes: Purposes,
}

impl Search<'_> {
    fn run(
        &self,
        chain: &[CertificateDer<'_>],
        authorities: &[CertificateDer<'static>],
    ) -> Result<Path, VerifyError> {
        let usable: Vec<(TrustAnchor<'_>, &CertificateDer<'static>)> = authorities
            .iter()
            .filter_map(|der| Some((webpki::anchor_from_trusted_cert(der).ok()?, der)))
            .collect();
        if usable.is_empty() {
            return Err(VerifyError::NoAuthority(self.trust_domain.clone()));
        }
        let anchors: Vec<TrustAnchor<'_>> =
            usable.iter().map(|(anchor, _)| anchor.clone()).collect();
        let leaf = EndEntityCert::try_from(&chain[0]).map_err(|error| self.explain(&error))?;
        let since_epoch = u64::try_from(self.now.unix_timestamp()).unwrap_or(0);
        // What webpki leaves out is checked on each path that it finds, so that another
        // path is tried where one fails. Two certificates of one CA (one expired, one
        // renewed) are one anchor to webpki: either may complete the path.
        let refusal: RefCell<Option<VerifyError>> = RefCell::new(None);
        let accepted: RefCell<Option<Path>> = RefCell::new(None);
        let check_path = |path: &VerifiedPath<'_>| {
            for (_, der) in usable.iter().filter(|(anchor, _)| anchor == path.anchor()) {
                match self.check_path(path, der) {
                    Ok((valid, constrained)) => {
                        let mut above = path.intermediate_certificates();
                        accepted.replace(Some(Path {
                            issuer: above.next().map(|issuer| issuer.der().into_owned()),
                            authority: (*der).clone(),
                            valid,
                            constrained,
                        }));
                        return Ok(());
                    }
                    Err(error) => drop(refusal.replace(Some(error))),
                }
            }
            Err(webpki::Error::UnknownIssuer)
        };
        let found = leaf.verify_for_usage(
            crypto::signature_algorithms(),
            &anchors,
            &chain[1..],
            UnixTime::since_unix_epoch(Duration::from_secs(since_epoch)),
            self.purposes,
            None,
            Some(&check_path),
        );
        match (found, accepted.take(), refusal.take()) {
            (Ok(_), Some(accepted), _) => Ok(accepted),
            (Ok(_), None, refusal) | (Err(webpki::Error::UnknownIssuer), _, refusal) => {
                Err(refusal.unwrap_or_else(|| self.unknown_authority()))
            }
            (Err(error), ..) => Err(self.explain(&error)),
        }
    }

    /// What webpki does not check of the CAs on a path: key usage, and everything of the
    /// authority itself but its name, key and name constraints. Tells when all of them are
    /// valid, and whether one of them constrains names.
    fn check_path(
        &self,
        path: &VerifiedPath<'_>,
        authority: &CertificateDer<'_>,
    ) -> Result<(PathValidity, bool), VerifyError> {
        let broken = |error: FactsError| VerifyError::Path(error.to_string());
        let mut below = 0_u32;
        let root = Facts::parse(authority).map_err(broken)?;
        let mut valid = PathValidity::of(&root);
        let mut constrained = root.constrains != Constrains::Nothing;
        for intermediate in path.intermediate_certificates() {
            let der = intermediate.der();
            let facts = Facts::parse(&der).map_err(broken)?;
            let which = || Which::Intermediate(facts.subject_text.clone());
            if !facts
                .key_usage
                .as_ref()
                .is_some_and(KeyUsage::key_cert_sign)
            {
                return Err(VerifyError::NoKeyCertSign(which()));
            }
            check_ca(&facts, which)?;
            valid = valid.and(&facts);
            constrained |= facts.constrains != Constrains::Nothing;
            if facts.subject != facts.issuer {
                below += 1;
            }
        }
        let which = || Which::Authority(root.subject_text.clone());
        if !root.is_ca {
            return Err(VerifyError::NotCa(which()));
        }
        // Old roots have no key usage; one that has must allow it.
        if root
            .key_usage
            .as_ref()
            .is_some_and(|usage| !usage.key_cert_sign())
        {
            return Err(VerifyError::NoKeyCertSign(which()));
        }
        if root.path_length.is_some_and(|allowed| allowed < below) {
            return Err(VerifyError::PathLength(which()));
        }
        check_ca(&root, which)?;
        check_time(&root, which, self.now)?;
        Ok((valid, constrained))
    }

    /// webpki's verdict in words, with the certificate that is at fault.
    fn explain(&self, error: &webpki::Error) -> VerifyError {
        use webpki::Error;
        let blamed = |guilty: &dyn Fn(&Facts<'_>) -> bool| {
            self.intermediates
                .iter()
                .find(|facts| guilty(facts))
                .map_or(Which::Leaf, |facts| {
                    Which::Intermediate(facts.subject_text.clone())
                })
        };
        match error {
            Error::CertExpired { .. } | Error::CertNotValidYet { .. } => self
                .intermediates
                .iter()
                .find_map(|facts| {
                    let which = || Which::Intermediate(facts.subject_text.clone());
                    check_time(facts, which, self.now).err()
                })
                .unwrap_or_else(|| VerifyError::Path(error.to_string())),
            Error::UnknownIssuer => self.unknown_authority(),
            Error::CaUsedAsEndEntity => VerifyError::CaAsLeaf,
            Error::EndEntityUsedAsCa => VerifyError::NotCa(blamed(&|facts| !facts.is_ca)),
            Error::PathLenConstraintViolated => {
                VerifyError::PathLength(blamed(&|facts| facts.path_length.is_some()))
            }
            Error::NameConstraintViolation | Error::MalformedNameConstraint => {
                VerifyError::NameConstraints
            }
            Error::InvalidSignatureForPublicKey => VerifyError::Signature,
            Error::UnsupportedSignatureAlgorithmContext(_)
            | Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => {
                VerifyError::SignatureAlgorithm
            }
            Error::UnsupportedCriticalExtension => self
                .intermediates
                .iter()
                .find_map(|facts| {
                    Some(VerifyError::UnknownCritical {
                        which: Which::Intermediate(facts.subject_text.clone()),
                        oid: facts.unknown_critical.clone()?,
                    })
                })
                .unwrap_or_else(|| VerifyError::Path(error.to_string())),
            Error::RequiredEkuNotFoundContext(_) | Error::EmptyEkuExtension => {
                VerifyError::ExtendedKeyUsage
            }
            other => VerifyError::Path(other.to_string()),
        }
    }

    /// Climbs by names as far as the presented certificates reach.
    fn unknown_authority(&self) -> VerifyError {
        let mut top = self.leaf;
        for _ in self.intermediates {
            let above = self
                .intermediates
                .iter()
                .find(|facts| facts.subject == top.issuer && facts.subject != facts.issuer);
            match above {
                Some(above) if !std::ptr::eq(above, top) => top = above,
                _ => break,
            }
        }
        VerifyError::UnknownAuthority {
            subject: top.subject_text.clone(),
            issuer: top.issuer_text.clone(),
            trust_domain: self.trust_domain.clone(),
        }
    }
}

fn check_ca(ca: &Facts<'_>, which: impl Fn() -> Which) -> Result<(), VerifyError> {
    if ca.constrains == Constrains::Uris {
        return Err(VerifyError::NameConstraints);
    }
    match &ca.unknown_critical {
        Some(oid) => Err(VerifyError::UnknownCritical {
            which: which(),
            oid: oid.clone(),
        }),
        None => Ok(()),
    }
}

/// What every certificate of a path must be for, where it lists purposes (for a CA, any will
/// do).
#[derive(Clone, Copy)]
enum Purposes {
    /// Requirement 12.
    ServerAndClient,
    Client,
}

impl ExtendedKeyUsageValidator for Purposes {
    fn validate(&self, purposes: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        const SERVER: &[usize] = &[1, 3, 6, 1, 5, 5, 7, 3, 1];
        const CLIENT: &[usize] = &[1, 3, 6, 1, 5, 5, 7, 3, 2];
        const ANY: &[usize] = &[2, 5, 29, 37, 0];
        let mut listed = Vec::new();
        for purpose in purposes {
            listed.push(purpose?.to_decoded_oid());
        }
        let has = |wanted: &[usize]| listed.iter().any(|oid| oid == wanted);
        let fits = match self {
            Self::ServerAndClient => has(SERVER) && has(CLIENT),
            Self::Client => has(CLIENT),
        };
        if listed.is_empty() || has(ANY) || fits {
            Ok(())
        } else {
            Err(webpki::Error::RequiredEkuNotFoundContext(
                RequiredEkuNotFoundContext {
                    required: webpki::KeyUsage::client_auth(),
                    present: listed,
                },
            ))
        }
    }
}
