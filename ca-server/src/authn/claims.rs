//! The claims of a Kubernetes service-account token, and what can be said of them
//! before anything asymmetric is computed.

use std::{borrow::Cow, fmt, ops::Deref};

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

/// A string, borrowed where it has no escapes: in an `Option` or a sequence serde would copy a
/// bare `Cow`.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Text<'t>(#[serde(borrow)] Cow<'t, str>);

impl<'t> From<&'t str> for Text<'t> {
    fn from(text: &'t str) -> Self {
        Self(Cow::Borrowed(text))
    }
}

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

/// The part of the header that matters.
#[derive(Debug, Deserialize)]
pub struct Header<'t> {
    /// The algorithm, as text: it may be one that we refuse.
    #[serde(borrow)]
    pub alg: Cow<'t, str>,
    /// Names the key.
    #[serde(default, borrow)]
    pub kid: Option<Text<'t>>,
    /// Extensions that a verifier has to understand (RFC 7515, section 4.1.11): we know none.
    #[serde(default)]
    pub crit: Option<serde_json::Value>,
}

/// The claims of a service-account token.
#[derive(Clone, Debug, Deserialize)]
pub struct Claims<'t> {
    /// Issuer.
    #[serde(borrow)]
    pub iss: Cow<'t, str>,
    /// Subject: `system:serviceaccount:<namespace>:<account>`.
    #[serde(borrow)]
    pub sub: Cow<'t, str>,
    /// Audience: one string or several.
    #[serde(borrow)]
    pub aud: Audience<'t>,
    /// Expiry, seconds since the epoch.
    pub exp: i64,
    /// Start of validity, seconds since the epoch.
    #[serde(default)]
    pub nbf: Option<i64>,
    /// Token id; the log records it.
    #[serde(default, borrow)]
    pub jti: Option<Text<'t>>,
    /// What the token is bound to.
    #[serde(default, borrow, rename = "kubernetes.io")]
    pub kubernetes: Option<Kubernetes<'t>>,
}

/// `aud`: a string or an array of strings (RFC 7519, section 4.1.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Audience<'t> {
    /// Exactly one.
    Single(Cow<'t, str>),
    /// None, or several.
    Other,
}

/// The private claim `kubernetes.io`.
#[derive(Clone, Debug, Deserialize)]
pub struct Kubernetes<'t> {
    /// Namespace of the account.
    #[serde(borrow)]
    pub namespace: Cow<'t, str>,
    /// The account.
    #[serde(borrow)]
    pub serviceaccount: Reference<'t>,
    /// The pod that the token is bound to.
    #[serde(default, borrow)]
    pub pod: Option<Reference<'t>>,
    /// The node of that pod.
    #[serde(default, borrow)]
    pub node: Option<Reference<'t>>,
    /// The Secret that the token is bound to.
    #[serde(default, borrow)]
    pub secret: Option<Reference<'t>>,
}

/// An object by name and UID.
#[derive(Clone, Debug, Deserialize)]
pub struct Reference<'t> {
    /// Its name.
    #[serde(borrow)]
    pub name: Cow<'t, str>,
    /// Its UID; a node that is gone has none.
    #[serde(default, borrow)]
    pub uid: Cow<'t, str>,
}

impl From<&Reference<'_>> for ObjectRef {
    fn from(reference: &Reference<'_>) -> Self {
        Self {
            name: reference.name.clone().into_owned(),
            uid: reference.uid.clone().into_owned(),
        }
    }
}

impl Audience<'_> {
    /// The audience, if there is exactly one.
    pub fn single(&self) -> Option<&str> {
        match self {
            Self::Single(audience) => Some(audience),
            Self::Other => None,
        }
    }
}

impl<'de: 't, 't> Deserialize<'de> for Audience<'t> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AudienceVisitor)
    }
}

struct AudienceVisitor;

impl<'de> Visitor<'de> for AudienceVisitor {
    type Value = Audience<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or an array of strings")
    }

    fn visit_borrowed_str<E>(self, audience: &'de str) -> Result<Self::Value, E> {
        Ok(Audience::Single(Cow::Borrowed(audience)))
    }

    fn visit_str<E>(self, audience: &str) -> Result<Self::Value, E> {
        Ok(Audience::Single(Cow::Owned(audience.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let Some(Text(first)) = seq.next_element()? else {
            return Ok(Audience::Other);
        };
        let mut audience = Audience::Single(first);
        while seq.next_element::<Text<'de>>()?.is_some() {
            audience = Audience::Other;
        }
        Ok(audience)
    }
}

/// A token in its parts, decoded.
pub struct Parts<'t> {
    signing_input: &'t [u8],
    /// Header, claims and signature, one after the other.
    decoded: Vec<u8>,
    claims_at: usize,
    signature_at: usize,
}

