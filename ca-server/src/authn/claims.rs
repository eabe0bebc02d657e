//! The claims of a Kubernetes service-account token, and what can be said of them
//! before anything asymmetric is computed.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;

use crate::caller::ObjectRef;

/// A token's text may have this many bytes; a projected one has about 1,200.
pub const MAX_TOKEN_BYTES: usize = 8 * 1024;

/// Tolerated difference between the API server's clock and ours, in seconds.
pub const LEEWAY_SECONDS: i64 = 10;

/// Why a token can't even be looked at.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ClaimsError {
    /// Over [`MAX_TOKEN_BYTES`].
    #[error("token of {0} bytes, the limit is {MAX_TOKEN_BYTES}")]
    TooLarge(usize),
    /// Not three base64url parts.
    #[error("not a compact JWS")]
    NotCompact,
    /// Its header or its claims are not what a service-account token has.
    #[error("{part} can't be read: {reason}")]
    Unreadable {
        /// `header` or `claims`.
        part: &'static str,
        /// What is wrong; never the value.
        reason: String,
    },
}

/// The part of the header that matters.
#[derive(Debug, Deserialize)]
pub struct Header {
    /// The algorithm, as text: it may be one that we refuse.
    pub alg: String,
    /// Names the key.
    #[serde(default)]
    pub kid: Option<String>,
    /// Extensions that a verifier has to understand (RFC 7515, section 4.1.11): we know none.
    #[serde(default)]
    pub crit: Option<serde_json::Value>,
}

/// The claims of a service-account token.
#[derive(Clone, Debug, Deserialize)]
pub struct Claims {
    /// Issuer.
    pub iss: String,
    /// Subject: `system:serviceaccount:<namespace>:<account>`.
    pub sub: String,
    /// Audience: one string or several.
    pub aud: Audience,
    /// Expiry, seconds since the epoch.
    pub exp: i64,
    /// Start of validity, seconds since the epoch.
    #[serde(default)]
    pub nbf: Option<i64>,
    /// Token id; the log records it.
    #[serde(default)]
    pub jti: Option<String>,
    /// What the token is bound to.
    #[serde(default, rename = "kubernetes.io")]
    pub kubernetes: Option<Kubernetes>,
}

/// `aud`: RFC 7519 allows a string and an array of strings.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Audience {
    /// A bare string.
    One(String),
    /// An array.
    Several(Vec<String>),
}

/// The private claim `kubernetes.io`.
#[derive(Clone, Debug, Deserialize)]
pub struct Kubernetes {
    /// Namespace of the account.
    pub namespace: String,
    /// The account.
    pub serviceaccount: Reference,
    /// The pod that the token is bound to.
    #[serde(default)]
    pub pod: Option<Reference>,
    /// The node of that pod.
    #[serde(default)]
    pub node: Option<Reference>,
    /// The Secret that the token is bound to.
    #[serde(default)]
    pub secret: Option<Reference>,
}

/// An object by name and UID.
#[derive(Clone, Debug, Deserialize)]
pub struct Reference {
    /// Its name.
    pub name: String,
    /// Its UID; a node that is gone has none.
    #[serde(default)]
    pub uid: String,
}

impl From<Reference> for ObjectRef {
    fn from(reference: Reference) -> Self {
        Self {
            name: reference.name,
            uid: reference.uid,
        }
    }
}

impl Audience {
    /// The audience, if there is exactly one.
    pub fn single(&self) -> Option<&str> {
        match self {
            Self::One(audience) => Some(audience),
            Self::Several(several) => match several.as_slice() {
                [audience] => Some(audience),
                _ => None,
            },
        }
    }
}

