//! The certificate that leaves are issued from, with the facts that a leaf copies from
//! it and the chain that goes with the leaf. Checked once, when it is loaded.

use rustls_pki_types::CertificateDer;
use spiffe::TrustDomain;
use thiserror::Error;
use time::OffsetDateTime;

use crate::crypto::{self, SignatureError};
use crate::facts::{Constrains, Facts, FactsError, SpiffeIdFault};
use crate::limits;
use crate::spki::{self, KeyType, SpkiError};

/// An issuing CA's certificate, its parsed facts, and its chain to a root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issuer {
    /// See [`Issuer::chain`].
    chain: Vec<CertificateDer<'static>>,
    certificate: CertificateDer<'static>,
    root: CertificateDer<'static>,
    subject: Vec<u8>,
    subject_key_id: Vec<u8>,
    spki: Vec<u8>,
    key_type: KeyType,
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
    path_length: Option<u32>,
    trust_domain: Option<TrustDomain>,
}

/// Why a certificate, with its chain and roots, can't be issued from. The certificate
/// that is at fault is named by its subject.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum IssuerError {
    /// There is no certificate.
    #[error("there is no CA certificate")]
    Empty,
    /// There is no root.
    #[error("there is no root certificate")]
    NoRoot,
    /// There are too many certificates.
    #[error("{0} certificates are too many for a chain; at most {max} are read", max = limits::CHAIN_CERTIFICATES)]
    TooMany(usize),
    /// A certificate does not parse.
    #[error("certificate {position} of the {part}: {error}")]
    Certificate {
        /// `CA chain` or `roots`.
        part: &'static str,
        /// Place in that part, from 1.
        position: usize,
        /// What is wrong with it.
        error: FactsError,
    },
    /// The key is another certificate's.
    #[error("the CA key does not match the certificate {0:?}: its public key is another one")]
    KeyMismatch(String),
    /// The key's kind is not accepted.
    #[error("the CA certificate {subject:?}: {error}")]
    Key {
        /// Subject of the certificate.
        subject: String,
        /// Why its key is refused.
        error: SpkiError,
    },
    /// A certificate is no CA's.
    #[error("the certificate {0:?} is not a CA's: its basic constraints lack cA=true")]
    NotCa(String),
    /// A CA may not sign certificates.
    #[error("the CA certificate {0:?} may not sign certificates: its key usage lacks keyCertSign")]
    NoKeyCertSign(String),
    /// The key usage is not critical.
    #[error("the key usage of the CA certificate {0:?} is not critical (SPIFFE requirement 11)")]
    KeyUsageNotCritical(String),
    /// The issuing certificate has no subject key identifier to copy.
    #[error("the CA certificate {0:?} has no subject key identifier (RFC 5280 section 4.2.1.2)")]
    NoSubjectKeyId(String),
    /// The issuing certificate has no name to copy.
    #[error("the CA certificate has an empty subject (RFC 5280 section 4.1.2.6)")]
    NoSubject,
    /// A certificate has expired.
    #[error("the CA certificate {subject:?} expired at {not_after}")]
    Expired {
        /// Subject of the certificate.
        subject: String,
        /// End of its validity.
        not_after: OffsetDateTime,
    },
    /// A certificate is not valid yet.
    #[error("the CA certificate {subject:?} is not valid before {not_before}")]
    NotYetValid {
        /// Subject of the certificate.
        subject: String,
        /// Start of its validity.
        not_before: OffsetDateTime,
    },
    /// A CA allows fewer CAs below it than there are.
    #[error(
        "the CA certificate {subject:?} allows {allowed} CAs below it (path length), \
         but there are {below}"
    )]
    PathLength {
        /// Subject of the certificate.
        subject: String,
        /// Its path length.
        allowed: u32,
        /// CAs below it in this chain.
        below: u32,
    },
    /// The chain does not lead to a root.
    #[error(
        "the chain does not lead to a root: {subject:?} was issued by {issuer:?}, which is missing"
    )]
    NoPath {
        /// Subject of the topmost certificate that was reached.
        subject: String,
        /// Its issuer's name.
        issuer: String,
    },
    /// A certificate of the issuer's name is there, but did not sign.
    #[error("{issuer:?} did not sign {subject:?}: {error}")]
    Signature {
        /// Subject of the certificate.
        subject: String,
        /// Its issuer's name.
        issuer: String,
        /// What the check says.
        error: SignatureError,
    },
    /// A critical extension is unknown.
    #[error("the CA certificate {subject:?} has the unknown critical extension {oid}")]
    UnknownCritical {
        /// Subject of the certificate.
        subject: String,
        /// The extension's object identifier.
        oid: String,
    },
    /// Constraints on URIs.
    #[error("the CA certificate {0:?} constrains URI names, which Citadel does not support")]
    NameConstraints(String),
    /// The ID of a CA certificate has a path.
    #[error("the SPIFFE ID {0} of a CA certificate has a path (SPIFFE requirement 9)")]
    IdWithPath(String),
    /// The ID of a CA certificate is none.
    #[error("the CA certificate {subject:?}: {fault}")]
    Id {
        /// Subject of the certificate.
        subject: String,
        /// What is wrong with the ID.
        fault: SpiffeIdFault,
    },
}

