//! The join token of a node outside Kubernetes, as its operator carries it from the CA to the
//! node: what the node proves itself by, and whom it takes for its CA.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use spiffe::TrustDomain;
use thiserror::Error;
use zeroize::{Zeroize as _, Zeroizing};

use crate::crypto;

/// What each token begins with: tools that look for leaked secrets find it.
const PREFIX: &str = "citadel-join-1.";

/// Bytes of a token's text at most.
pub const MAX_TEXT: usize = 8 * 1024;

/// Addresses of the CA at most.
pub const MAX_ADDRESSES: usize = 16;

/// Bytes of an id.
pub const ID_BYTES: usize = 16;

/// Bytes of a secret.
pub const SECRET_BYTES: usize = 32;

/// A join token. Prints nothing of its secret, which is wiped when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// The trust domain that is joined.
    pub trust_domain: TrustDomain,
    /// `host:port` of the CA, tried in turn; 1 to [`MAX_ADDRESSES`].
    pub ca_addresses: Vec<String>,
    /// SHA-256 of the DER of the CA's root.
    pub root_sha256: [u8; 32],
    /// The node that it admits: for people, the CA goes by its own record.
    pub node: String,
    /// Names the token.
    pub id: [u8; ID_BYTES],
    /// Proves it.
    pub secret: Zeroizing<[u8; SECRET_BYTES]>,
}

/// Why a text is no join token. Never a part of the text.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum JoinTokenError {
    /// It does not begin as one.
    #[error("that is no join token: one begins with {PREFIX}")]
    Prefix,
    /// It is longer than any.
    #[error("a join token has at most {MAX_TEXT} bytes")]
    TooLong,
    /// It was cut or changed on its way.
    #[error("the join token is damaged: copy it as a whole")]
    Damaged,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    td: String,
    ca: Vec<String>,
    root: String,
    node: String,
    id: String,
    secret: String,
}

impl Drop for Written {
    fn drop(&mut self) {
        self.secret.zeroize();
    }
}

impl JoinToken {
    /// A token with a new id and a new secret.
    pub fn generate(
        trust_domain: TrustDomain,
        ca_addresses: Vec<String>,
        root_sha256: [u8; 32],
        node: String,
    ) -> Self {
        Self {
            trust_domain,
            ca_addresses,
            root_sha256,
            node,
            id: crypto::random(),
            secret: Zeroizing::new(crypto::random()),
        }
    }

    /// SHA-256 of the secret: all that the CA keeps of it.
    pub fn secret_sha256(&self) -> [u8; 32] {
        crypto::sha256(self.secret.as_slice())
    }

    /// The text, one word.
    pub fn encode(&self) -> Zeroizing<String> {
        let written = Written {
            td: self.trust_domain.to_string(),
            ca: self.ca_addresses.clone(),
            root: hex::encode(self.root_sha256),
            node: self.node.clone(),
            id: hex::encode(self.id),
            secret: hex::encode(self.secret.as_slice()),
        };
        // A struct of strings is always JSON.
        let json = Zeroizing::new(serde_json::to_vec(&written).unwrap_or_default());
        let mut text = Zeroizing::new(PREFIX.to_owned());
        URL_SAFE_NO_PAD.encode_string(json.as_slice(), &mut text);
        text
    }

    /// Reads a text; blanks around it do not count.
    pub fn parse(text: &str) -> Result<Self, JoinTokenError> {
        let text = text.trim();
        if text.len() > MAX_TEXT {
            return Err(JoinTokenError::TooLong);
        }
        let body = text.strip_prefix(PREFIX).ok_or(JoinTokenError::Prefix)?;
        Self::read(body).ok_or(JoinTokenError::Damaged)
    }

    fn read(body: &str) -> Option<Self> {
        let json = Zeroizing::new(URL_SAFE_NO_PAD.decode(body).ok()?);
        let mut written: Written = serde_json::from_slice(&json).ok()?;
        let trust_domain = TrustDomain::new(&written.td).ok()?;
        if written.ca.is_empty() || written.ca.len() > MAX_ADDRESSES {
            return None;
        }
        let (mut root_sha256, mut id) = ([0; 32], [0; ID_BYTES]);
        let mut secret = Zeroizing::new([0; SECRET_BYTES]);
        hex::decode_to_slice(&written.root, &mut root_sha256).ok()?;
        hex::decode_to_slice(&written.id, &mut id).ok()?;
        hex::decode_to_slice(written.secret.as_bytes(), secret.as_mut_slice()).ok()?;
        Some(Self {
            trust_domain,
            ca_addresses: std::mem::take(&mut written.ca),
            root_sha256,
            node: std::mem::take(&mut written.node),
            id,
            secret,
        })
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken")
            .field("id", &hex::encode(self.id))
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn token() -> JoinToken {
        JoinToken::generate(
            TrustDomain::new("example.org").unwrap(),
            vec!["ca.example.org:15012".into(), "[::1]:15012".into()],
            [7; 32],
            "vm-1".into(),
        )
    }

    #[test]
    fn a_token_survives_its_text_and_is_another_each_time() {
        let one = token();
        assert_eq!(
            JoinToken::parse(&format!(" {}\n", *one.encode())),
            Ok(one.clone())
        );
        let two = token();
        assert!(one.id != two.id && one.secret != two.secret);
        assert_eq!(one.secret_sha256(), crypto::sha256(one.secret.as_slice()));
    }

    #[test]
    fn debug_and_errors_show_nothing_of_the_secret() {
        let token = token();
        let secret = hex::encode(token.secret.as_slice());
        assert!(!format!("{token:?}").contains(&secret));
        let text = token.encode();
        let damaged = JoinToken::parse(&text[..text.len() - 4]).unwrap_err();
        assert_eq!(damaged, JoinTokenError::Damaged);
        assert_eq!(JoinToken::parse("eyJhbGciOi"), Err(JoinTokenError::Prefix));
        let long = format!("{PREFIX}{}", "A".repeat(MAX_TEXT));
        assert_eq!(JoinToken::parse(&long), Err(JoinTokenError::TooLong));
    }

    proptest! {
        #[test]
        fn any_text_parses_or_fails(body in ".{0,200}") {
            let _ = JoinToken::parse(&body);
            let _ = JoinToken::parse(&format!("{PREFIX}{body}"));
            let _ = JoinToken::parse(&format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(body)));
        }
    }
}
