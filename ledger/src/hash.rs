//! The hashes of the tree (RFC 6962, section 2.1): SHA-256 with a prefix that tells a
//! leaf from an inner node.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use citadel_identity::crypto::sha256_of;

/// A hash of the tree: of a leaf, of an inner node or of the root.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hash([u8; Hash::BYTES]);

/// The hash of an entry as a leaf.
pub fn leaf_hash(entry: &[u8]) -> Hash {
    Hash(sha256_of(&[&[0], entry]))
}

/// The hash of an inner node over its two children.
pub fn node_hash(left: Hash, right: Hash) -> Hash {
    Hash(sha256_of(&[&[1], &left.0, &right.0]))
}

/// The root of the tree without leaves: the hash of nothing.
pub fn empty_root() -> Hash {
    Hash(sha256_of(&[]))
}

// === impl Hash ===

impl Hash {
    /// Size of a hash.
    pub const BYTES: usize = 32;

    /// From exactly 32 bytes.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// From standard base64 with its padding, as `Display` writes it.
    pub fn from_base64(text: &str) -> Option<Self> {
        // Nothing else decodes to 32 bytes, and nothing longer is even looked at.
        (text.len() == 44)
            .then(|| STANDARD.decode(text).ok())
            .flatten()
            .and_then(|bytes| Self::from_slice(&bytes))
    }

    /// Its 32 bytes.
    pub fn as_bytes(&self) -> &[u8; Self::BYTES] {
        &self.0
    }
}

impl From<[u8; Hash::BYTES]> for Hash {
    fn from(bytes: [u8; Hash::BYTES]) -> Self {
        Self(bytes)
    }
}

/// Standard base64 (RFC 4648, section 4), as checkpoints and proofs carry it.
impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