impl Issuer {
    /// Checks an issuing certificate (`chain[0]`), the intermediates above it (the rest,
    /// in any order; a root or a copy among them does no harm) and the roots, against the
    /// public key of the CA key (`SubjectPublicKeyInfo` DER) and the time.
    ///
    /// A new root's certificate under another of the roots (a cross-certificate, RFC 4949)
    /// stays in the chain: who knows that other root alone verifies through it.
    pub fn from_chain(
        chain: &[CertificateDer<'_>],
        roots: &[CertificateDer<'_>],
        key_spki: &[u8],
        now: OffsetDateTime,
    ) -> Result<Self, IssuerError> {
        if chain.len() > limits::CHAIN_CERTIFICATES {
            return Err(IssuerError::TooMany(chain.len()));
        }
        let candidates = parse_all("CA chain", chain)?;
        let anchors = parse_all("roots", roots)?;
        let own = candidates.first().ok_or(IssuerError::Empty)?;
        if anchors.is_empty() {
            return Err(IssuerError::NoRoot);
        }
        if own.spki != key_spki {
            return Err(IssuerError::KeyMismatch(own.subject_text.clone()));
        }
        let key_type = spki::parse(own.spki)
            .map_err(|error| IssuerError::Key {
                subject: own.subject_text.clone(),
                error,
            })?
            .key_type;
        let (mut path, root) = climb(&candidates, &anchors, chain, roots, now)?;
        let crosses = cross_signed(&candidates, &anchors, root, path.len(), now);
        path.extend(crosses);
        if own.subject == EMPTY_NAME {
            return Err(IssuerError::NoSubject);
        }
        let subject_key_id = own
            .subject_key_id
            .ok_or_else(|| IssuerError::NoSubjectKeyId(own.subject_text.clone()))?;
        Ok(Self {
            chain: path
                .into_iter()
                .map(|at| chain[at].clone().into_owned())
                .collect(),
            certificate: chain[0].clone().into_owned(),
            root: roots[root].clone().into_owned(),
            subject: own.subject.to_vec(),
            subject_key_id: subject_key_id.to_vec(),
            spki: own.spki.to_vec(),
            key_type,
            not_before: own.not_before,
            not_after: own.not_after,
            path_length: own.path_length,
            trust_domain: own.spiffe_id().ok().map(|id| id.trust_domain().clone()),
        })
    }

    /// The issuing certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// What a leaf is sent with: the issuing certificate first, then the others up to,
    /// but without, the root, and the root's cross-certificates. Empty where the root itself
    /// issues and has none.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The root that the chain leads to.
    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// The issuing certificate's subject, as a DER `Name`.
    pub fn subject_der(&self) -> &[u8] {
        &self.subject
    }

    /// The issuing certificate's subject key identifier, which leaves repeat as AKI.
    pub fn subject_key_id(&self) -> &[u8] {
        &self.subject_key_id
    }

    /// The issuing key as `SubjectPublicKeyInfo` DER.
    pub fn spki_der(&self) -> &[u8] {
        &self.spki
    }

    /// SHA-256 of [`Issuer::spki_der`].
    pub fn spki_sha256(&self) -> [u8; 32] {
        crypto::sha256(&self.spki)
    }

    /// The issuing key's kind.
    pub fn key_type(&self) -> KeyType {
        self.key_type
    }

    /// Start of the issuing certificate's validity.
    pub fn not_before(&self) -> OffsetDateTime {
        self.not_before
    }

    /// End of the issuing certificate's validity: no leaf outlives it.
    pub fn not_after(&self) -> OffsetDateTime {
        self.not_after
    }

    /// How many CAs may stand below the issuing one; `None` for any number.
    pub fn path_length(&self) -> Option<u32> {
        self.path_length
    }

    /// The trust domain in the issuing certificate's own SPIFFE ID, where it has one.
    pub fn trust_domain(&self) -> Option<&TrustDomain> {
        self.trust_domain.as_ref()
    }
}

/// An empty `Name` in DER.
const EMPTY_NAME: &[u8] = &[0x30, 0x00];

fn parse_all<'a>(
    part: &'static str,
    certificates: &'a [CertificateDer<'_>],
) -> Result<Vec<Facts<'a>>, IssuerError> {
    let parse = |(at, der): (usize, &'a CertificateDer<'_>)| {
        Facts::parse(der).map_err(|error| IssuerError::Certificate {
            part,
            position: at + 1,
            error,
        })
    };
    certificates.iter().enumerate().map(parse).collect()
}

