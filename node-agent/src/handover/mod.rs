//! The upgrade in place: a new agent that is started beside the one that serves gets its
//! listening sockets and its secrets, and serves on. No client's connect is refused, no
//! certificate is issued anew, and the CA need not be there.
//!
//! The successor asks over a Unix socket that is for the agent's own user alone, in the
//! folder of the administrators' one. Until it has confirmed that it can serve, the
//! predecessor serves as before; whatever goes wrong until then changes nothing.

mod afterwards;
pub(crate) mod certificate;
mod memory;
mod peer;
mod predecessor;
mod reload;
mod state;
mod successor;
mod wire;

#[cfg(test)]
mod tests;

use std::{io, path::PathBuf, time::Duration};

use serde::Deserialize;

pub use self::{
    afterwards::{Afterwards, Successor, wait},
    memory::MemoryError,
    peer::PeerError,
    reload::on_hangup,
    wire::WireError,
};
pub(crate) use self::{
    peer::Own,
    predecessor::{Predecessor, Served},
    state::Giver,
    successor::{Taken, Tie, ask},
};
use crate::socket::SocketError;

/// The form of the state that this version writes, and reads alone so far.
pub(crate) const FORMAT: u32 = 1;

/// How long batches in flight may take before the handover begins. With a CA that hangs, the
/// longest is a batch's own deadline.
const PATIENCE: Duration = Duration::from_secs(6);

/// How long the successor waits for the offer: [`PATIENCE`] and some.
const OFFER_DEADLINE: Duration = Duration::from_secs(15);

/// The handover in the configuration.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HandoverConfig {
    /// Whether an agent that is started beside this one may take over.
    pub enabled: bool,
    /// What this process does once another one has taken over.
    pub then: Then,
}

/// What a process does once another one has taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Then {
    /// It ends.
    #[default]
    Exit,
    /// It waits to be ended, and serves again should the other one be gone: for supervisors
    /// that start again whatever ends, such as the kubelet.
    Wait,
}

/// A handover that is configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandoverSettings {
    /// Where a successor asks.
    pub socket: PathBuf,
    /// See [`HandoverConfig::then`].
    pub then: Then,
}

/// Why there was no handover.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// See [`PeerError`].
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// See [`WireError`].
    #[error(transparent)]
    Wire(#[from] WireError),
    /// See [`MemoryError`].
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The other agent said no.
    #[error("the agent that serves hands nothing over: {0}")]
    Refused(String),
    /// What the other agent says makes no sense.
    #[error("the other agent's {0} makes no sense")]
    Malformed(&'static str),
    /// See [`SocketError`].
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The system refused.
    #[error("{doing}: {error}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// Why not.
        error: io::Error,
    },
}

impl Default for HandoverConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            then: Then::default(),
        }
    }
}

fn failed(doing: &'static str) -> impl FnOnce(io::Error) -> HandoverError {
    move |error| HandoverError::Io { doing, error }
}

/// Runs what blocks off the async threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, HandoverError> + Send + 'static,
) -> Result<T, HandoverError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(_) => Err(HandoverError::Malformed("message")),
    }
}
