//! The log against a naive one, and against bytes that mean harm.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a panic is a failed test"
)]

mod builder;
mod hostile_bytes;
mod naive;
mod notes;
mod tiles;
mod trees;