/// From the first certificate up to a root: the places of the certificates on the way
/// in `chain`, and the root's place in `roots`.
fn climb(
    candidates: &[Facts<'_>],
    anchors: &[Facts<'_>],
    chain: &[CertificateDer<'_>],
    roots: &[CertificateDer<'_>],
    now: OffsetDateTime,
) -> Result<(Vec<usize>, usize), IssuerError> {
    let mut path: Vec<usize> = Vec::new();
    let mut at = 0;
    loop {
        let below = u32::try_from(path.len()).unwrap_or(u32::MAX);
        let current = &candidates[at];
        check_authority(current, below, now)?;
        if let Some(root) = roots.iter().position(|root| root == &chain[at]) {
            return Ok((path, root));
        }
        if !current.key_usage_critical {
            return Err(IssuerError::KeyUsageNotCritical(
                current.subject_text.clone(),
            ));
        }
        path.push(at);
        match signer_of(current, anchors, |_| true)? {
            Some(root) => {
                check_authority(&anchors[root], below + 1, now)?;
                return Ok((path, root));
            }
            None => match signer_of(current, candidates, |next| !path.contains(&next))? {
                Some(next) => at = next,
                None => {
                    return Err(IssuerError::NoPath {
                        subject: current.subject_text.clone(),
                        issuer: current.issuer_text.clone(),
                    });
                }
            },
        }
    }
}

/// Which of the candidates say of the root's key that another root vouches for it, and are
/// good for that; `below` counts the CAs under the root. One that is not is of no use, and
/// does no harm: the root stands without it.
fn cross_signed(
    candidates: &[Facts<'_>],
    anchors: &[Facts<'_>],
    root: usize,
    below: usize,
    now: OffsetDateTime,
) -> Vec<usize> {
    let (own, below) = (&anchors[root], u32::try_from(below).unwrap_or(u32::MAX));
    let crosses = |cross: &Facts<'_>| {
        cross.subject == own.subject
            && cross.spki == own.spki
            && cross.key_usage_critical
            && check_authority(cross, below, now).is_ok()
            && matches!(signer_of(cross, anchors, |at| at != root), Ok(Some(other))
                if check_authority(&anchors[other], below + 1, now).is_ok())
    };
    (0..candidates.len())
        .filter(|at| crosses(&candidates[*at]))
        .collect()
}

/// Which of `authorities` signed `current`. An error if one has the right name, but
/// none made the signature.
fn signer_of(
    current: &Facts<'_>,
    authorities: &[Facts<'_>],
    eligible: impl Fn(usize) -> bool,
) -> Result<Option<usize>, IssuerError> {
    let mut failed = None;
    for (at, authority) in authorities.iter().enumerate() {
        if !eligible(at) || authority.subject != current.issuer {
            continue;
        }
        match current.verify_signature(authority) {
            Ok(()) => return Ok(Some(at)),
            Err(error) => failed = Some(error),
        }
    }
    match failed {
        None => Ok(None),
        Some(error) => Err(IssuerError::Signature {
            subject: current.subject_text.clone(),
            issuer: current.issuer_text.clone(),
            error,
        }),
    }
}

/// What must be true of every CA on the way; `below` counts the CAs under this one.
fn check_authority(ca: &Facts<'_>, below: u32, now: OffsetDateTime) -> Result<(), IssuerError> {
    let subject = || ca.subject_text.clone();
    if !ca.is_ca {
        return Err(IssuerError::NotCa(subject()));
    }
    if !ca
        .key_usage
        .as_ref()
        .is_some_and(x509_parser::extensions::KeyUsage::key_cert_sign)
    {
        return Err(IssuerError::NoKeyCertSign(subject()));
    }
    if now < ca.not_before {
        return Err(IssuerError::NotYetValid {
            subject: subject(),
            not_before: ca.not_before,
        });
    }
    if now > ca.not_after {
        return Err(IssuerError::Expired {
            subject: subject(),
            not_after: ca.not_after,
        });
    }
    if let Some(allowed) = ca.path_length
        && allowed < below
    {
        return Err(IssuerError::PathLength {
            subject: subject(),
            allowed,
            below,
        });
    }
    if let Some(oid) = &ca.unknown_critical {
        return Err(IssuerError::UnknownCritical {
            subject: subject(),
            oid: oid.clone(),
        });
    }
    if ca.constrains == Constrains::Uris {
        return Err(IssuerError::NameConstraints(subject()));
    }
    match ca.spiffe_id() {
        Ok(id) if !id.path().is_empty() => Err(IssuerError::IdWithPath(id.to_string())),
        Ok(_) | Err(SpiffeIdFault::None) => Ok(()),
        Err(fault) => Err(IssuerError::Id {
            subject: subject(),
            fault,
        }),
    }
}
