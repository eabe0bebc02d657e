//! The search for a path from a leaf to an authority: webpki finds it, and what webpki leaves out
//! is checked on each that it finds.

use std::cell::RefCell;
use std::time::Duration;

use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use spiffe::TrustDomain;
use time::OffsetDateTime;
use webpki::{
    EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeIdIter, RequiredEkuNotFoundContext,
    VerifiedPath,
};
use x509_parser::extensions::KeyUsage;

use super::{PathValidity, VerifyError, Which, check_time};
use crate::crypto;
use crate::facts::{Constrains, Facts, FactsError};

/// What was found above a leaf.
pub(super) struct Path {
    /// The intermediate that signed the leaf; none where the authority did.
    pub(super) issuer: Option<CertificateDer<'static>>,
    pub(super) authority: CertificateDer<'static>,
    /// When the intermediates and the authority are valid.
    pub(super) valid: PathValidity,
    /// Whether one of them constrains the names of the leaf.
    pub(super) constrained: bool,
}

/// One search for a path from the leaf to an authority.
pub(super) struct Search<'s> {
    pub(super) leaf: &'s Facts<'s>,
    pub(super) intermediates: &'s [Facts<'s>],
    pub(super) trust_domain: &'s TrustDomain,
    pub(super) now: OffsetDateTime,
    pub(super) purposes: Purposes,
}

impl Search<'_> {
    pub(super) fn run(
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
pub(super) enum Purposes {
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
