//! Why the CA's key or certificates can't be used.

use std::{
    io,
    path::{Path, PathBuf},
};

use citadel_identity::{
    key,
    profile::{IssuerError, ProfileError},
};

/// The CA's key or certificates can't be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// A file or directory can't be read or written.
    #[error("{}: {action}: {source}", path.display())]
    Io {
        /// Which one.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// Something else than a file stands there.
    #[error("{}: is not a regular file; put the file itself there", .0.display())]
    NotAFile(PathBuf),
    /// Others may read or change it.
    #[error(
        "{path}: its mode is {mode:04o}, so others may {others}; run: chmod {wanted:o} {path}",
        path = path.display()
    )]
    Mode {
        /// Which file or directory.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// What others may do.
        others: &'static str,
        /// What the mode must be.
        wanted: u32,
    },
    /// It belongs to somebody else.
    #[error(
        "{path}: belongs to uid {owner}, neither to this process's uid {own} nor to root; \
         run: chown {own} {path}",
        path = path.display()
    )]
    Owner {
        /// Which file.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Our uid.
        own: u32,
    },
    /// Files are missing.
    #[error("{}: incomplete: {} missing; {fix}", directory.display(), list(missing))]
    Incomplete {
        /// Where.
        directory: PathBuf,
        /// Which.
        missing: Vec<&'static str>,
        /// What to do.
        fix: &'static str,
    },
    /// Two sets of files at once.
    #[error(
        "{}: holds Istio's files (ca-cert.pem, …) and those of a TLS secret (tls.crt, …); \
         keep one of the two sets", .0.display()
    )]
    TwoSets(PathBuf),
    /// A certificate file holds something else.
    #[error("{}: {problem}; put the PEM certificates there", path.display())]
    Certificates {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The key is encrypted.
    #[error(
        "{path}: the private key is encrypted; decrypt it: openssl pkey -in {path} -out …",
        path = .0.display()
    )]
    Encrypted(PathBuf),
    /// A key file holds no key that we can use.
    #[error("{}: {source}; put one unencrypted P-256, P-384 or RSA key there", path.display())]
    Key {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        source: key::KeyError,
    },
    /// Key, certificate, chain and roots do not make an issuer.
    #[error("{}: {source}; {}", directory.display(), fix_of(source))]
    Issuer {
        /// Where the files are.
        directory: PathBuf,
        /// What is wrong with which certificate.
        source: IssuerError,
    },
    /// The CA certificate is another trust domain's.
    #[error(
        "the CA certificate is for the trust domain {certificate}, but trust_domain is \
         {configured}; change the one or the other"
    )]
    TrustDomain {
        /// Of the certificate.
        certificate: String,
        /// Of the configuration.
        configured: String,
    },
    /// A key or certificate could not be made.
    #[error("the CA's own key or certificate could not be made: {0}")]
    Make(String),
    /// Another process is at it.
    #[error(
        "{}: another process is starting with this directory; give each server its own data_dir",
        .0.display()
    )]
    Busy(PathBuf),
}

impl KeyError {
    pub(super) fn io(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            path,
            action,
            source,
        }
    }
}

impl From<key::KeyError> for KeyError {
    fn from(error: key::KeyError) -> Self {
        Self::Make(error.to_string())
    }
}

impl From<ProfileError> for KeyError {
    fn from(error: ProfileError) -> Self {
        Self::Make(error.to_string())
    }
}

fn list(names: &[&str]) -> String {
    let verb = if names.len() == 1 { "is" } else { "are" };
    format!("{} {verb}", names.join(", "))
}

/// What helps against the defect.
fn fix_of(error: &IssuerError) -> &'static str {
    match error {
        IssuerError::KeyMismatch(_) => "put the certificate and the key of the same CA there",
        IssuerError::NoPath { .. } | IssuerError::Signature { .. } => {
            "put the intermediates into the chain and the root that they lead to beside it"
        }
        IssuerError::Expired { .. } => "have the certificate renewed",
        IssuerError::NotYetValid { .. } => "check this host's clock, or wait",
        _ => "use a certificate that was issued for a CA",
    }
}
