//! `TokenReview`: the request, and its answer decoded by ourselves.
//!
//! The client library would log a body that it can't decode, and a `TokenReview`'s answer repeats
//! the token; so the body is read as text here, and no error says what was in it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::api::ApiError;

/// Longest message of the API server that is passed on, in bytes.
const MAX_MESSAGE: usize = 256;
/// Pieces of a token that are shorter than this tell nothing when they occur in a message.
const MIN_TOKEN_PIECE: usize = 8;

/// What the API server says of a token.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Review {
    /// The token is valid for one of the audiences asked for. All else here is empty if not.
    pub authenticated: bool,
    /// Those of the audiences asked for that the token is valid for. Empty if the API server knows
    /// nothing of audiences: such an answer proves nothing about ours.
    pub audiences: Vec<String>,
    /// `system:serviceaccount:<namespace>:<name>` for a service account.
    pub username: String,
    /// The account's UID.
    pub uid: String,
    /// The groups of the user.
    pub groups: Vec<String>,
    /// What the token is bound to, by the API's keys.
    pub extra: BTreeMap<String, Vec<String>>,
    /// Why the token was not accepted, in the API server's words, never with a part of the token.
    pub error: Option<String>,
}

impl Review {
    /// The name of the pod that the token is bound to.
    pub fn pod_name(&self) -> Option<&str> {
        self.single("authentication.kubernetes.io/pod-name")
    }

    /// The UID of the pod that the token is bound to.
    pub fn pod_uid(&self) -> Option<&str> {
        self.single("authentication.kubernetes.io/pod-uid")
    }

    /// The name of the node in the token.
    pub fn node_name(&self) -> Option<&str> {
        self.single("authentication.kubernetes.io/node-name")
    }

    /// The UID of the node in the token.
    pub fn node_uid(&self) -> Option<&str> {
        self.single("authentication.kubernetes.io/node-uid")
    }

    /// `JTI=<uuid>`, the token's own id.
    pub fn credential_id(&self) -> Option<&str> {
        self.single("authentication.kubernetes.io/credential-id")
    }

    /// Namespace and name of the service account, if the user is one.
    pub fn service_account(&self) -> Option<(&str, &str)> {
        let (namespace, name) = self
            .username
            .strip_prefix("system:serviceaccount:")?
            .split_once(':')?;
        (!namespace.is_empty() && !name.is_empty() && !name.contains(':'))
            .then_some((namespace, name))
    }

