//! A node outside Kubernetes: what its agent proves itself by, and keeps over a restart.

mod config;
mod state;

use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use citadel_identity::{
    TrustDomain,
    bundle::{self, Bundle, BundleSet},
    join_token::{self, JoinToken},
    key::WorkloadKey,
    x509pop::NodeKey,
};
use zeroize::Zeroizing;

pub(crate) use config::addresses;
pub use config::{CertificateFiles, DEFAULT_STATE_DIR, ExternalConfig, Known};
pub use state::{Kept, StateError, StateFolder};

/// What the operator of a node is told to do once its agent can't prove itself any more.
pub const JOIN_ANEW: &str = "make a token at the CA (`citadel node token create --node NAME`) and \
                             run `citadel node join TOKEN` on this node";

/// The agent's own credential outside of Kubernetes.
#[derive(Debug)]
pub struct External {
    folder: StateFolder,
    token_file: Option<PathBuf>,
    certificate: Option<CertificateFiles>,
    inner: Mutex<Inner>,
}

/// What the node joins by.
pub(crate) enum Joining {
    /// A token, and the key that it is shown with.
    Token(JoinToken, Arc<WorkloadKey>),
    /// Its own certificate, DER, leaf first.
    Certificate(Vec<Vec<u8>>, NodeKey),
}

#[derive(Debug, Default)]
struct Inner {
    kept: Option<Arc<Kept>>,
    /// The key that a token was shown with: the answer may have been lost, and the CA admits
    /// that key alone.
    shown: Option<([u8; join_token::ID_BYTES], Arc<WorkloadKey>)>,
    /// A token from the command line.
    given: Option<JoinToken>,
}

/// Why there is nothing to prove the node by.
#[derive(Debug, thiserror::Error)]
pub enum ExternalError {
    /// See [`StateError`].
    #[error(transparent)]
    State(#[from] StateError),
    /// The file with the join token can't be used.
    #[error("join token file {path}: {reason}")]
    TokenFile {
        /// Which file.
        path: String,
        /// Why.
        reason: String,
    },
    /// The node's certificate can't be used.
    #[error("{path}: {reason}")]
    Certificate {
        /// Which file.
        path: String,
        /// Why.
        reason: String,
    },
    /// A key can't be made.
    #[error("{0}")]
    Key(#[from] citadel_identity::key::KeyError),
    /// The token is of another trust domain than this agent.
    #[error("the join token is of trust domain {0}")]
    OtherTrustDomain(TrustDomain),
    /// The node joined, and its SVID is of no use any more.
    #[error(
        "this node joined with token {id}, which works once, and its SVID has ended since (the \
         node or its CA was away for longer than it lives, or an operator evicted the node): \
         {JOIN_ANEW}"
    )]
    Ended {
        /// The token.
        id: String,
    },
    /// There was never a token.
    #[error("this node has not joined yet: {JOIN_ANEW}")]
    NotJoined,
}

impl External {
    /// With what the folder holds now.
    ///
    /// # Errors
    /// The folder or what it holds can't be used.
    pub fn open(folder: StateFolder, token_file: Option<PathBuf>) -> Result<Self, StateError> {
        let kept = folder.read()?.map(Arc::new);
        Ok(Self {
            folder,
            token_file,
            certificate: None,
            inner: Mutex::new(Inner {
                kept,
                ..Inner::default()
            }),
        })
    }

    /// To join by this certificate, where there is one.
    #[must_use]
    pub fn with_certificate(self, certificate: Option<CertificateFiles>) -> Self {
        Self {
            certificate,
            ..self
        }
    }

    /// What to join by now.
    pub(crate) fn joining(&self, trust_domain: &TrustDomain) -> Result<Joining, ExternalError> {
        match &self.certificate {
            Some(files) => files.read(),
            None => self
                .token(trust_domain)
                .map(|(token, key)| Joining::Token(token, key)),
        }
    }

    /// To join with this token, whatever the folder holds.
    pub fn with_token(folder: StateFolder, token: JoinToken) -> Self {
        Self {
            folder,
            token_file: None,
            certificate: None,
            inner: Mutex::new(Inner {
                given: Some(token),
                ..Inner::default()
            }),
        }
    }

    /// What is kept: read again, since `citadel node join` may have put something else there.
    pub(crate) fn kept(&self) -> Result<Option<Arc<Kept>>, StateError> {
        let read = self.folder.read()?.map(Arc::new);
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.kept.clone_from(&read);
        Ok(read)
    }