/// Header and claims, as the token says they are: nothing is verified yet.
pub fn peek(token: &str) -> Result<(Header, Claims), ClaimsError> {
    if token.len() > MAX_TOKEN_BYTES {
        return Err(ClaimsError::TooLarge(token.len()));
    }
    let mut parts = token.split('.');
    let (Some(header), Some(claims), Some(signature), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(ClaimsError::NotCompact);
    };
    let is_base64url = |part: &str| {
        part.bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    if !is_base64url(signature) {
        return Err(ClaimsError::NotCompact);
    }
    Ok((
        decode_part("header", header)?,
        decode_part("claims", claims)?,
    ))
}

fn decode_part<T: serde::de::DeserializeOwned>(
    part: &'static str,
    text: &str,
) -> Result<T, ClaimsError> {
    let json = URL_SAFE_NO_PAD
        .decode(text)
        .map_err(|_| ClaimsError::NotCompact)?;
    serde_json::from_slice(&json).map_err(|error| ClaimsError::Unreadable {
        part,
        // serde_json's text may quote the value; its position does not.
        reason: format!("{:?} at byte {}", error.classify(), error.column()),
    })
}

/// Splits `system:serviceaccount:<namespace>:<account>`.
pub fn split_username(username: &str) -> Option<(&str, &str)> {
    let (namespace, account) = username
        .strip_prefix("system:serviceaccount:")?
        .split_once(':')?;
    let plain = !namespace.is_empty() && !account.is_empty() && !account.contains(':');
    plain.then_some((namespace, account))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn token(header: &str, claims: &str) -> String {
        let part = |json: &str| URL_SAFE_NO_PAD.encode(json);
        format!("{}.{}.c2ln", part(header), part(claims))
    }

    const HEADER: &str = r#"{"alg":"RS256","kid":"k1"}"#;
    const CLAIMS: &str = r#"{"iss":"https://api","sub":"system:serviceaccount:shop:web",
        "aud":["citadel"],"exp":10,"nbf":1,"kubernetes.io":{"namespace":"shop",
        "serviceaccount":{"name":"web","uid":"a"},"pod":{"name":"web-1","uid":"p"}}}"#;

    #[test]
    fn the_shape_of_a_projected_token_is_read() {
        let (header, claims) = peek(&token(HEADER, CLAIMS)).unwrap();
        assert_eq!(
            (header.alg.as_str(), header.kid.as_deref()),
            ("RS256", Some("k1"))
        );
        assert_eq!(claims.aud.single(), Some("citadel"));
        assert_eq!(claims.kubernetes.unwrap().pod.unwrap().uid, "p");
        assert_eq!(split_username(&claims.sub), Some(("shop", "web")));
    }

    #[test]
    fn an_audience_is_single_only_when_it_is_alone() {
        assert_eq!(
            Audience::Several(vec!["a".into(), "b".into()]).single(),
            None
        );
        assert_eq!(Audience::Several(vec![]).single(), None);
        assert_eq!(Audience::One("a".into()).single(), Some("a"));
    }

    #[test]
    fn size_and_shape_are_refused_before_anything_is_decoded() {
        assert_eq!(
            peek(&"a".repeat(9_000)).unwrap_err(),
            ClaimsError::TooLarge(9_000)
        );
        assert_eq!(peek("a.b").unwrap_err(), ClaimsError::NotCompact);
        assert_eq!(peek("a.b.c.d").unwrap_err(), ClaimsError::NotCompact);
        assert_eq!(
            peek(&token(HEADER, CLAIMS).replace("c2ln", "+/==")).unwrap_err(),
            ClaimsError::NotCompact
        );
    }

    #[test]
    fn usernames_that_only_look_alike_are_refused() {
        for name in [
            "system:serviceaccount:shop",
            "system:serviceaccount::web",
            "system:serviceaccount:shop:",
            "system:serviceaccount:a:b:c",
            "system:node:n",
        ] {
            assert_eq!(split_username(name), None, "{name}");
        }
    }

    proptest! {
        #[test]
        fn random_tokens_never_panic(text in ".{0,300}") {
            let _ = peek(&text);
        }

        #[test]
        fn mutated_tokens_never_panic(at in 0usize..300, byte in any::<u8>()) {
            let mut bytes = token(HEADER, CLAIMS).into_bytes();
            let at = at % bytes.len();
            bytes[at] = byte;
            let _ = peek(&String::from_utf8_lossy(&bytes));
        }
    }
}
