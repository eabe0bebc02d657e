//! The crate from outside: requests, certificates, chains and TLS, made with other
//! tools than the profile (openssl's command, rcgen by hand, changed bytes).
//! Test names hold the numbers of the SPIFFE requirements that they cover.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod bundles;
mod csrs;
mod hostile_bytes;
mod issuers;
mod keys;
mod lint_rules;
mod mutation;
mod profiles;
mod proven_issuers;
mod support;
mod tls;
mod verification;
mod x509pop;
