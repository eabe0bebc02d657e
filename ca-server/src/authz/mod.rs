//! Which caller may have which identity: from a [`Caller`] and what it asks for to a
//! [`Grant`], or a refusal. Nothing here signs, and nothing else makes a grant.

mod entries;
mod grant;
mod look_up;
mod nodes;
mod policy;
mod registered;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use entries::{Entry, EntryNodes};
pub use grant::{Grant, Use};
pub(crate) use policy::account_key;
pub use policy::{Ask, Policy, PolicyOptions, Wish};
pub use registered::Registered;

/// Why a caller may not have what it asked for. The text is for the log.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Denied {
    /// The caller is of the wrong kind for this request.
    #[error("{0}")]
    WrongCaller(&'static str),
    /// The policy gives it no such identity.
    #[error("{0}")]
    NotEntitled(String),
    /// The watch doesn't know the pod yet: a retry may help.
    #[error("pod {0} is not known on the agent's node (yet)")]
    UnknownPod(String),
    /// The chain of renewals is too old, or what it rests on is gone.
    #[error("{0}")]
    RenewalEnded(String),
    /// The request names something impossible.
    #[error("{0}")]
    Invalid(String),
    /// What we know of the cluster is too old to decide.
    #[error("{0}")]
    Unavailable(String),
}
