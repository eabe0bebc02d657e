//! Why a chain is refused, in words that name the certificate at fault.

use std::fmt;

use spiffe::{SpiffeId, TrustDomain};
use thiserror::Error;
use time::OffsetDateTime;

use crate::facts::{FactsError, SpiffeIdFault};
use crate::limits;

/// Which certificate of a chain is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// The first certificate, the SVID itself.
    Leaf,
    /// An intermediate, by its subject.
    Intermediate(String),
    /// An authority of the bundle, by its subject.
    Authority(String),
}

impl fmt::Display for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Leaf => f.write_str("the certificate"),
            Self::Intermediate(subject) => write!(f, "the intermediate {subject:?}"),
            Self::Authority(subject) => write!(f, "the authority {subject:?}"),
        }
    }
}

/// Why a chain is not a valid X509-SVID.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum VerifyError {
    /// No certificate was presented.
    #[error("there is no certificate")]
    Empty,
    /// Too many certificates were presented.
    #[error("{0} certificates are too many; at most {max} are accepted", max = limits::CHAIN_CERTIFICATES)]
    TooMany(usize),
    /// A certificate does not parse.
    #[error("certificate {position} of the chain: {error}")]
    Certificate {
        /// Place in the chain, from 1.
        position: usize,
        /// What is wrong with it.
        error: FactsError,
    },
    /// The leaf has no SPIFFE ID, several, or a malformed one (requirement 7).
    #[error("the certificate is no X509-SVID: {0}")]
    SpiffeId(#[from] SpiffeIdFault),
    /// A CA's certificate was presented as a workload's (requirement 9).
    #[error("the certificate is a CA's; a CA never authenticates as a workload")]
    CaAsLeaf,
    /// The leaf's ID has no path (requirement 8).
    #[error("the SPIFFE ID {0} has no path; it names a trust domain, not a workload")]
    NoPath(SpiffeId),
    /// The leaf's key usage is missing or not critical (requirement 11).
    #[error("the certificate's key usage is missing or not critical")]
    KeyUsage,
    /// The leaf's key usage lacks digitalSignature (requirement 10).
    #[error("the certificate's key usage lacks digitalSignature")]
    NoDigitalSignature,
    /// The leaf may sign certificates or CRLs (requirement 10).
    #[error("the certificate's key usage has keyCertSign or cRLSign, which no workload may have")]
    LeafMaySign,
    /// The leaf's extended key usage lacks one of the two (requirement 12).
    #[error("the certificate's extended key usage lacks serverAuth or clientAuth")]
    ExtendedKeyUsage,
    /// There is no bundle for the trust domain.
    #[error("there is no trust bundle for the trust domain {0}")]
    UnknownTrustDomain(TrustDomain),
    /// The bundle has no usable authority (requirement 18).
    #[error("the trust bundle of {0} has no usable authority, so none of its SVIDs is trusted")]
    NoAuthority(TrustDomain),
    /// The SVID is another trust domain's.
    #[error("the trust domain is {found}, not {expected}")]
    OtherTrustDomain {
        /// The one that is accepted.
        expected: TrustDomain,
        /// The one in the SVID.
        found: TrustDomain,
    },
    /// The SVID is somebody else's.
    #[error("the peer is {found}, not {expected}")]
    OtherId {
        /// Who was expected.
        expected: SpiffeId,
        /// Who it is.
        found: SpiffeId,
    },
    /// The chain does not hold the root that was pinned.
    #[error("the presented chain does not include the root certificate with SHA-256 {0}")]
    RootNotPresented(String),
    /// A certificate has expired.
    #[error("{which} expired at {not_after}")]
    Expired {
        /// Which certificate.
        which: Which,
        /// End of its validity.
        not_after: OffsetDateTime,
    },
    /// A certificate is not valid yet.
    #[error("{which} is not valid before {not_before}")]
    NotYetValid {
        /// Which certificate.
        which: Which,
        /// Start of its validity.
        not_before: OffsetDateTime,
    },
    /// A critical extension is unknown.
    #[error("{which} has the unknown critical extension {oid}")]
    UnknownCritical {
        /// Which certificate.
        which: Which,
        /// The extension's object identifier.
        oid: String,
    },
    /// A CA on the way is no CA.
    #[error("{0} is not a CA's: its basic constraints lack cA=true")]
    NotCa(Which),
    /// A CA on the way may not sign certificates.
    #[error("{0} may not sign certificates: its key usage lacks keyCertSign")]
    NoKeyCertSign(Which),
    /// A CA allows fewer CAs below it than there are.
    #[error("{0} allows fewer CAs below it (path length) than the chain has")]
    PathLength(Which),
    /// A name is not permitted by a CA's constraints, or these can't be judged.
    #[error(
        "a name is not permitted by a CA's name constraints, or these constrain URIs, which is not supported"
    )]
    NameConstraints,
    /// The chain does not lead to an authority.
    #[error(
        "unknown authority: {subject:?} was issued by {issuer:?}, \
         which is neither presented nor in the trust bundle of {trust_domain}"
    )]
    UnknownAuthority {
        /// Subject of the topmost certificate that was reached.
        subject: String,
        /// Its issuer's name.
        issuer: String,
        /// Whose bundle was used.
        trust_domain: TrustDomain,
    },
    /// A certificate of the issuer's name is there, but did not sign.
    #[error(
        "a signature in the chain does not verify: a CA of the right name has another key, or a certificate was altered"
    )]
    Signature,
    /// A signature algorithm is not supported.
    #[error("a signature in the chain uses an algorithm that is not supported")]
    SignatureAlgorithm,
    /// Anything else that path validation refuses.
    #[error("path validation fails: {0}")]
    Path(String),
}
