//! What a client is told, and what the log says. Of authentication the client learns
//! nothing but that it failed; the log has the exact reason, never the credential.

use std::time::Duration;

use citadel_proto::{log, v1};
use tonic::{Code, Status, metadata::MetadataValue};

use super::in_flight::Full;
use crate::{
    admission::Overloaded,
    authn::AuthnError,
    authz::Denied,
    caller::Caller,
    issuance::{IssuanceError, ItemError},
    store::StoreError,
};

/// A request that ends without a result.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) code: Code,
    /// For the client.
    pub(super) message: String,
    /// For the log.
    pub(super) reason: String,
    pub(super) retry_after: Option<Duration>,
    /// Who asked, where that was proven.
    pub(super) caller: Option<Box<log::Caller>>,
}

const UNAVAILABLE_RETRY: Duration = Duration::from_secs(1);

impl Refusal {
    pub(super) fn new(code: Code, message: impl Into<String>, reason: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            reason: reason.into(),
            retry_after: None,
            caller: None,
        }
    }

    /// The refusal of a caller that was authenticated.
    pub(super) fn of(mut self, caller: &Caller) -> Self {
        self.caller = Some(Box::new(caller.to_record()));
        self
    }

    /// The field and the fix are the client's to know.
    pub(super) fn invalid(message: impl Into<String>) -> Self {
        let message = message.into();
        Self::new(Code::InvalidArgument, message.clone(), message)
    }

    /// Of an RPC for agents, to whoever is none.
    pub(super) fn no_agent() -> Self {
        Self::new(
            Code::PermissionDenied,
            "this RPC is for node agents: present an agent's SVID",
            "the caller is no agent",
        )
    }

    fn retryable(code: Code, message: &str, reason: String, after: Duration) -> Self {
        Self {
            retry_after: Some(after),
            ..Self::new(code, message, reason)
        }
    }

    pub(super) fn deadline(limit: Duration) -> Self {
        Self::retryable(
            Code::Unavailable,
            "the request was not served in time: try again",
            format!("not served within the request deadline of {limit:?}"),
            UNAVAILABLE_RETRY,
        )
    }

    /// The refusal as an item's result.
    pub(super) fn into_item_error(self) -> v1::ItemError {
        v1::ItemError {
            code: self.code as i32,
            message: self.message,
            retry_after_ms: self.retry_after.map_or(0, |after| {
                i64::try_from(after.as_millis()).unwrap_or(i64::MAX)
            }),
        }
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let mut status = Status::new(refusal.code, refusal.message);
        if let Some(after) = refusal.retry_after
            && let Ok(value) = MetadataValue::try_from(after.as_millis().to_string())
        {
            status
                .metadata_mut()
                .insert("grpc-retry-pushback-ms", value);
        }
        status
    }
}

impl From<AuthnError> for Refusal {
    fn from(error: AuthnError) -> Self {
        match error {
            AuthnError::NoCredential | AuthnError::Rejected(_) => Self::new(
                Code::Unauthenticated,
                "the caller could not be authenticated",
                error.to_string(),
            ),
            AuthnError::Unavailable(reason) => Self::retryable(
                Code::Unavailable,
                "the caller can't be authenticated right now: try again",
                reason,
                UNAVAILABLE_RETRY,
            ),
        }
    }
}

impl From<Denied> for Refusal {
    fn from(denied: Denied) -> Self {
        let reason = denied.to_string();
        match denied {
            Denied::WrongCaller(why) => Self::new(Code::PermissionDenied, why, reason),
            Denied::NotEntitled(_) | Denied::RenewalEnded(_) => Self::new(
                Code::PermissionDenied,
                "the caller may not have this identity",
                reason,
            ),
            Denied::UnknownPod(_) => Self::retryable(
                Code::PermissionDenied,
                "the pod is not known on the agent's node (yet)",
                reason,
                Duration::from_millis(500),
            ),
            Denied::Invalid(message) => Self::invalid(message),
            Denied::Unavailable(_) => Self::retryable(
                Code::Unavailable,
                "the state of the cluster is too old to decide on: try again",
                reason,
                UNAVAILABLE_RETRY,
            ),
        }
    }
}

impl From<Overloaded> for Refusal {
    fn from(overloaded: Overloaded) -> Self {
        Self::retryable(
            Code::ResourceExhausted,
            "too many requests are waiting: try again later",
            overloaded.to_string(),
            overloaded.retry_after,
        )
    }
}

impl From<Full> for Refusal {
    fn from(full: Full) -> Self {
        Self::retryable(
            Code::ResourceExhausted,
            "too many requests are unanswered: try again later",
            full.to_string(),
            UNAVAILABLE_RETRY,
        )
    }
}

impl From<&IssuanceError> for Refusal {
    fn from(error: &IssuanceError) -> Self {
        let reason = error.to_string();
        match error {
            IssuanceError::Csr(csr) => Self::invalid(format!("csr: {csr}")),
            IssuanceError::Store(StoreError::Overloaded { .. }) => Self::retryable(
                Code::ResourceExhausted,
                "too many certificates are waiting to be recorded: try again later",
                reason,
                UNAVAILABLE_RETRY,
            ),
            IssuanceError::Store(_)
            | IssuanceError::Sign(_)
            | IssuanceError::IssuerExpiring(_)
            | IssuanceError::IssuerNotYetValid(_) => Self::retryable(
                Code::Unavailable,
                "no certificate can be issued right now: try again",
                reason,
                UNAVAILABLE_RETRY,
            ),
            IssuanceError::Profile(_) | IssuanceError::Lint(_) | IssuanceError::NoIntent => {
                Self::new(
                    Code::Internal,
                    "the certificate did not pass its checks",
                    reason,
                )
            }
        }
    }
}

impl From<ItemError> for Refusal {
    fn from(error: ItemError) -> Self {
        match error {
            ItemError::Authentication(error) => error.into(),
            ItemError::Denied(denied) => denied.into(),
            ItemError::Issuance(error) => (&*error).into(),
        }
    }
}
