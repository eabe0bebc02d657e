//! What the CA asks of an API server, as a trait, so that decisions are tested without one.

use async_trait::async_trait;

use crate::records::{AccountRecord, NodeRecord, PodRecord};
use crate::review::Review;

/// Requests to one cluster's API server.
///
/// Every method ends within the implementation's deadline (3 s unless configured otherwise); an
/// unanswered request is [`ApiError::Unreachable`].
#[async_trait]
pub trait ClusterApi: Send + Sync {
    /// The pod of that name as the API server has it now, `None` if there is none.
    async fn get_pod(&self, namespace: &str, name: &str) -> Result<Option<PodRecord>, ApiError>;

    /// The service account of that name as the API server has it now, `None` if there is none.
    async fn get_account(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<AccountRecord>, ApiError>;

    /// The node of that name as the API server has it now, `None` if there is none.
    async fn get_node(&self, name: &str) -> Result<Option<NodeRecord>, ApiError>;

    /// Has the API server judge a token (`authentication.k8s.io/v1` `TokenReview`).
    ///
    /// `audiences` must not be empty: a review without audiences accepts a token that was meant for
    /// the API server itself. The caller checks [`Review::audiences`]. The token appears in no
    /// error and in no log.
    async fn review_token(&self, token: &str, audiences: &[String]) -> Result<Review, ApiError>;

    /// The JSON Web Key Set of the service-account issuer, as sent (at most 1 MB).
    async fn fetch_jwks(&self) -> Result<String, ApiError>;

    /// The issuer of service-account tokens, as the discovery document names it (`OpenID` Connect
    /// Discovery 1.0, section 3). An API server with several issuers names the first.
    async fn fetch_issuer(&self) -> Result<String, ApiError>;

    /// Succeeds if the API server answers at all.
    async fn probe(&self) -> Result<(), ApiError>;

    /// The API server's clock minus ours, as the `Date` of its latest answer showed it, to a
    /// second. `None` before the first such answer, and where there is no clock but ours.
    fn clock_skew(&self) -> Option<time::Duration> {
        None
    }

    /// Makes a `ConfigMap` hold what the CA publishes, creating it where needed.
    async fn publish(
        &self,
        namespace: &str,
        configmap: &str,
        published: &Published,
    ) -> Result<(), ApiError>;

    /// The log's checkpoint in that `ConfigMap`; `None` where there is none, or no `ConfigMap`.
    async fn published_checkpoint(
        &self,
        _namespace: &str,
        _configmap: &str,
    ) -> Result<Option<String>, ApiError> {
        Ok(None)
    }
}

/// What the CA publishes in a `ConfigMap`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Published {
    /// The trust bundle, PEM: `root-cert.pem`.
    pub bundle: String,
    /// The newest checkpoint of the log, where there is one: `log.checkpoint`.
    pub checkpoint: Option<String>,
}

/// Why a request to the API server brought no answer to the question. None of these says anything
/// about the object or token that was asked about.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    /// No answer in time, no connection, or an answer that says "later" (429 and 5xx).
    #[error("the API server is unreachable: {0}")]
    Unreachable(String),
    /// The API server refuses the request: credentials or RBAC rules of this program are missing.
    #[error("the API server refuses the request (HTTP {status}): {hint}")]
    Denied {
        /// The HTTP status, 4xx.
        status: u16,
        /// What was asked, and what would allow it.
        hint: String,
    },
    /// The answer is not what the API promises, or larger than we read.
    #[error("the API server's answer is malformed: {0}")]
    Malformed(String),
}

impl ApiError {
    /// Whether asking again later may help without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable(_))
    }
}
