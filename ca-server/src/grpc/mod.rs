//! The services: thin adapters on the one issuance line, converting and nothing else.

mod access;
mod admin;
mod agent;
mod frames;
mod front;
mod gate;
mod health;
mod in_flight;
mod istio;
mod nodes;
mod refusal;
mod refusals;
mod search;
mod services;
mod workload;

pub(crate) use access::{AdminAccess, AdminRole};
pub(crate) use admin::AdminApi;
pub(crate) use agent::AgentApi;
pub(crate) use front::{Front, FrontParts};
pub(crate) use gate::Gate;
pub(crate) use health::HealthApi;
pub(crate) use istio::IstioApi;
pub(crate) use nodes::Joining;
pub(crate) use refusals::Refusals;
pub(crate) use services::Services;
pub(crate) use workload::WorkloadApi;

/// The largest request with one certificate, bytes.
pub(crate) const MAX_SINGLE_REQUEST: usize = 64 * 1024;
/// The largest batch, bytes.
pub(crate) const MAX_BATCH_REQUEST: usize = 1024 * 1024;
/// The most items of a batch.
pub(crate) const MAX_BATCH_ITEMS: usize = 256;
