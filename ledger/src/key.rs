//! The log's key: Ed25519, with a name, as signed notes have it.

use std::{fmt, str::FromStr};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use citadel_identity::{
    crypto::{CryptoError, Ed25519Key, sha256_of, verify_ed25519},
    pem,
};
use thiserror::Error;
use zeroize::Zeroizing;

/// Signature type of Ed25519 in a note's key (C2SP signed-note).
const ED25519: u8 = 1;

/// Bytes of a key's name at most; C2SP sets no limit.
const MAX_NAME: usize = 512;

/// A key is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum KeyError {
    /// The name can't stand in a note.
    #[error("{0:?} is no name of a key: 1 to 512 bytes without spaces, controls or +")]
    Name(String),
    /// Not the form of a verifier key.
    #[error("no verifier key: it is written NAME+ID+KEY, with 8 hex digits and base64")]
    Verifier,
    /// The ID is not the one of this name and key.
    #[error("the verifier key's ID is not the one of its name and key")]
    Id,
    /// The file has something else.
    #[error("the file has no single private key in PKCS#8 PEM")]
    Pem,
    /// The private key itself.
    #[error(transparent)]
    Crypto(#[from] CryptoError),
}

/// The key that the log signs its checkpoints with.
pub struct LogKey {
    key: Ed25519Key,
    verifier: VerifierKey,
}

/// A log's public key with its name: all that verifying takes. Written as
/// `NAME+ID+KEY`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct VerifierKey {
    name: String,
    id: u32,
    public: [u8; 32],
}

// === impl LogKey ===

impl LogKey {
    /// A fresh key of this name.
    pub fn generate(name: &str) -> Result<Self, KeyError> {
        Self::new(name, Ed25519Key::generate()?)
    }

    /// From PEM with one PKCS#8 key (RFC 8410).
    pub fn from_pem(name: &str, text: &[u8]) -> Result<Self, KeyError> {
        let blocks = pem::decode(text, 4096).map_err(|_| KeyError::Pem)?;
        match blocks.as_slice() {
            [block] if block.label == pem::PRIVATE_KEY => {
                Self::new(name, Ed25519Key::from_pkcs8(&block.der)?)
            }
            _ => Err(KeyError::Pem),
        }
    }

    fn new(name: &str, key: Ed25519Key) -> Result<Self, KeyError> {
        let verifier = VerifierKey::new(name, *key.public())?;
        Ok(Self { key, verifier })
    }

    /// The key as PKCS#8 PEM, to be written to a file of mode 0600.
    pub fn to_pem(&self) -> Zeroizing<String> {
        pem::encode(pem::PRIVATE_KEY, self.key.pkcs8())
    }

    /// The public key with its name.
    pub fn verifier(&self) -> &VerifierKey {
        &self.verifier
    }

    pub(crate) fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.key.sign(message)
    }
}

impl fmt::Debug for LogKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LogKey({}, redacted)", self.verifier)
    }
}

// === impl VerifierKey ===

impl VerifierKey {
    /// This public key under this name.
    pub fn new(name: &str, public: [u8; 32]) -> Result<Self, KeyError> {
        if !is_name(name) {
            return Err(KeyError::Name(name.to_owned()));
        }
        let digest = sha256_of(&[name.as_bytes(), b"\n", &[ED25519], &public]);
        let [a, b, c, d, ..] = digest;
        Ok(Self {
            name: name.to_owned(),
            id: u32::from_be_bytes([a, b, c, d]),
            public,
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its ID: the first four bytes of a hash over name and key.
    pub fn id(&self) -> u32 {
        self.id
    }

    pub(crate) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        verify_ed25519(&self.public, message, signature)
    }
}

impl fmt::Display for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = STANDARD.encode([&[ED25519], self.public.as_slice()].concat());
        write!(f, "{}+{:08x}+{key}", self.name, self.id)
    }
}

impl FromStr for VerifierKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let mut parts = text.trim_end().splitn(3, '+');
        let (Some(name), Some(id), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(KeyError::Verifier);
        };
        let bytes = (key.len() == 44)
            .then(|| STANDARD.decode(key).ok())
            .flatten();
        let Some([ED25519, public @ ..]) = bytes.as_deref() else {
            return Err(KeyError::Verifier);
        };
        let public = public.try_into().map_err(|_| KeyError::Verifier)?;
        let key = Self::new(name, public)?;
        if format!("{:08x}", key.id) == id {
            Ok(key)
        } else {
            Err(KeyError::Id)
        }
    }
}

/// Whether this may name a key (C2SP signed-note).
pub(crate) fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= MAX_NAME
        && !name
            .chars()
            .any(|one| one.is_whitespace() || one.is_control() || one == '+')
}
