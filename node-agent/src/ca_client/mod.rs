//! The CA as the agent sees it: its own identity, batches, entries, trust bundles.

mod attest;
mod conflicts;
mod entries;
mod handed;
#[cfg(test)]
mod hostile_answers;
mod identity;
mod kept;
mod reports;
mod session;
mod skew;
mod status;
mod streams;
mod token;
mod trust;

use std::time::Duration;

use async_trait::async_trait;
use citadel_proto::v1::{IssueItem, IssueResult};

pub use conflicts::{Conflict, ConflictKind};
pub use entries::{Entries, Ignored, NodeEntry};
pub(crate) use handed::HandedStanding;
pub use session::{Credential, Session, SessionConfig, Standing};
pub use token::{FileToken, TokenSource};
pub use trust::{FirstTrust, TrustError};

/// The most items of one `IssueBatch` call.
pub const MAX_BATCH_ITEMS: usize = 256;

/// The most bytes of one `IssueBatch` call, with room for its framing.
pub const MAX_BATCH_BYTES: usize = 1024 * 1024 - 16 * 1024;

/// Issues for what runs on this node. The SecretManager's view of the CA.
#[async_trait]
pub trait Ca: Send + Sync + 'static {
    /// At most [`MAX_BATCH_ITEMS`] and [`MAX_BATCH_BYTES`]. An error is one of the call;
    /// an item's own failure is in its result.
    async fn issue_batch(&self, items: Vec<IssueItem>) -> Result<Issued, CaError>;
}

/// The answer to a batch.
#[derive(Debug, Clone)]
pub struct Issued {
    /// In the order of the items.
    pub results: Vec<IssueResult>,
    /// The CA's clock when it answered, milliseconds since the epoch.
    pub server_time_ms: i64,
}

/// Why a whole call failed. None of these says anything about a workload.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CaError {
    /// The agent has not got an identity of its own yet.
    #[error("the agent has no identity yet: {0}")]
    NotAttested(String),
    /// No connection, a broken one, or no answer in time.
    #[error("the CA can't be reached: {0}")]
    Unreachable(String),
    /// The CA does not accept the agent itself.
    #[error("the CA refuses this agent: {0}")]
    Refused(String),
    /// The CA has too much to do.
    #[error("the CA is overloaded: {reason}")]
    Overloaded {
        /// The CA's words.
        reason: String,
        /// How long it asks to wait, if it said so.
        retry_after: Option<Duration>,
    },
    /// Anything else.
    #[error("the CA answered with an error: {0}")]
    Other(String),
}
