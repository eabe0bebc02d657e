//! The harness of the end-to-end suites: starts real parts, makes what they
//! need (accounts, pods, tokens, keys), and takes everything down again.
//!
//! The suites run under `tests/run`, which gives each of them a network
//! namespace of its own and says where the real parts are. Whatever goes wrong
//! in here is a failed test, so the harness panics with what it was doing.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a panic is a failed test"
)]

pub mod cgroup;
pub mod citadel;
pub mod client;
#[cfg(test)]
mod conformance;
pub mod deploy;
pub mod dir;
pub mod disk;
pub mod document;
pub mod envoy;
pub mod faulty;
pub mod foreign;
pub mod http;
pub mod image;
pub mod kubernetes;
pub mod parts;
pub mod peer;
pub mod pki;
pub mod ports;
pub mod postgres;
pub mod process;
mod reactor;
pub mod secrets;
mod spawner;
pub mod wait;
