//! What both of Citadel's servers need once: configuration, telemetry, admin HTTP,
//! shutdown, and TLS whose certificate can change while connections live.

pub mod admin;
pub mod client;
pub mod config;
pub mod duration;
pub mod grpc;
mod harden;
pub mod https;
pub mod limits;
mod line_limit;
mod memory;
pub mod process;
pub mod shutdown;
pub mod supervisor;
pub mod telemetry;
pub mod tls;

pub use duration::HumanDuration;
pub use harden::{HardenError, harden};
pub use line_limit::LineLimit;
pub use memory::{Mimalloc, without_huge_pages};
pub use shutdown::{Shutdown, ShutdownSignal};
