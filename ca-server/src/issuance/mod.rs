//! The issuance line, as types: each stage consumes the value of the one before it, so that
//! signing what was not authorised and linted, or releasing what was not recorded, does not
//! compile.
//!
//! `Caller → authorize → Grant → prove possession → ProvenKey → profile → Template →
//! prepare (lint) → Prepared → intend → Intended → sign → Signed → record → Recorded → release`
//!
//! There is no second path to the signer.

mod line;
mod round;
mod service;
mod stages;

pub use line::{Issuer, Line};
pub use service::{Issuance, Item, ItemError, Release};
pub use stages::{Intended, Prepared, Recorded, Signed, Svid, Template};

use citadel_identity::{csr::CsrError, lint::LintError, profile::ProfileError};

use crate::{keys::SignError, store::StoreError};

/// Why a granted certificate was not issued.
#[derive(Debug, thiserror::Error)]
pub enum IssuanceError {
    /// The CSR proves no key that we accept.
    #[error("csr: {0}")]
    Csr(#[from] CsrError),
    /// The issuer can't cover the shortest lifetime any more.
    #[error("the issuing certificate expires at {0}: it can't issue any more")]
    IssuerExpiring(time::OffsetDateTime),
    /// This machine's clock stands before the issuer's validity: somebody set it back.
    #[error("the issuing certificate is valid from {0} on: the clock of this machine is behind")]
    IssuerNotYetValid(time::OffsetDateTime),
    /// The certificate could not be built.
    #[error("profile: {0}")]
    Profile(#[from] ProfileError),
    /// The linter found what must never be signed.
    #[error("lint: {0}")]
    Lint(#[from] LintError),
    /// The key is not in this process, and its intent can't be recorded.
    #[error("the CA key is in another place, and the log can't record an intent")]
    NoIntent,
    /// The key did not sign.
    #[error("signer: {0}")]
    Sign(#[from] SignError),
    /// It could not be recorded, so it was not released.
    #[error("store: {0}")]
    Store(#[from] StoreError),
}

impl IssuanceError {
    /// The word of Istio's CA for such an error, which its dashboards show.
    pub fn istio_type(&self) -> &'static str {
        match self {
            Self::Csr(_) => CSR_ERROR,
            Self::Profile(_) | Self::Lint(_) => "CERT_GEN_ERROR",
            Self::IssuerExpiring(_)
            | Self::IssuerNotYetValid(_)
            | Self::NoIntent
            | Self::Sign(_)
            | Self::Store(_) => "CA_NOT_READY",
        }
    }
}

/// Istio's word for a CSR that can't be signed.
pub const CSR_ERROR: &str = "CSR_ERROR";
