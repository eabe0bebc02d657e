//! A failed call's status, as what it says of the CA.

use std::time::Duration;

use tonic::{Code, Status};

use super::CaError;

/// Whether the CA does not accept who asks.
pub(super) fn is_refusal(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unauthenticated | Code::PermissionDenied
    )
}

/// What a failed call says of the CA.
pub(super) fn error_of(status: &Status) -> CaError {
    let reason = describe(status);
    match status.code() {
        Code::Unauthenticated | Code::PermissionDenied => CaError::Refused(reason),
        Code::ResourceExhausted => {
            // gRPC's own header for it, in milliseconds.
            let retry_after = status
                .metadata()
                .get("grpc-retry-pushback-ms")
                .and_then(|value| value.to_str().ok()?.parse().ok())
                .map(Duration::from_millis);
            CaError::Overloaded {
                reason,
                retry_after,
            }
        }
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown => {
            CaError::Unreachable(reason)
        }
        _ => CaError::Other(reason),
    }
}

/// Code, message and causes: tonic keeps "connection refused" in the source.
pub(super) fn describe(status: &Status) -> String {
    let mut text = format!("{:?}: {}", status.code(), status.message());
    let mut source = std::error::Error::source(status);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text.chars().filter(|c| !c.is_control()).take(512).collect()
}
