//! Node agents: who is one, and what a node may get.

mod attestation;
mod mirror;
mod nodes;
mod relayed;
mod roles;
