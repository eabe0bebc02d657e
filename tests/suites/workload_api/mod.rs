//! The SPIFFE Workload API, as go-spiffe and as a scripted client see it.

mod go_spiffe;
mod pressure;
mod requirements;
