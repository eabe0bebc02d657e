//! The wire protocols as Rust types: `citadel.v1`, `citadel.agent.v1` and `citadel.log.v1`
//! (ours), `istio.v1.auth`, and the SPIFFE Workload API.
//!
//! The code under `src/gen/` is generated from the `.proto` files beside it and
//! committed; `tests/generated.rs` fails when the two differ, and
//! `CITADEL_REGENERATE=1 cargo test -p citadel-proto` renews it.

mod redact;
mod wipe;

/// `citadel.v1`: the CA's own services for agents, workloads and administrators.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::pedantic,
    clippy::restriction
)]
pub mod v1 {
    include!("gen/citadel.v1.rs");
}

/// `citadel.agent.v1`: the node agent's own service for administrators.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::pedantic,
    clippy::restriction
)]
pub mod agent {
    include!("gen/citadel.agent.v1.rs");
}

/// `citadel.log.v1`: the entries of the issuance log.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::pedantic,
    clippy::restriction
)]
pub mod log {
    include!("gen/citadel.log.v1.rs");
}

/// `istio.v1.auth`: the wire contract of istio-proxy and ztunnel.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::pedantic,
    clippy::restriction
)]
pub mod istio {
    include!("gen/istio.v1.auth.rs");
}

/// The SPIFFE Workload API (its `.proto` file has no package).
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::pedantic,
    clippy::restriction
)]
pub mod workload {
    include!("gen/_.rs");

    /// The Workload API as an encoded `FileDescriptorSet`, for gRPC reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!("gen/workload.bin");
}
