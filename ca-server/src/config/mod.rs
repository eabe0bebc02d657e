//! The configuration: one YAML file, flags and `CITADEL_…` variables over it. Only the trust
//! domain has no default.
//!
//! `file` is what stands in the file, key by key; this module is what the server works with,
//! checked and typed. The way from one to the other is `check`.

mod accounts;
mod args;
mod check;
mod dns;
mod entries;
mod external;
mod file;
mod node_names;
mod store;

use std::{net::SocketAddr, path::PathBuf};

use citadel_identity::{SpiffeId, TrustDomain, selector::Selector, template::IdTemplate};
use citadel_runtime::config::Document;
pub use citadel_runtime::{HumanDuration, config::ConfigError, telemetry::Format};
use rustls::pki_types::CertificateDer;

pub use self::{
    accounts::{AccountRef, AdminSubject},
    args::ConfigArgs,
    file::ClusterMode,
    node_names::{NameField, NodeRule, node_of},
};

pub(crate) use self::accounts::is_subdomain;
pub use crate::caller::EXTERNAL_CLUSTER;
use crate::store::PostgresOptions;

/// The checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The trust domain that this CA signs for.
    pub trust_domain: TrustDomain,
    /// Where gRPC listens.
    pub listen: SocketAddr,
    /// Where `/livez`, `/readyz` and `/metrics` listen.
    pub admin_listen: SocketAddr,
    /// Where the log's checkpoint and tiles are served over HTTPS; `None`: nowhere.
    pub public_listen: Option<SocketAddr>,
    /// The local administrators' socket, if there is one.
    pub admin_socket: Option<PathBuf>,
    /// CA keys in the self-signed mode, and the guard file.
    pub data_dir: PathBuf,
    /// Where issuances are recorded.
    pub store: StoreLocation,
    /// The CA's own key and certificates.
    pub ca: CaConfig,
    /// The clusters whose workloads are served, names distinct; none where all nodes are outside
    /// of Kubernetes.
    pub clusters: Vec<ClusterConfig>,
    /// Tokens must be for exactly one of these.
    pub audiences: Vec<String>,
    /// How an account becomes a SPIFFE ID.
    pub id_template: IdTemplate,
    /// Accounts whose tokens need no pod.
    pub allow_unbound: Vec<AccountRef>,
    /// Accounts whose pods are node agents.
    pub agents: Accounts,
    /// Nodes outside Kubernetes.
    pub external: ExternalConfig,
    /// Accounts that may ask for the identities of other pods on their node.
    pub impersonation: Accounts,
    /// Lifetimes of leaf certificates.
    pub lifetimes: Lifetimes,
    /// A chain of renewals without a pod ends after this time.
    pub max_renewal_age: HumanDuration,
    /// What nodes may hand out beyond an account's own identity.
    pub entries: Vec<EntryConfig>,
    /// Where the trust bundle is written in Kubernetes, if anywhere.
    pub bundle_configmap: Option<ConfigMapRef>,
    /// Who administers.
    pub admin: AdminConfig,
    /// Bounds.
    pub limits: Limits,
    /// Logging.
    pub log: LogConfig,
    /// SHA-256 over the effective configuration in hex: equal for equal ones, for the log.
    pub digest: String,
    /// The same over all that can't change without a restart: everything but the entries.
    pub fixed_digest: String,
}

/// Where issuances are recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreLocation {
    /// A file of `SQLite`.
    Sqlite(PathBuf),
    /// A database of PostgreSQL, which several servers may share.
    Postgres(Box<PostgresOptions>),
}

/// The CA's own key and certificates.
#[derive(Clone, Debug)]
pub struct CaConfig {
    /// A directory with Istio's `cacerts` files. Without it the CA makes a root and an
    /// intermediate of its own in `data_dir`.
    pub cacerts_dir: Option<PathBuf>,
    /// The key id (the certificate's subject key identifier) of the issuing key that the one
    /// in `cacerts_dir` takes the place of. The store's own is no other; without this a
    /// server with another key than the store knows does not start.
    pub replaces_key: Option<Vec<u8>>,
    /// The CA's own DNS names: in its serving certificate, and reserved.
    pub dns_names: Vec<String>,
    /// Lifetime of the serving certificate.
    pub serving_ttl: HumanDuration,
}

