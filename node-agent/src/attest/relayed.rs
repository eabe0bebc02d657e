//! A workload's own token, relayed in the metadata of its stream.
//!
//! The CA verifies it. The agent only compares the pod that it names with the pod it
//! attested on the connection, so that one pod can't hand in another's token.

use std::fmt;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use citadel_identity::crypto;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::cgroup::PodUid;

/// The longest token that is relayed, in bytes.
pub const MAX_TOKEN: usize = 8 * 1024;

/// Why a token is not relayed. Says nothing of the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RelayError {
    /// Not `authorization: Bearer <token>`, or several of them.
    #[error("the authorization metadata is not one bearer token")]
    NotBearer,
    /// Longer than [`MAX_TOKEN`].
    #[error("the token is longer than 8192 bytes")]
    TooLong,
    /// Not a JWT that names a pod.
    #[error("the token is not bound to a pod")]
    NoPod,
    /// Of another pod than the peer's.
    #[error("the token names another pod than the caller's")]
    OtherPod,
}

/// A token that may be relayed for the peer that handed it in. Wipes itself.
#[derive(Clone)]
pub struct RelayedToken {
    token: Zeroizing<String>,
    pod_uid: String,
}

impl RelayedToken {
    /// Takes the token out of the value of an `authorization` header. `peer` is the
    /// pod attested on the connection, where there is one.
    pub fn from_header(value: &[u8], peer: Option<&PodUid>) -> Result<Self, RelayError> {
        let value = std::str::from_utf8(value).map_err(|_| RelayError::NotBearer)?;
        let (scheme, token) = value.split_once(' ').ok_or(RelayError::NotBearer)?;
        let token = token.trim_matches(' ');
        if !scheme.eq_ignore_ascii_case("bearer")
            || token.is_empty()
            || token.bytes().any(|b| b.is_ascii_whitespace())
        {
            return Err(RelayError::NotBearer);
        }
        if token.len() > MAX_TOKEN {
            return Err(RelayError::TooLong);
        }
        let pod_uid = pod_named_by(token).ok_or(RelayError::NoPod)?;
        if peer.is_some_and(|peer| peer.as_str() != pod_uid) {
            return Err(RelayError::OtherPod);
        }
        Ok(Self {
            token: Zeroizing::new(token.to_owned()),
            pod_uid,
        })
    }

    /// A token that the process before this one took from a header and handed over.
    pub(crate) fn handed_over(token: &str) -> Option<Self> {
        let header = Zeroizing::new(format!("Bearer {token}"));
        Self::from_header(header.as_bytes(), None).ok()
    }

    /// The token itself, for the CA alone.
    pub fn expose(&self) -> &str {
        &self.token
    }

    /// The pod that the token names. Unverified.
    pub fn pod_uid(&self) -> &str {
        &self.pod_uid
    }

    /// Tells tokens apart without keeping them.
    pub fn digest(&self) -> [u8; 32] {
        crypto::sha256(self.token.as_bytes())
    }
}

impl fmt::Debug for RelayedToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RelayedToken")
            .field(
                "token",
                &format_args!("[redacted, {} bytes]", self.token.len()),
            )
            .field("pod_uid", &self.pod_uid)
            .finish()
    }
}

#[derive(Deserialize)]
struct Claims {
    #[serde(rename = "kubernetes.io")]
    kubernetes: Kubernetes,
}

#[derive(Deserialize)]
struct Kubernetes {
    pod: Pod,
}

#[derive(Deserialize)]
struct Pod {
    uid: String,
}

/// The claim `kubernetes.io/pod/uid` of a JWT, read without verifying anything.
pub(crate) fn pod_named_by(token: &str) -> Option<String> {
    let mut parts = token.split('.');
    let (_header, payload, _signature) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    let json = Zeroizing::new(BASE64_URL_SAFE_NO_PAD.decode(payload).ok()?);
    let claims: Claims = serde_json::from_slice(&json).ok()?;
    let uid = claims.kubernetes.pod.uid;
    (!uid.is_empty()).then_some(uid)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use proptest::prelude::*;

    use super::*;

    const UID: &str = "7f3c1a52-0b4e-4c1d-9a57-1f2e3d4c5b6a";

    fn token(claims: &str) -> String {
        format!("e30.{}.c2ln", BASE64_URL_SAFE_NO_PAD.encode(claims))
    }

    fn bound(uid: &str) -> String {
        token(&format!(
            r#"{{"sub":"x","kubernetes.io":{{"pod":{{"name":"p","uid":"{uid}"}}}}}}"#
        ))
    }

    fn relay(header: &str, peer: Option<&str>) -> Result<RelayedToken, RelayError> {
        let peer = peer.map(|uid| PodUid::Api(uid.to_owned()));
        RelayedToken::from_header(header.as_bytes(), peer.as_ref())
    }

    #[test]
    fn a_token_must_name_the_pod_of_the_peer() {
        let header = format!("Bearer {}", bound(UID));
        assert_eq!(relay(&header, Some(UID)).unwrap().pod_uid(), UID);
        assert_eq!(relay(&header, None).unwrap().expose(), bound(UID));
        assert_eq!(
            relay(&header, Some("another")).unwrap_err(),
            RelayError::OtherPod
        );
    }

    #[test]
    fn what_is_no_pod_bound_token_is_refused() {
        for header in [
            "",
            "Bearer",
            "Bearer ",
            "Basic x",
            "Bearer a b",
            "Bearer  a\tb",
        ] {
            assert_eq!(
                relay(header, None).unwrap_err(),
                RelayError::NotBearer,
                "{header}"
            );
        }
        for token in [
            "x".to_owned(),
            "a.b".to_owned(),
            "a.b.c".to_owned(),
            token("{}"),
            token(r#"{"kubernetes.io":{"pod":{}}}"#),
            bound(""),
            format!("{}.x", bound(UID)),
        ] {
            let refused = relay(&format!("bearer {token}"), None).unwrap_err();
            assert_eq!(refused, RelayError::NoPod, "{token}");
        }
        let long = format!("Bearer {}", "a".repeat(MAX_TOKEN + 1));
        assert_eq!(relay(&long, None).unwrap_err(), RelayError::TooLong);
    }

    #[test]
    fn debug_hides_the_token() {
        let relayed = relay(&format!("Bearer {}", bound(UID)), None).unwrap();
        let debug = format!("{relayed:?}");
        assert!(
            !debug.contains(&bound(UID)) && debug.contains("redacted"),
            "{debug}"
        );
    }

    proptest! {
        #[test]
        fn no_header_makes_the_parser_panic(header in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = RelayedToken::from_header(&header, None);
        }
    }
}
