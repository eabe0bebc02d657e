//! Why a connection gets nothing, in one word each: for the metric and `citadel agent status`.

use crate::attest::AttestError;

/// There are as many connections as there may be.
pub(super) const FULL: &str = "too_many_connections";
/// It took too long to find out who is there.
pub(super) const DEADLINE: &str = "deadline";

const CREDENTIALS: &str = "peer_credentials";
const INVISIBLE_PID: &str = "invisible_pid";
const LIVENESS: &str = "liveness";
const PROC: &str = "proc";
const CGROUP: &str = "cgroup";
/// One caller has as many as it may.
pub(super) const TOO_MANY: &str = "too_many_of_one_caller";

/// All of them.
pub(crate) const REASONS: [&str; 8] = [
    CGROUP,
    CREDENTIALS,
    DEADLINE,
    FULL,
    INVISIBLE_PID,
    LIVENESS,
    PROC,
    TOO_MANY,
];

pub(super) fn of(error: &AttestError) -> &'static str {
    match error {
        AttestError::Credentials(_) => CREDENTIALS,
        AttestError::InvisiblePid => INVISIBLE_PID,
        AttestError::Liveness(_) => LIVENESS,
        AttestError::Proc(_) => PROC,
        AttestError::Cgroup(_) => CGROUP,
        AttestError::TooMany(_) => TOO_MANY,
    }
}