    /// The value of a key that has exactly one.
    fn single(&self, key: &str) -> Option<&str> {
        match self.extra.get(key)?.as_slice() {
            [value] if !value.is_empty() => Some(value),
            _ => None,
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Request<'a> {
    api_version: &'static str,
    kind: &'static str,
    spec: RequestSpec<'a>,
}

#[derive(Serialize)]
struct RequestSpec<'a> {
    token: &'a str,
    audiences: &'a [String],
}

/// The body of a review's request.
pub(crate) fn request_body(token: &str, audiences: &[String]) -> Result<Vec<u8>, ApiError> {
    serde_json::to_vec(&Request {
        api_version: "authentication.k8s.io/v1",
        kind: "TokenReview",
        spec: RequestSpec { token, audiences },
    })
    .map_err(|_| ApiError::Malformed("the review can't be written as JSON".into()))
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    status: Option<Status>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Status {
    authenticated: Option<bool>,
    audiences: Option<Vec<String>>,
    error: Option<String>,
    user: Option<User>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct User {
    username: Option<String>,
    uid: Option<String>,
    groups: Option<Vec<String>>,
    extra: Option<BTreeMap<String, Option<Vec<String>>>>,
}

/// Decodes the answer to a review of `token`.
pub(crate) fn decode(body: &[u8], token: &str) -> Result<Review, ApiError> {
    // serde_json's message can quote a value of the body, so it is dropped.
    let answer: Answer = serde_json::from_slice(body)
        .map_err(|_| ApiError::Malformed("the TokenReview is not as the API defines it".into()))?;
    let status = answer
        .status
        .ok_or_else(|| ApiError::Malformed("the TokenReview has no status".into()))?;
    if status.authenticated != Some(true) {
        return Ok(Review {
            error: status
                .error
                .and_then(|message| presentable(&message, token)),
            ..Review::default()
        });
    }
    let user = status
        .user
        .ok_or_else(|| ApiError::Malformed("the TokenReview names no user".into()))?;
    Ok(Review {
        authenticated: true,
        audiences: status.audiences.unwrap_or_default(),
        username: user.username.unwrap_or_default(),
        uid: user.uid.unwrap_or_default(),
        groups: user.groups.unwrap_or_default(),
        extra: user
            .extra
            .unwrap_or_default()
            .into_iter()
            .map(|(key, values)| (key, values.unwrap_or_default()))
            .collect(),
        error: None,
    })
}

/// The message, short and on one line; nothing if it repeats a piece of the token.
fn presentable(message: &str, token: &str) -> Option<String> {
    let repeats = token
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '_')
        .any(|piece| piece.len() >= MIN_TOKEN_PIECE && contains_part(message, piece));
    if message.is_empty() || repeats {
        return None;
    }
    let mut end = message.len().min(MAX_MESSAGE);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    Some(
        message[..end]
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect(),
    )
}

/// Whether any stretch of `piece` of the telling length occurs in `message`.
fn contains_part(message: &str, piece: &str) -> bool {
    // Tokens are of ASCII here, so that windows of bytes are windows of characters.
    message.as_bytes().windows(MIN_TOKEN_PIECE).any(|window| {
        piece
            .as_bytes()
            .windows(MIN_TOKEN_PIECE)
            .any(|part| part == window)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn token() -> String {
        "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ3ZWIifQ.c2lnbmF0dXJlLW9mLXRoZS10b2tlbg".to_string()
    }

    fn accepted() -> serde_json::Value {
        json!({
            "kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1",
            "spec": {"token": token(), "audiences": ["citadel"]},
            "status": {
                "authenticated": true,
                "audiences": ["citadel"],
                "user": {
                    "username": "system:serviceaccount:shop:web", "uid": "a-1",
                    "groups": ["system:serviceaccounts", "system:authenticated"],
                    "extra": {
                        "authentication.kubernetes.io/pod-name": ["web-0"],
                        "authentication.kubernetes.io/pod-uid": ["p-1"],
                        "authentication.kubernetes.io/node-name": ["node-1"],
                        "authentication.kubernetes.io/node-uid": ["n-1"],
                        "authentication.kubernetes.io/credential-id": ["JTI=1234"]
                    }
                }
            }
        })
    }

    #[test]
    fn an_accepted_token() {
        let review = decode(accepted().to_string().as_bytes(), &token()).unwrap();
        assert!(review.authenticated);
        assert_eq!(review.audiences, ["citadel"]);
        assert_eq!(review.service_account(), Some(("shop", "web")));
        assert_eq!(
            (review.pod_name(), review.pod_uid()),
            (Some("web-0"), Some("p-1"))
        );
        assert_eq!(
            (review.node_name(), review.node_uid()),
            (Some("node-1"), Some("n-1"))
        );
        assert_eq!(
            (review.uid.as_str(), review.credential_id()),
            ("a-1", Some("JTI=1234"))
        );
    }

    #[test]
    fn only_an_explicit_yes_authenticates() {
        for status in [
            json!({}),
            json!({"authenticated": false}),
            json!({"authenticated": null}),
            json!({"user": {"username": "system:serviceaccount:shop:web"}}),
        ] {
            let mut body = accepted();
            body["status"] = status;
            assert_eq!(
                decode(body.to_string().as_bytes(), &token()).unwrap(),
                Review::default(),
                "{body}"
            );
        }
        let mut body = accepted();
        body["status"]["authenticated"] = json!("true");
        assert!(matches!(
            decode(body.to_string().as_bytes(), &token()),
            Err(ApiError::Malformed(_))
        ));
    }

    #[test]
    fn no_error_repeats_the_token() {
        let mut odd = accepted();
        odd["status"] = json!(token());
        let error = decode(odd.to_string().as_bytes(), &token()).unwrap_err();
        let shown = format!("{error} {error:?}");
        assert!(
            !token().split('.').any(|part| shown.contains(part)),
            "{shown}"
        );

        let middle = token().split('.').nth(1).unwrap()[2..14].to_string();
        for (message, passed_on) in [
            (
                "token audiences [\"x\"] is invalid for the target audiences".to_string(),
                true,
            ),
            (format!("can't parse {}", token()), false),
            (format!("bad payload {middle}"), false),
        ] {
            let body = json!({"status": {"authenticated": false, "error": message}});
            let review = decode(body.to_string().as_bytes(), &token()).unwrap();
            assert_eq!(review.error.is_some(), passed_on, "{message}");
        }
    }

    #[test]
    fn a_long_message_is_cut_and_kept_on_one_line() {
        let message = format!("{}\n{}", "é".repeat(100), "x".repeat(1000));
        let body = json!({"status": {"error": message}});
        let shown = decode(body.to_string().as_bytes(), &token())
            .unwrap()
            .error
            .unwrap();
        assert!(shown.len() <= MAX_MESSAGE && !shown.contains('\n'));
    }

    #[test]
    fn the_request_carries_token_and_audiences() {
        let body = request_body("t", &["citadel".into()]).unwrap();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(
            body["spec"],
            json!({"token": "t", "audiences": ["citadel"]})
        );
        assert_eq!(body["kind"], "TokenReview");
    }

    #[test]
    fn user_names_that_are_no_service_account() {
        for name in [
            "admin",
            "system:serviceaccount:shop",
            "system:serviceaccount::web",
            "system:serviceaccount:shop:web:x",
        ] {
            let review = Review {
                username: name.into(),
                ..Review::default()
            };
            assert_eq!(review.service_account(), None, "{name}");
        }
    }

    proptest! {
        #[test]
        fn mutated_answers_neither_panic_nor_echo(at in any::<prop::sample::Index>(), byte: u8, cut in any::<prop::sample::Index>()) {
            let mut body = accepted().to_string().into_bytes();
            let at = at.index(body.len());
            body[at] = byte;
            body.truncate(cut.index(body.len()) + 1);
            if let Err(error) = decode(&body, &token()) {
                let shown = format!("{error} {error:?}");
                prop_assert!(!token().split('.').any(|part| shown.contains(part)));
            }
        }
    }
}