/// One cluster.
#[derive(Clone, Debug)]
pub struct ClusterConfig {
    /// Its name.
    pub name: String,
    /// Credentials of its API server; `None`: the cluster that this server runs in.
    pub kubeconfig: Option<PathBuf>,
    /// How its tokens are checked.
    pub mode: ClusterMode,
    /// Token issuers beside the one that the API server's discovery document names.
    pub issuers: Vec<String>,
    /// How long one request to its API server may take.
    pub api_deadline: HumanDuration,
    /// How old what the watches show may be.
    pub max_staleness: HumanDuration,
}

/// A list of accounts.
#[derive(Clone, Debug)]
pub struct Accounts {
    /// The accounts.
    pub accounts: Vec<AccountRef>,
}

/// Nodes outside Kubernetes.
#[derive(Clone, Debug)]
pub struct ExternalConfig {
    /// Lifetime of their agents' SVIDs: how long such a node may be off, or its CA, before it
    /// has to join anew.
    pub svid_ttl: HumanDuration,
    /// Whose certificates let nodes in, if any do.
    pub x509pop: Option<X509PopConfig>,
}

/// Nodes that prove themselves by X.509 certificates of the operator's own.
#[derive(Clone, Debug)]
pub struct X509PopConfig {
    /// Their roots, DER; at least one.
    pub roots: Vec<CertificateDer<'static>>,
    /// How a certificate's names become a node's; at least one.
    pub rules: Vec<NodeRule>,
}

/// Lifetimes of leaf certificates; `min ≤ default, istio_default ≤ max`.
#[derive(Clone, Copy, Debug)]
pub struct Lifetimes {
    /// Where a request names none.
    pub default: HumanDuration,
    /// Where a request on Istio's service names none.
    pub istio_default: HumanDuration,
    /// Shorter requests get this.
    pub min: HumanDuration,
    /// Longer requests get this.
    pub max: HumanDuration,
}

/// A registration entry.
#[derive(Clone, Debug)]
pub struct EntryConfig {
    /// The identity, in the own trust domain and not under `/citadel/`.
    pub id: SpiffeId,
    /// DNS names that its certificates carry.
    pub dns_names: Vec<String>,
    /// Default and upper limit of the lifetime.
    pub ttl: Option<HumanDuration>,
    /// Where it holds.
    pub nodes: EntryNodes,
    /// All must match; at least one.
    pub selectors: Vec<Selector>,
    /// For workloads with several identities.
    pub hint: String,
}

/// Where an entry holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryNodes {
    /// On every node; never beside unix selectors.
    All,
    /// On these; at least one.
    Listed(Vec<NodeRef>),
}

/// A node of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeRef {
    /// Name of the cluster: a configured one, or [`EXTERNAL_CLUSTER`].
    pub cluster: String,
    /// Name of the node.
    pub node: String,
}

/// A Kubernetes `ConfigMap`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigMapRef {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// Who administers, beside the local socket.
#[derive(Clone, Debug)]
pub struct AdminConfig {
    /// May read.
    pub auditor: Vec<AdminSubject>,
    /// May change.
    pub operator: Vec<AdminSubject>,
}

/// Bounds of the gRPC server.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Requests served at once.
    pub in_flight: usize,
    /// Requests waiting.
    pub queue: usize,
    /// Requests waiting of one node.
    pub queue_per_node: usize,
    /// How long a request may take, waiting included.
    pub request_deadline: HumanDuration,
    /// Connections at once.
    pub connections: usize,
    /// Connections at once from one address.
    pub connections_per_address: usize,
    /// HTTP/2 streams at once on one connection.
    pub streams_per_connection: u32,
}

/// Logging.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// A level or an `EnvFilter`.
    pub level: String,
    /// Text or JSON.
    pub format: Format,
    /// Whether everybody may have the issuance log's checkpoint and hash tiles; its entries
    /// are for auditors in any case.
    pub public_hashes: bool,
    /// The audit log of refusals: JSON lines, beside those on standard error. Two files of
    /// 64 MiB at most, this one and `<name>.1`.
    pub refusals: Option<PathBuf>,
    /// How long after its expiry a certificate's record may be taken away.
    pub retention: HumanDuration,
}

impl Config {
    /// From a YAML text; `name` stands in errors where a file's name would.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn from_yaml(name: &str, text: &str) -> Result<Self, ConfigError> {
        let document = Document::from_text(name, text);
        let file = document.parse()?;
        check::check(file, &document)
    }
}

#[cfg(test)]
mod tests;
