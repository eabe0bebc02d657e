//! From the configuration to what the parts take.

use std::{
    collections::HashSet, io, os::unix::fs::PermissionsExt as _, path::Path, sync::Arc,
    time::Duration,
};

use citadel_identity::crypto;
use citadel_kubernetes::{ClusterApi, Inventory};
use citadel_runtime::tls::ConnectionLimits;
use tokio::net::UnixListener;

use crate::{
    admission::AdmissionLimits,
    authz::{Entry, EntryNodes, PolicyOptions, Registered},
    clusters::{ClusterParts, Mode},
    config::{self, ClusterMode, Config},
    grpc::{AdminAccess, Joining},
};

/// The server's bounds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ServerLimits {
    pub(crate) admission: AdmissionLimits,
    pub(crate) connections: ConnectionLimits,
    pub(crate) streams_per_connection: u32,
    pub(crate) request_deadline: Duration,
}

impl From<&Config> for ServerLimits {
    fn from(config: &Config) -> Self {
        let limits = &config.limits;
        Self {
            admission: AdmissionLimits {
                in_flight: limits.in_flight,
                queue: limits.queue,
                queue_per_node: limits.queue_per_node,
            },
            connections: ConnectionLimits {
                total: limits.connections,
                per_address: limits.connections_per_address,
                ..ConnectionLimits::default()
            },
            streams_per_connection: limits.streams_per_connection,
            request_deadline: limits.request_deadline.get(),
        }
    }
}

pub(crate) fn policy(config: &Config) -> PolicyOptions {
    PolicyOptions {
        trust_domain: config.trust_domain.clone(),
        template: config.id_template.clone(),
        agent_accounts: keys(&config.agents.accounts),
        impersonating_accounts: keys(&config.impersonation.accounts),
        allow_unbound: keys(&config.allow_unbound),
        default_ttl: config.lifetimes.default.get(),
        min_ttl: config.lifetimes.min.get(),
        max_ttl: config.lifetimes.max.get(),
        serving_ttl: config.ca.serving_ttl.get(),
        external_ttl: config.external.svid_ttl.get(),
        ca_dns_names: config.ca.dns_names.clone(),
        max_renewal_age: config.max_renewal_age.get(),
    }
}

/// The registration entries.
pub(crate) fn registered(config: &Config) -> Registered {
    Registered {
        entries: config.entries.iter().map(entry).collect(),
        revision: revision(config),
    }
}

fn keys(accounts: &[config::AccountRef]) -> HashSet<String> {
    accounts.iter().map(ToString::to_string).collect()
}

fn entry(entry: &config::EntryConfig) -> Entry {
    let nodes = match &entry.nodes {
        config::EntryNodes::All => EntryNodes::All,
        config::EntryNodes::Listed(nodes) => EntryNodes::Listed(
            nodes
                .iter()
                .map(|n| (n.cluster.clone(), n.node.clone()))
                .collect(),
        ),
    };
    Entry {
        entry_id: Entry::make_id(&entry.id, &nodes, &entry.selectors),
        spiffe_id: entry.id.clone(),
        dns_names: entry.dns_names.clone(),
        ttl: entry.ttl.map(config::HumanDuration::get),
        nodes,
        selectors: entry.selectors.clone(),
        hint: entry.hint.clone(),
    }
}

/// Names the policy in the log: equal for equal configurations, another for another.
fn revision(config: &Config) -> u64 {
    let digest = crypto::sha256(config.digest.as_bytes());
    digest
        .iter()
        .take(8)
        .fold(0, |sum, byte| (sum << 8) | u64::from(*byte))
}

/// The longest certificate that the linter lets pass, back-dating included.
pub(crate) fn lint_max_lifetime(config: &Config) -> Duration {
    let longest = config.lifetimes.max.get().max(config.ca.serving_ttl.get());
    longest + (longest / 10).min(Duration::from_secs(120)) + Duration::from_secs(1)
}

pub(crate) fn bundle_configmap(config: &Config) -> Option<(String, String)> {
    config
        .bundle_configmap
        .as_ref()
        .map(|map| (map.namespace.clone(), map.name.clone()))
}

pub(crate) fn cluster_parts(
    cluster: &config::ClusterConfig,
    api: Arc<dyn ClusterApi>,
    inventory: Arc<Inventory>,
) -> ClusterParts {
    ClusterParts {
        name: cluster.name.clone(),
        mode: match cluster.mode {
            ClusterMode::Local => Mode::Local,
            ClusterMode::TokenReview => Mode::TokenReview,
        },
        issuers: cluster.issuers.clone(),
        api,
        inventory,
        max_staleness: cluster.max_staleness.get(),
    }
}

/// What join tokens tell: the CA's own names with the port that it listens on, and its root.
pub(crate) fn joining(config: &Config, port: u16, root_sha256: &[u8; 32]) -> Joining {
    let names = config.ca.dns_names.iter();
    Joining {
        trust_domain: config.trust_domain.clone(),
        root_sha256: *root_sha256,
        addresses: names.map(|name| format!("{name}:{port}")).collect(),
    }
}

pub(crate) fn admin_access(config: &Config) -> AdminAccess {
    let named = config.admin.auditor.iter().chain(&config.admin.operator);
    let operators = config.admin.operator.iter();
    AdminAccess {
        auditors: named.map(ToString::to_string).collect(),
        operators: operators.map(ToString::to_string).collect(),
        own_uid: nix::unistd::geteuid().as_raw(),
    }
}

/// Binds the administrators' socket with mode 0600. A socket that a dead server left behind
/// is replaced; one that somebody answers on is not.
pub(crate) fn bind_admin_socket(path: &Path) -> io::Result<UnixListener> {
    if path.exists() {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                "another server answers there: stop it, or give this one another path",
            ));
        }
        std::fs::remove_file(path)?;
    }
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    // The peer's uid is checked at each request as well: between bind and chmod nobody gets in.
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}
