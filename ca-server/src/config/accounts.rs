//! Names of service accounts, of Kubernetes objects, and of administrators.

use std::{fmt, str::FromStr};

use citadel_identity::SpiffeId;

/// A service account, written `namespace/account`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AccountRef {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub account: String,
}

/// Who may administer: a SPIFFE ID, or a service account.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum AdminSubject {
    /// Whoever presents a certificate with this SPIFFE ID.
    SpiffeId(SpiffeId),
    /// Whoever presents a token of this account.
    Account(AccountRef),
}

/// Why a text names no account or administrator.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NameError {
    /// Not `namespace/account`.
    #[error("`{0}` is not namespace/account")]
    Account(String),
    /// Not a SPIFFE ID.
    #[error("`{id}` is not a SPIFFE ID: {problem}")]
    SpiffeId {
        /// As written.
        id: String,
        /// What is wrong.
        problem: String,
    },
}

/// Whether a text is the name of a namespace: a DNS label (RFC 1123).
pub(super) fn is_label(name: &str) -> bool {
    name.len() <= 63 && is_dns(name) && !name.contains('.')
}

/// Whether a text is the name of an account, node or config map: a DNS subdomain (RFC 1123).
pub(crate) fn is_subdomain(name: &str) -> bool {
    name.len() <= 253 && name.split('.').all(is_dns)
}

fn is_dns(label: &str) -> bool {
    let outer = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    outer(label.bytes().next()) && outer(label.bytes().last()) && label.bytes().all(inner)
}

// === impl AccountRef ===

impl FromStr for AccountRef {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        text.split_once('/')
            .filter(|(namespace, account)| is_label(namespace) && is_subdomain(account))
            .map(|(namespace, account)| Self {
                namespace: namespace.to_owned(),
                account: account.to_owned(),
            })
            .ok_or_else(|| NameError::Account(text.to_owned()))
    }
}

impl fmt::Display for AccountRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.account)
    }
}

// === impl AdminSubject ===

impl fmt::Display for AdminSubject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SpiffeId(id) => id.fmt(f),
            Self::Account(account) => account.fmt(f),
        }
    }
}

impl FromStr for AdminSubject {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.contains("://") {
            let id = SpiffeId::new(text).map_err(|error| NameError::SpiffeId {
                id: text.to_owned(),
                problem: error.to_string(),
            })?;
            return Ok(Self::SpiffeId(id));
        }
        text.parse().map(Self::Account)
    }
}
