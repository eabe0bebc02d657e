//! Citadel's certificate authority: validates who asks, signs short-lived X.509-SVIDs, and
//! records each before it is released.
//!
//! [`build`] binds and starts the whole server, so that a test or `citadel dev` runs it in
//! process on port 0.

pub mod admission;
mod audit;
pub mod authn;
pub mod authz;
pub mod caller;
pub mod clusters;
pub mod config;
mod grpc;
pub mod holders;
pub mod issuance;
pub mod keys;
pub mod log;
pub mod metrics;
mod monitor;
mod public;
mod published;
mod reload;
mod server;
mod serving;
mod settings;
pub mod store;

#[cfg(test)]
#[path = "../../identity/tests/identity/mutation.rs"]
mod mutation;

pub use server::{Bound, Parts, StartError, build};
#[cfg(test)]
mod testing;
