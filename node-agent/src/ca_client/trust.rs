//! Whom the agent takes for its CA.
//!
//! First trust is a bundle file or the SHA-256 of a root, never what the first answer
//! says. After first contact the CA's own stream of bundles counts, and the file again
//! whenever someone has changed it.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use citadel_identity::{
    TrustDomain,
    bundle::{Bundle, BundleSet},
    crypto, template,
    tls::{BundleHandle, ServerVerifier, Trust},
};
use rustls::{ClientConfig, client::ResolvesClientCert};
use tokio::sync::watch;

/// The longest bundle file, in bytes.
const MAX_BUNDLE_FILE: u64 = 4 * 1024 * 1024;

/// What the operator gave the agent to know its CA by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FirstTrust {
    /// PEM certificates of the trust domain's roots. Read again when it changes.
    BundleFile(PathBuf),
    /// SHA-256 of the DER of a root that the CA presents in its chain.
    RootSha256([u8; 32]),
    /// Roots that an authenticated CA sent before a restart.
    Kept(BundleSet),
}

/// Why there is nothing to know the CA by.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The bundle file can't be read.
    #[error("bundle file {path}: {error}")]
    File {
        /// Which file.
        path: String,
        /// Why.
        error: io::Error,
    },
    /// The bundle file holds no usable roots.
    #[error("bundle file {path} holds no trust bundle: {reason}")]
    Content {
        /// Which file.
        path: String,
        /// Why.
        reason: String,
    },
    /// TLS can't be set up.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// The trust of the moment, and the bundles that are handed to workloads.
pub(super) struct TrustStore {
    trust_domain: TrustDomain,
    first: FirstTrust,
    /// For the verifier: what counts now.
    handle: BundleHandle,
    state: Mutex<State>,
    /// For workloads: only what an authenticated CA sent.
    published: watch::Sender<Option<Arc<BundleSet>>>,
}

#[derive(Default)]
struct State {
    /// What was last read from the file, to notice a change.
    file: Option<Vec<u8>>,
    contacted: bool,
}

impl TrustStore {
    pub(super) fn new(trust_domain: TrustDomain, first: FirstTrust) -> Self {
        let handle = match &first {
            FirstTrust::Kept(kept) => BundleHandle::new(kept.clone()),
            FirstTrust::BundleFile(_) | FirstTrust::RootSha256(_) => BundleHandle::default(),
        };
        Self {
            trust_domain,
            first,
            handle,
            state: Mutex::default(),
            published: watch::Sender::new(None),
        }
    }

    pub(super) fn published(&self) -> watch::Receiver<Option<Arc<BundleSet>>> {
        self.published.subscribe()
    }

    /// The TLS configuration for one connection. `client` presents the agent's SVID.
    pub(super) fn tls(
        &self,
        client: Option<Arc<dyn ResolvesClientCert>>,
    ) -> Result<ClientConfig, TrustError> {
        self.tls_by(self.trust()?, client)
    }

    /// The same with a trust of its own: a join token's.
    pub(super) fn tls_by(
        &self,
        trust: Trust,
        client: Option<Arc<dyn ResolvesClientCert>>,
    ) -> Result<ClientConfig, TrustError> {
        let verifier = ServerVerifier::new(template::ca_id(&self.trust_domain), trust);
        let builder = ClientConfig::builder_with_provider(crypto::provider())
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match client {
            Some(resolver) => builder.with_client_cert_resolver(resolver),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        // A resumed session would skip the check of a chain that is trusted no more.
        config.resumption = rustls::client::Resumption::disabled();
        Ok(config)
    }

    fn trust(&self) -> Result<Trust, TrustError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match &self.first {
            FirstTrust::RootSha256(digest) if !state.contacted => Ok(Trust::RootSha256(*digest)),
            FirstTrust::RootSha256(_) | FirstTrust::Kept(_) => {
                Ok(Trust::Bundles(self.handle.clone()))
            }
            FirstTrust::BundleFile(path) => {
                match self.read_if_changed(path, &mut state) {
                    Ok(Some(set)) => self.handle.replace(Arc::new(set)),
                    Ok(None) => {}
                    // Once there is something to go by, a broken file changes nothing.
                    Err(error) if state.file.is_some() || state.contacted => {
                        tracing::warn!(%error, "the changed bundle file is ignored");
                    }
                    Err(error) => return Err(error),
                }
                Ok(Trust::Bundles(self.handle.clone()))
            }
        }
    }

