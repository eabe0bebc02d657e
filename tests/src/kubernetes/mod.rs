//! A real Kubernetes API server on a real etcd, and what tests put into it.

mod access;
mod audit;
mod certificates;
mod client;
mod fixtures;
mod jwt;
mod node;
mod objects;
mod server;
mod signing;
mod tokens;

pub use access::Access;
pub use audit::Audit;
pub use client::ApiError;
pub use fixtures::AgentPod;
pub use jwt::{Signer, assemble, claims_of, header_of};
pub use node::{Container, Machine, NODE, NodeCluster, POD};
pub use objects::Pod;
pub use server::{ApiServer, Options};
pub use signing::{KeyType, SigningKey};
pub use tokens::TokenRequest;
