//! Kubernetes as the CA and the agents see it, and the only crate that knows the API's client.
//!
//! - [`records`]: pods, accounts and nodes, trimmed to what a decision about identity needs and
//!   decoded straight from the API's JSON, so that a whole Pod is never kept.
//! - [`inventory`]: what is alive, by UID, and how old that knowledge is.
//! - [`node_pods`]: the pods of one node, with their containers' IDs, as its agent sees them:
//!   from the API server, or from the node's own [`kubelet`].
//! - [`cluster`]: one cluster's API server: watches that feed an inventory, and the requests of
//!   [`api::ClusterApi`], each with a deadline of its own.
//! - [`jwks`]: the keys that sign service-account tokens.
//! - [`resolver`]: the one request by name for a UID that no watch has shown.
//!
//! Bodies of requests and responses are never logged: a `TokenReview`'s response repeats the token.

pub mod api;
pub mod cluster;
mod intern;
pub mod inventory;
pub mod jwks;
pub mod kubelet;
mod names;
pub mod node_pods;
mod raw;
pub mod records;
pub mod resolver;
pub mod review;
mod singleflight;
mod skew;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod testing;
mod transport;
mod watch;

pub use api::{ApiError, ClusterApi, Published};
pub use cluster::{Cluster, ClusterConfig, ConnectError};
pub use inventory::{Event, Inventory, Kind, Lookup, Remember};
pub use jwks::{JwksPolicy, JwksSnapshot, JwksSource, RefetchOutcome};
pub use kubelet::{Kubelet, KubeletConfig};
pub use node_pods::{NodePod, NodePods};
pub use records::{AccountRecord, Container, Labels, NodeRecord, Phase, PodRecord};
pub use resolver::{Resolved, ResolverPolicy, UnknownUidResolver};
pub use review::Review;
