//! Service-account tokens: asked for, reviewed, and made up.

use http::Method;
use serde_json::{Value, json};

use super::jwt::{self, Signer};
use super::{ApiError, ApiServer};
use crate::secrets;

/// What to ask `TokenRequest` for.
#[derive(Clone, Debug)]
pub struct TokenRequest {
    /// The account's namespace.
    pub namespace: String,
    /// The account's name.
    pub account: String,
    /// Kind, API version and name of what the token is bound to.
    pub bound_to: Option<(&'static str, String)>,
    /// Empty means the API server's own.
    pub audiences: Vec<String>,
    /// Lifetime; at least 600.
    pub seconds: u32,
}

impl TokenRequest {
    /// For audience `citadel`, for an hour, bound to a pod.
    pub fn for_pod(namespace: &str, account: &str, pod: &str) -> Self {
        Self {
            bound_to: Some(("Pod", pod.into())),
            ..Self::unbound(namespace, account)
        }
    }

    /// For audience `citadel`, for an hour, bound to nothing but the account.
    pub fn unbound(namespace: &str, account: &str) -> Self {
        Self {
            namespace: namespace.into(),
            account: account.into(),
            bound_to: None,
            audiences: vec!["citadel".into()],
            seconds: 3600,
        }
    }

    /// Replaces the audiences.
    #[must_use]
    pub fn audiences(mut self, audiences: &[&str]) -> Self {
        self.audiences = audiences.iter().map(|&audience| audience.into()).collect();
        self
    }
}

impl ApiServer {
    /// A token for audience `citadel`, for an hour, bound to a pod.
    pub async fn token(&self, namespace: &str, account: &str, pod: &str) -> String {
        self.request_token(&TokenRequest::for_pod(namespace, account, pod))
            .await
            .expect("a token")
    }

    /// Any token that `TokenRequest` gives.
    pub async fn request_token(&self, wanted: &TokenRequest) -> Result<String, ApiError> {
        let path = format!(
            "/api/v1/namespaces/{}/serviceaccounts/{}/token",
            wanted.namespace, wanted.account
        );
        let mut spec =
            json!({ "expirationSeconds": wanted.seconds, "audiences": wanted.audiences });
        if let Some((kind, name)) = &wanted.bound_to {
            spec["boundObjectRef"] = json!({ "kind": kind, "apiVersion": "v1", "name": name });
        }
        let answer = self
            .request(Method::POST, &path, Some(&json!({ "spec": spec })))
            .await?;
        let token = answer["status"]["token"]
            .as_str()
            .expect("a token")
            .to_owned();
        secrets::register_token("service-account token", &token);
        Ok(token)
    }

    /// What the API server itself says of a token: a `TokenReview`'s status.
    pub async fn review(&self, token: &str, audiences: &[&str]) -> Value {
        let review = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": { "token": token, "audiences": audiences },
        });
        let mut answer = self
            .post("/apis/authentication.k8s.io/v1/tokenreviews", &review)
            .await;
        answer["status"].take()
    }

    /// A token of these claims, signed as the API server signs: what
    /// `TokenRequest` would not give (expired, not yet valid, foreign claims).
    /// Begin with `jwt::claims_of` a real one.
    pub fn sign_token(&self, claims: &Value) -> String {
        jwt::assemble(&self.token_header(), claims, Signer::Key(&self.key))
    }

    /// The header of its tokens.
    pub fn token_header(&self) -> Value {
        json!({ "alg": self.key.algorithm(), "kid": self.key.kid() })
    }
}