    fn read_if_changed(
        &self,
        path: &Path,
        state: &mut State,
    ) -> Result<Option<BundleSet>, TrustError> {
        let named = || path.display().to_string();
        let mut bytes = Vec::new();
        File::open(path)
            .and_then(|file| file.take(MAX_BUNDLE_FILE).read_to_end(&mut bytes))
            .map_err(|error| TrustError::File {
                path: named(),
                error,
            })?;
        if state.file.as_ref() == Some(&bytes) {
            return Ok(None);
        }
        let bundle = Bundle::from_pem(self.trust_domain.clone(), &bytes).map_err(|error| {
            TrustError::Content {
                path: named(),
                reason: error.to_string(),
            }
        })?;
        if bundle.authorities.is_empty() {
            let reason = "it has no certificate".to_owned();
            return Err(TrustError::Content {
                path: named(),
                reason,
            });
        }
        if state.file.is_some() {
            tracing::info!(path = named(), "the bundle file has changed");
        }
        state.file = Some(bytes);
        let mut set = (*self.handle.current()).clone();
        set.insert(bundle);
        Ok(Some(set))
    }

    /// Goes by roots that another process of this node was sent by an authenticated CA.
    pub(super) fn adopt(&self, kept: BundleSet) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.contacted = true;
        self.handle.replace(kept);
    }

    /// Takes over the bundles that an authenticated CA sent.
    pub(super) fn update(&self, set: BundleSet) {
        // Without a root of its own trust domain the agent could never reach its CA
        // again, and every workload would distrust every other.
        if set
            .get(&self.trust_domain)
            .is_none_or(|bundle| bundle.authorities.is_empty())
        {
            tracing::warn!("the CA sent no bundle of its own trust domain: ignored");
            return;
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.contacted = true;
        let set = Arc::new(set);
        self.handle.replace(Arc::clone(&set));
        drop(state);
        self.published.send_if_modified(|published| {
            let changed = published.as_ref() != Some(&set);
            *published = Some(set);
            changed
        });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use std::time::Duration;

    use super::*;
    use crate::testing::{Pki, trust_domain};

    fn bundle(authorities: Vec<rustls::pki_types::CertificateDer<'static>>) -> BundleSet {
        let mut set = BundleSet::default();
        set.insert(Bundle {
            trust_domain: trust_domain(),
            authorities,
            sequence: 1,
            refresh_hint: Duration::from_mins(5),
        });
        set
    }

    #[test]
    fn an_update_without_a_root_of_our_own_is_not_taken() {
        let store = TrustStore::new(trust_domain(), FirstTrust::RootSha256([7; 32]));
        let published = store.published();
        assert!(matches!(store.trust().unwrap(), Trust::RootSha256(_)));
        store.update(BundleSet::default());
        store.update(bundle(Vec::new()));
        assert!(published.borrow().is_none());
        assert!(matches!(store.trust().unwrap(), Trust::RootSha256(_)));
        let pki = Pki::new();
        store.update(bundle(vec![pki.root()]));
        store.update(bundle(Vec::new()));
        assert_eq!(**published.borrow().as_ref().unwrap(), pki.bundles());
        assert!(matches!(store.trust().unwrap(), Trust::Bundles(_)));
    }

    #[test]
    fn after_contact_the_file_counts_only_when_it_has_changed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("root-cert.pem");
        let write = |pki: &Pki| {
            let pem = citadel_identity::pem::encode("CERTIFICATE", &pki.root());
            std::fs::write(&path, pem.as_bytes()).unwrap();
        };
        let (first, streamed, replaced) = (Pki::new(), Pki::new(), Pki::new());
        write(&first);
        let store = TrustStore::new(trust_domain(), FirstTrust::BundleFile(path.clone()));
        let trusted = || {
            let Trust::Bundles(handle) = store.trust().unwrap() else {
                panic!("not bundles")
            };
            handle
                .current()
                .get(&trust_domain())
                .unwrap()
                .authorities
                .clone()
        };
        assert_eq!(trusted(), [first.root()]);
        // Workloads get only what an authenticated CA sent.
        assert!(store.published().borrow().is_none());
        store.update(streamed.bundles());
        assert_eq!(trusted(), [streamed.root()]);
        std::fs::write(&path, "not a certificate").unwrap();
        assert_eq!(trusted(), [streamed.root()]);
        write(&replaced);
        assert_eq!(trusted(), [replaced.root()]);
    }
}
