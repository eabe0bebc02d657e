//! What the stages need: the active issuer, and the store behind them.

use std::{sync::Arc, time::Duration};

use citadel_identity::{TrustDomain, profile};

use crate::keys::Signer;

/// The active issuer: its certificate and its key, wherever that is.
pub struct Issuer {
    certificate: profile::Issuer,
    signer: Arc<dyn Signer>,
    trust_domain: TrustDomain,
    key_id: Vec<u8>,
    max_lifetime: Duration,
}

impl Issuer {
    /// `max_lifetime` is what the linter accepts at most, back-dating included.
    pub fn new(
        certificate: profile::Issuer,
        signer: Arc<dyn Signer>,
        trust_domain: TrustDomain,
        max_lifetime: Duration,
    ) -> Self {
        let key_id = certificate.subject_key_id().to_vec();
        Self {
            certificate,
            signer,
            trust_domain,
            key_id,
            max_lifetime,
        }
    }

    /// Its certificate, with the chain to send.
    pub fn certificate(&self) -> &profile::Issuer {
        &self.certificate
    }

    /// Its key.
    pub fn signer(&self) -> &dyn Signer {
        self.signer.as_ref()
    }

    /// The trust domain that it signs for.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Subject key id.
    pub fn key_id(&self) -> &[u8] {
        &self.key_id
    }

    /// What the linter accepts at most.
    pub fn max_lifetime(&self) -> Duration {
        self.max_lifetime
    }
}

/// The parts of the line that live as long as the server.
pub struct Line {
    /// The active issuer.
    pub issuer: Arc<Issuer>,
    /// Where everything is recorded.
    pub store: Arc<dyn crate::store::Store>,
    /// The shortest lifetime that is worth issuing.
    pub shortest: Duration,
}
