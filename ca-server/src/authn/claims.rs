//! The claims of a Kubernetes service-account token, and what can be said of them
//! before anything asymmetric is computed.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{
    Deserialize, Deserializer,
    de::{SeqAccess, Visitor},
};

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

/// `aud`: a string or an array of strings (RFC 7519, section 4.1.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Audience(Vec<String>);

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
        match self.0.as_slice() {
            [audience] => Some(audience),
            _ => None,
        }
    }
}

impl<'de> Deserialize<'de> for Audience {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AudienceVisitor)
    }
}

struct AudienceVisitor;

impl<'de> Visitor<'de> for AudienceVisitor {
    type Value = Audience;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or an array of strings")
    }

    fn visit_str<E>(self, audience: &str) -> Result<Audience, E> {
        Ok(Audience(vec![audience.to_owned()]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Audience, A::Error> {
        let mut several = Vec::with_capacity(1);
        while let Some(audience) = seq.next_element()? {
            several.push(audience);
        }
        Ok(Audience(several))
    }
}

/// A token in its parts, as it says they are: nothing is verified yet. It is decoded once;
/// what is verified later are the claims that were looked at here.
pub struct Unverified<'t> {
    /// The part of the header that matters.
    pub header: Header,
    /// The claims.
    pub claims: Claims,
    /// What the signature is over: header and claims, encoded, with the dot between them.
    pub signing_input: &'t [u8],
    /// The signature.
    pub signature: Vec<u8>,
}

// The token is a secret: whole, and in its parts.
impl fmt::Debug for Unverified<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unverified").finish_non_exhaustive()
    }
}

/// Takes a token apart.
pub fn parse(token: &str) -> Result<Unverified<'_>, ClaimsError> {
    if token.len() > MAX_TOKEN_BYTES {
        return Err(ClaimsError::TooLarge(token.len()));
    }
    let (signing_input, signature) = token.rsplit_once('.').ok_or(ClaimsError::NotCompact)?;
    let (header, claims) = signing_input
        .split_once('.')
        .ok_or(ClaimsError::NotCompact)?;
    Ok(Unverified {
        // A dot too many is no base64url.
        header: json("header", header)?,
        claims: json("claims", claims)?,
        signing_input: signing_input.as_bytes(),
        signature: base64url(signature)?,
    })
}

fn base64url(part: &str) -> Result<Vec<u8>, ClaimsError> {
    URL_SAFE_NO_PAD
        .decode(part)
        .map_err(|_| ClaimsError::NotCompact)
}

fn json<T: serde::de::DeserializeOwned>(part: &'static str, text: &str) -> Result<T, ClaimsError> {
    serde_json::from_slice(&base64url(text)?).map_err(|error| ClaimsError::Unreadable {
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
        let token = token(HEADER, CLAIMS);
        let Unverified {
            header,
            claims,
            signing_input,
            signature,
        } = parse(&token).unwrap();
        assert_eq!([signing_input, b".c2ln"].concat(), token.as_bytes());
        assert_eq!(signature, b"sig");
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
        let audience = |json: &str| serde_json::from_str::<Audience>(json);
        for (json, single) in [
            (r#"["a", "b"]"#, None),
            ("[]", None),
            (r#"["a"]"#, Some("a")),
            (r#""a""#, Some("a")),
            (r#""a\u0062""#, Some("ab")),
        ] {
            assert_eq!(audience(json).unwrap().single(), single, "{json}");
        }
        for json in ["null", "1", "{}", "[1]", r#"["a", null]"#, r#"[["a"]]"#] {
            assert!(audience(json).is_err(), "{json}");
        }
    }

    #[test]
    fn size_and_shape_are_refused_before_anything_is_decoded() {
        assert_eq!(
            parse(&"a".repeat(9_000)).unwrap_err(),
            ClaimsError::TooLarge(9_000)
        );
        assert_eq!(parse("a.b").unwrap_err(), ClaimsError::NotCompact);
        assert_eq!(parse("a.b.c.d").unwrap_err(), ClaimsError::NotCompact);
        assert_eq!(
            parse(&token(HEADER, CLAIMS).replace("c2ln", "+/==")).unwrap_err(),
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
            let _ = parse(&text);
        }

        #[test]
        fn mutated_tokens_never_panic(at in 0usize..300, byte in any::<u8>()) {
            let mut bytes = token(HEADER, CLAIMS).into_bytes();
            let at = at % bytes.len();
            bytes[at] = byte;
            let _ = parse(&String::from_utf8_lossy(&bytes));
        }
    }
}
