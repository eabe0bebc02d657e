//! The end-to-end suites: one module each, with a line in `run.conf`.
//! `tests/run` starts each of them as a process of its own.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a panic is a failed test"
)]
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "shown with a test that fails"
)]

mod agents;
mod api_server_outage;
mod attestation;
mod audit;
mod authentication;
mod bench;
mod cacerts;
mod clusters;
mod crash;
mod dev;
mod documents;
mod durability;
mod envoy;
mod faults;
mod files;
mod issuance;
mod istio;
mod kubelet;
mod ledger;
mod node;
mod nodes;
mod operations;
mod overload;
mod postgres;
mod replicas;
mod sds_protocol;
mod secrets;
mod streams;
mod support;
mod survival;
mod testbed;
mod trust;
mod workload_api;
