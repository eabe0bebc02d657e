//! The SPIFFE Workload API, as go-spiffe and as a scripted client see it.

mod endpoint;
mod entries;
mod go_spiffe;
mod pressure;
mod requirements;
mod rust_spiffe;