    /// The token to join with now, and the key to ask for.
    fn token(
        &self,
        trust_domain: &TrustDomain,
    ) -> Result<(JoinToken, Arc<WorkloadKey>), ExternalError> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let token = match &inner.given {
            Some(token) => Some(token.clone()),
            None => self
                .token_file
                .as_deref()
                .map(read_token)
                .transpose()?
                .flatten(),
        };
        let joined = inner.kept.as_ref().and_then(|kept| kept.joined_with);
        let token = match (token, joined) {
            (Some(token), Some(joined)) if token.id == joined => {
                let id = hex::encode(joined);
                return Err(ExternalError::Ended { id });
            }
            (None, Some(joined)) => {
                let id = hex::encode(joined);
                return Err(ExternalError::Ended { id });
            }
            (None, None) => return Err(ExternalError::NotJoined),
            (Some(token), _) => token,
        };
        if token.trust_domain != *trust_domain {
            return Err(ExternalError::OtherTrustDomain(token.trust_domain));
        }
        if let Some((_, key)) = inner.shown.as_ref().filter(|(id, _)| *id == token.id) {
            let key = Arc::clone(key);
            return Ok((token, key));
        }
        let key = Arc::new(WorkloadKey::generate()?);
        inner.shown = Some((token.id, Arc::clone(&key)));
        Ok((token, key))
    }

    /// Keeps an SVID and the bundle that it came with; `joined_with` where a token was used.
    pub(crate) fn keep(
        &self,
        chain: Vec<Vec<u8>>,
        key: &WorkloadKey,
        bundle: &Bundle,
        addresses: Vec<String>,
        joined_with: Option<[u8; join_token::ID_BYTES]>,
    ) -> Result<(), StateError> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let before = inner.kept.as_ref().and_then(|kept| kept.joined_with);
        let kept = Kept {
            trust_domain: bundle.trust_domain.clone(),
            ca_addresses: addresses,
            joined_with: joined_with.or(before),
            chain,
            key: Zeroizing::new(key.pkcs8_der().to_vec()),
            authorities: authorities(bundle),
        };
        self.folder.write(&kept)?;
        inner.kept = Some(Arc::new(kept));
        if joined_with.is_some() {
            inner.shown = None;
        }
        Ok(())
    }

    /// Keeps the roots as they are now.
    pub(crate) fn keep_bundle(&self, bundle: &Bundle) -> Result<(), StateError> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(kept) = &inner.kept else {
            return Ok(());
        };
        let authorities = authorities(bundle);
        if kept.authorities == authorities {
            return Ok(());
        }
        let kept = Kept {
            authorities,
            ..Kept::clone(kept)
        };
        self.folder.write(&kept)?;
        inner.kept = Some(Arc::new(kept));
        Ok(())
    }
}

fn authorities(bundle: &Bundle) -> Vec<Vec<u8>> {
    let authorities = bundle.authorities.iter();
    authorities.map(|der| der.as_ref().to_vec()).collect()
}

impl Kept {
    /// The roots of the agent's trust domain.
    pub(crate) fn bundles(&self) -> BundleSet {
        let authorities = self.authorities.iter().cloned().map(Into::into).collect();
        BundleSet::from(Bundle::new(self.trust_domain.clone(), authorities))
    }
}

/// Bytes of a file with a certificate or a key at most.
const MAX_FILE: u64 = 256 * 1024;

impl CertificateFiles {
    fn read(&self) -> Result<Joining, ExternalError> {
        let text = bounded(&self.certificate_file)?;
        let chain = bundle::certificates_from_pem(&text)
            .map_err(|error| unusable(&self.certificate_file, &error))?;
        if chain.is_empty() {
            return Err(unusable(&self.certificate_file, &"no certificate in it"));
        }
        let key = bounded(&self.key_file)?;
        let key = NodeKey::from_pem(&key).map_err(|error| unusable(&self.key_file, &error))?;
        let chain = chain.iter().map(|der| der.as_ref().to_vec()).collect();
        Ok(Joining::Certificate(chain, key))
    }
}

fn bounded(path: &Path) -> Result<Zeroizing<Vec<u8>>, ExternalError> {
    let mut bytes = Zeroizing::new(Vec::new());
    File::open(path)
        .and_then(|file| file.take(MAX_FILE).read_to_end(&mut bytes))
        .map_err(|error| unusable(path, &error))?;
    Ok(bytes)
}

fn unusable(path: &Path, error: &dyn std::fmt::Display) -> ExternalError {
    ExternalError::Certificate {
        path: path.display().to_string(),
        reason: error.to_string(),
    }
}

/// The token in a file; `None` where there is no file (any more): it is used once.
fn read_token(path: &Path) -> Result<Option<JoinToken>, ExternalError> {
    let failed = |reason: String| ExternalError::TokenFile {
        path: path.display().to_string(),
        reason,
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error.to_string())),
    };
    let mut text = Zeroizing::new(String::new());
    file.take(join_token::MAX_TEXT as u64 + 1)
        .read_to_string(&mut text)
        .map_err(|error| failed(error.to_string()))?;
    JoinToken::parse(&text)
        .map(Some)
        .map_err(|error| failed(error.to_string()))
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