/// A token as it says that it is: nothing is verified yet. What is verified later are the
/// claims that were looked at here.
pub struct Unverified<'t> {
    /// The part of the header that matters.
    pub header: Header<'t>,
    /// The claims.
    pub claims: Claims<'t>,
    /// What the signature is over: header and claims, encoded, with the dot between them.
    pub signing_input: &'t [u8],
    /// The signature.
    pub signature: &'t [u8],
}

// The token is a secret: whole, and in its parts.
impl fmt::Debug for Parts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts").finish_non_exhaustive()
    }
}

impl fmt::Debug for Unverified<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unverified").finish_non_exhaustive()
    }
}

impl<'t> Parts<'t> {
    /// Takes a token apart.
    pub fn decode(token: &'t str) -> Result<Self, ClaimsError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(ClaimsError::TooLarge(token.len()));
        }
        let (signing_input, signature) = token.rsplit_once('.').ok_or(ClaimsError::NotCompact)?;
        let (header, claims) = signing_input
            .split_once('.')
            .ok_or(ClaimsError::NotCompact)?;
        // Enough for all of it: four characters are three bytes.
        let mut decoded = Vec::with_capacity(token.len());
        let mut append = |part: &str| {
            // A dot too many is no base64url.
            URL_SAFE_NO_PAD
                .decode_vec(part, &mut decoded)
                .map_err(|_| ClaimsError::NotCompact)?;
            Ok(decoded.len())
        };
        let claims_at = append(header)?;
        let signature_at = append(claims)?;
        append(signature)?;
        Ok(Self {
            signing_input: signing_input.as_bytes(),
            decoded,
            claims_at,
            signature_at,
        })
    }

    /// Reads its header and its claims.
    pub fn read(&self) -> Result<Unverified<'_>, ClaimsError> {
        let (signed, signature) = self.decoded.split_at(self.signature_at);
        let (header, claims) = signed.split_at(self.claims_at);
        Ok(Unverified {
            header: json("header", header)?,
            claims: json("claims", claims)?,
            signing_input: self.signing_input,
            signature,
        })
    }
}

fn json<'t, T: Deserialize<'t>>(part: &'static str, text: &'t [u8]) -> Result<T, ClaimsError> {
    serde_json::from_slice(text).map_err(|error| ClaimsError::Unreadable {
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
        "aud":["citadel"],"exp":10,"nbf":1,"jti":"j","kubernetes.io":{"namespace":"shop",
        "serviceaccount":{"name":"web","uid":"a"},"pod":{"name":"web-1","uid":"p"}}}"#;

    #[test]
    fn the_shape_of_a_projected_token_is_read() {
        let token = token(HEADER, CLAIMS);
        let parts = Parts::decode(&token).unwrap();
        let Unverified {
            header,
            claims,
            signing_input,
            signature,
        } = parts.read().unwrap();
        assert_eq!([signing_input, b".c2ln"].concat(), token.as_bytes());
        assert_eq!(signature, b"sig");
        assert_eq!((&*header.alg, header.kid.as_deref()), ("RS256", Some("k1")));
        assert_eq!(claims.aud.single(), Some("citadel"));
        assert_eq!(claims.kubernetes.unwrap().pod.unwrap().uid, "p");
        assert_eq!(split_username(&claims.sub), Some(("shop", "web")));
        let jti = claims.jti.unwrap().0;
        for copied in [claims.iss, claims.sub, jti] {
            assert!(matches!(copied, Cow::Borrowed(_)), "{copied} is copied");
        }
    }

    #[test]
    fn an_audience_is_single_only_when_it_is_alone() {
        let audience = serde_json::from_str::<Audience<'_>>;
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
            Parts::decode(&"a".repeat(9_000)).unwrap_err(),
            ClaimsError::TooLarge(9_000)
        );
        assert_eq!(Parts::decode("a.b").unwrap_err(), ClaimsError::NotCompact);
        assert_eq!(
            Parts::decode("a.b.c.d").unwrap_err(),
            ClaimsError::NotCompact
        );
        assert_eq!(
            Parts::decode(&token(HEADER, CLAIMS).replace("c2ln", "+/==")).unwrap_err(),
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
            let _ = Parts::decode(&text).map(|parts| parts.read().is_ok());
        }

        #[test]
        fn mutated_tokens_never_panic(at in 0usize..300, byte in any::<u8>()) {
            let mut bytes = token(HEADER, CLAIMS).into_bytes();
            let at = at % bytes.len();
            bytes[at] = byte;
            let _ = Parts::decode(&String::from_utf8_lossy(&bytes)).map(|parts| parts.read().is_ok());
        }
    }
}
