//! Who is on the socket: peer credentials → pidfd → cgroup → pod, or a unix process.

pub mod cgroup;
mod digest;
pub mod liveness;
pub mod peer;
pub mod proc;
pub mod relayed;

pub use peer::{AttestError, Attestor, Peer};
