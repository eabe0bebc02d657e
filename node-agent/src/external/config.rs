//! `external` of the configuration: this node is none of Kubernetes'.

use std::path::PathBuf;

use citadel_identity::TrustDomain;
use citadel_runtime::{client::Address, config::Checker};
use serde::Deserialize;

use super::{External, StateFolder, read_token};
use crate::ca_client::FirstTrust;

/// Where the agent's own SVID is kept where nothing is said.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/citadel-agent";

/// As it is written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExternalConfig {
    /// Folder of the agent's own SVID and key, mode 0700; made where it is missing.
    pub state_dir: PathBuf,
    /// File with a join token, used once; `citadel node join` needs none.
    pub join_token_file: Option<PathBuf>,
    /// The node's own X.509 certificate, in place of a token.
    pub x509pop: Option<CertificateFiles>,
}

/// A certificate with its key, in PEM; read again for each use.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CertificateFiles {
    /// The chain, leaf first.
    pub certificate_file: PathBuf,
    /// Its private key.
    pub key_file: PathBuf,
}

impl Default for ExternalConfig {
    fn default() -> Self {
        Self {
            state_dir: DEFAULT_STATE_DIR.into(),
            join_token_file: None,
            x509pop: None,
        }
    }
}

/// What the node was told when it joined, or is told by its token.
#[derive(Debug, Clone)]
pub struct Known {
    /// The trust domain.
    pub trust_domain: TrustDomain,
    /// `host:port` of the CA.
    pub addresses: Vec<String>,
    /// Whom to take for the CA.
    pub first_trust: FirstTrust,
}

impl ExternalConfig {
    /// What is kept, else what the token says.
    pub(crate) fn known(&self, check: &mut Checker<'_>) -> Option<Known> {
        if !self.state_dir.is_absolute() {
            check.problem(
                "external.state_dir",
                "is not an absolute path",
                "write one like /var/lib/citadel-agent",
            );
            return None;
        }
        if self.join_token_file.is_some() && self.x509pop.is_some() {
            check.problem(
                "external.x509pop",
                "is set beside external.join_token_file",
                "keep one of the two",
            );
        }
        let kept = match StateFolder::at(&self.state_dir).read() {
            Ok(kept) => kept,
            Err(error) => {
                check.problem(
                    "external.state_dir",
                    error,
                    "mend it, or name another folder",
                );
                return None;
            }
        };
        if let Some(kept) = kept {
            return Some(Known {
                first_trust: FirstTrust::Kept(kept.bundles()),
                trust_domain: kept.trust_domain,
                addresses: kept.ca_addresses,
            });
        }
        let path = self.join_token_file.as_deref()?;
        match read_token(path) {
            Ok(token) => token.map(|token| Known {
                trust_domain: token.trust_domain,
                addresses: token.ca_addresses,
                first_trust: FirstTrust::RootSha256(token.root_sha256),
            }),
            Err(error) => {
                check.problem(
                    "external.join_token_file",
                    error,
                    "write the token there as `citadel node token create` printed it",
                );
                None
            }
        }
    }

    /// The credential.
    pub(crate) fn open(&self) -> Result<External, super::StateError> {
        let folder = StateFolder::open(&self.state_dir)?;
        let external = External::open(folder, self.join_token_file.clone())?;
        Ok(external.with_certificate(self.x509pop.clone()))
    }
}

/// Addresses that were checked before they were written down.
pub(crate) fn addresses(texts: &[String]) -> Vec<Address> {
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}
