//! The agent's configuration: one YAML file, flags and `CITADEL_AGENT_…` variables over
//! it. Only the trust domain has no default.

mod args;

use std::{
    net::{Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
};

use citadel_identity::TrustDomain;
use citadel_runtime::{
    HumanDuration,
    client::Address,
    config::{Checker, ConfigError, Document},
    telemetry::{self, Format},
};
use serde::Deserialize;

pub use args::ConfigArgs;

use crate::{
    attest::cgroup::CgroupRoot,
    ca_client::FirstTrust,
    connections::Limits,
    external::{self, ExternalConfig, Known},
    files::config::{self as files, FilesConfig, Rule},
    handover::{HandoverConfig, HandoverSettings},
    pods::config::{PodsConfig, PodsSettings},
    sds::folders::{self, FolderRule, SdsFolder},
    secrets::ManagerOptions,
};

/// The longest name of a cluster, in bytes.
const MAX_CLUSTER: usize = 253;

/// The configuration as it is written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The trust domain, such as `example.org`.
    pub trust_domain: String,
    /// The CA.
    pub ca: CaConfig,
    /// The name that the CA has for this agent's cluster, sent as `clusterid`. Not needed
    /// where the CA serves one cluster.
    pub cluster: Option<String>,
    /// The agent's own service-account token; read again for each use.
    pub token_file: PathBuf,
    /// Where this node is none of Kubernetes': then what its operator gave it counts in place
    /// of a token, and says trust domain, addresses and roots where nothing else does.
    pub external: Option<ExternalConfig>,
    /// The socket of SDS and the Workload API.
    pub socket: PathBuf,
    /// The socket for administrators (`citadel agent status`): in a folder that no workload
    /// mounts. Without it [`default_admin_socket`], where it can be bound.
    pub admin_socket: Option<PathBuf>,
    /// Where `/livez`, `/readyz` and `/metrics` are.
    pub admin_listen: SocketAddr,
    /// The kubelet's `cgroupRoot`.
    pub cgroup_root: String,
    /// The host's proc file system.
    pub proc_root: PathBuf,
    /// Lifetime to ask for; without it the CA's default.
    pub svid_ttl: Option<HumanDuration>,
    /// Identities that are kept as files.
    pub files: Vec<FilesConfig>,
    /// Where the pods of this node are read. Without it the agent knows of pods what their
    /// processes' cgroups say.
    pub pods: Option<PodsConfig>,
    /// Folders whose files SDS serves under istio-proxy's names for them; none by default.
    pub sds_files: Vec<SdsFolder>,
    /// Whether another agent may take over from this one.
    pub handover: HandoverConfig,
    /// Bounds.
    pub limits: LimitsConfig,
    /// Logs.
    pub log: LogConfig,
}

/// Beside the folder of the workloads' socket: `/run/citadel-admin/agent.sock`.
pub fn default_admin_socket(socket: &Path) -> PathBuf {
    let mut folder = socket.parent().unwrap_or(socket).as_os_str().to_owned();
    folder.push("-admin");
    PathBuf::from(folder).join("agent.sock")
}

/// How to reach and know the CA.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CaConfig {
    /// `host:port`, tried in turn.
    pub addresses: Vec<String>,
    /// PEM file of the trust domain's roots. Without either, [`DEFAULT_BUNDLE_FILE`].
    pub bundle_file: Option<PathBuf>,
    /// SHA-256 of a root certificate's DER, in hex, in place of a bundle file.
    pub root_sha256: Option<String>,
}

/// Where the CA's `ConfigMap` is mounted.
pub const DEFAULT_BUNDLE_FILE: &str = "/etc/citadel-bundle/root-cert.pem";

/// Bounds of what workloads may use.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// Connections at once.
    pub connections: usize,
    /// Connections of one pod, or of one user outside of pods.
    pub connections_per_peer: usize,
    /// Streams of one connection.
    pub streams_per_connection: u32,
    /// Identities held at once.
    pub identities: usize,
}

/// Logs.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// A level or a filter: `info`, `citadel_node_agent=debug,info`.
    pub level: String,
    /// `text` or `json`.
    pub format: Format,
}

/// A configuration that was found good.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The trust domain.
    pub trust_domain: TrustDomain,
    /// The CA's addresses; at least one.
    pub addresses: Vec<Address>,
    /// Whom to take for the CA.
    pub first_trust: FirstTrust,
    /// Sent as `clusterid`; empty sends none.
    pub cluster: String,
    /// The agent's token.
    pub token_file: PathBuf,
    /// In place of a token, on a node outside Kubernetes.
    pub external: Option<ExternalConfig>,
    /// The socket.
    pub socket: PathBuf,
    /// The socket for administrators; without it the default, where it can be bound.
    pub admin_socket: Option<PathBuf>,
    /// The admin port.
    pub admin_listen: SocketAddr,
    /// Where pods' cgroups begin.
    pub cgroup_root: CgroupRoot,
    /// The host's proc file system.
    pub proc_root: PathBuf,
    /// Seconds; 0 leaves it to the CA.
    pub ttl_seconds: i64,
    /// Folders to keep.
    pub files: Vec<Rule>,
    /// The pods of this node, if they are read.
    pub pods: Option<PodsSettings>,
    /// Of the socket.
    pub limits: Limits,
    /// Of the secrets.
    pub manager: ManagerOptions,
    /// Folders that SDS serves from.
    pub sds_files: Arc<[FolderRule]>,
    /// How another agent takes over, if it may.
    pub handover: Option<HandoverSettings>,
}

impl Config {
    /// Checks every value and gives them their types.
    pub fn settings(&self) -> Result<Settings, ConfigError> {
        self.settings_of(&Document::empty())
    }

    fn settings_of(&self, document: &Document) -> Result<Settings, ConfigError> {
        let mut check = document.checker();
        let known = self
            .external
            .as_ref()
            .and_then(|external| external.known(&mut check));
        let trust_domain = self.trust_domain(known.as_ref(), &mut check);
        let addresses = self.addresses(known.as_ref(), &mut check);
        let first_trust = self.first_trust(known.as_ref(), &mut check);
        if self.external.is_some() && self.pods.is_some() {
            check.problem(
                "external",
                "is set beside pods",
                "keep one of the two: no pod runs outside of Kubernetes",
            );
        }
        let cluster = self.cluster.clone().unwrap_or_default();
        let printable = cluster.bytes().all(|b| b.is_ascii_graphic());
        if cluster.len() > MAX_CLUSTER || !printable {
            check.problem(
                "cluster",
                "is not the name of a cluster",
                "write the CA's name for it",
            );
        }
        if !self.socket.is_absolute() || self.socket.file_name().is_none() {
            check.problem(
                "socket",
                "is not an absolute path",
                "write one like /run/citadel/agent.sock",
            );
        }
        if let Some(socket) = &self.admin_socket {
            let beside = socket.parent() == self.socket.parent();
            if !socket.is_absolute() || socket.file_name().is_none() || beside {
                check.problem(
                    "admin_socket",
                    "is not an absolute path in a folder of its own",
                    "write one like /run/citadel-admin/agent.sock: workloads mount the folder of \
                     `socket`",
                );
            }
        }
        if !self.cgroup_root.starts_with('/') {
            check.problem(
                "cgroup_root",
                "is not an absolute path",
                "write the kubelet's cgroupRoot, usually /",
            );
        }
        if !self.proc_root.is_absolute() {
            check.problem(
                "proc_root",
                "is not an absolute path",
                "write /proc, or where the host's is mounted",
            );
        }
        let ttl = self.svid_ttl.map(HumanDuration::get).unwrap_or_default();
        if self.svid_ttl.is_some() && ttl.as_secs() == 0 {
            check.problem(
                "svid_ttl",
                "is less than a second",
                "write a lifetime like 15s or 1h, or leave it out",
            );
        }
        let ttl_seconds = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
        let pods = self.pods.as_ref();
        let pods = pods.and_then(|pods| pods.settings(&self.socket, ttl_seconds, &mut check));
        check.take(
            "log.level",
            telemetry::check_filter(&self.log.level),
            "write a level like info, or a filter",
        );
        for (key, value) in [
            ("limits.connections", self.limits.connections),
            (
                "limits.connections_per_peer",
                self.limits.connections_per_peer,
            ),
            (
                "limits.streams_per_connection",
                self.limits.streams_per_connection as usize,
            ),
            ("limits.identities", self.limits.identities),
        ] {
            if value == 0 {
                check.problem(
                    key,
                    "is 0, so that nothing would work",
                    "write a number above 0",
                );
            }
        }
        let files = files::rules(&self.files, trust_domain.as_ref(), &mut check);
        let sds_files = folders::check(&self.sds_files, &mut check);
        check.finish()?;
        let (Some(trust_domain), Some(first_trust)) = (trust_domain, first_trust) else {
            // Each missing value was a problem above.
            unreachable!("a clean check has every value");
        };
        Ok(Settings {
            trust_domain,
            addresses,
            first_trust,
            cluster,
            token_file: self.token_file.clone(),
            external: self.external.clone(),
            socket: self.socket.clone(),
            admin_socket: self.admin_socket.clone(),
            admin_listen: self.admin_listen,
            cgroup_root: CgroupRoot::new(&self.cgroup_root),
            proc_root: self.proc_root.clone(),
            ttl_seconds,
            files,
            pods,
            limits: Limits {
                connections: self.limits.connections,
                connections_per_peer: self.limits.connections_per_peer,
                streams_per_connection: self.limits.streams_per_connection,
                ..Limits::default()
            },
            manager: ManagerOptions {
                identities: self.limits.identities,
                ..ManagerOptions::default()
            },
            sds_files,
            handover: self.handover(),
        })
    }

    /// Beside the administrators' socket: in a folder that is the agent's user's alone.
    fn handover(&self) -> Option<HandoverSettings> {
        let default = || default_admin_socket(&self.socket);
        let beside = self.admin_socket.clone().unwrap_or_else(default);
        self.handover.enabled.then(|| HandoverSettings {
            socket: beside.with_file_name("handover.sock"),
            then: self.handover.then,
        })
    }

    fn trust_domain(&self, known: Option<&Known>, check: &mut Checker<'_>) -> Option<TrustDomain> {
        if self.trust_domain.is_empty() {
            if let Some(known) = known {
                return Some(known.trust_domain.clone());
            }
            if let Some(external) = &self.external {
                let problem = format_args!(
                    "holds nothing: this node has not joined yet ({})",
                    external.state_dir.display()
                );
                check.problem("external.state_dir", problem, external::JOIN_ANEW);
                return None;
            }
            check.problem(
                "trust_domain",
                "is missing",
                "write the CA's, such as example.org",
            );
            return None;
        }
        check.take(
            "trust_domain",
            TrustDomain::new(&self.trust_domain)
                .ok()
                .filter(|parsed| parsed.as_str() == self.trust_domain)
                .ok_or("is not the name of a trust domain"),
            "write the name alone, in lower case, such as example.org",
        )
    }

    fn addresses(&self, known: Option<&Known>, check: &mut Checker<'_>) -> Vec<Address> {
        if let Some(known) = known.filter(|_| self.ca.addresses == CaConfig::default().addresses) {
            return external::addresses(&known.addresses);
        }
        if self.ca.addresses.is_empty() {
            check.problem(
                "ca.addresses",
                "is empty",
                "write the CA's address as host:port",
            );
        }
        let parse = |(at, text): (usize, &String)| {
            let key = format!("ca.addresses[{at}]");
            check.take(key, text.parse::<Address>(), "write host:port")
        };
        self.ca
            .addresses
            .iter()
            .enumerate()
            .filter_map(parse)
            .collect()
    }

    fn first_trust(&self, known: Option<&Known>, check: &mut Checker<'_>) -> Option<FirstTrust> {
        match (&self.ca.bundle_file, &self.ca.root_sha256) {
            (Some(_), Some(_)) => {
                check.problem(
                    "ca.root_sha256",
                    "is set beside ca.bundle_file",
                    "keep one of the two: the CA is known by one of them alone",
                );
                None
            }
            (None, None) => Some(match known {
                Some(known) => known.first_trust.clone(),
                None => FirstTrust::BundleFile(DEFAULT_BUNDLE_FILE.into()),
            }),
            (Some(file), None) => Some(FirstTrust::BundleFile(file.clone())),
            (None, Some(text)) => {
                let mut digest = [0; 32];
                let decoded = hex::decode_to_slice(text, &mut digest);
                check.take(
                    "ca.root_sha256",
                    decoded.map_err(|_| "is not a SHA-256"),
                    "write 64 hex digits, without colons",
                )?;
                Some(FirstTrust::RootSha256(digest))
            }
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            trust_domain: String::new(),
            ca: CaConfig::default(),
            cluster: None,
            token_file: "/var/run/secrets/citadel/token".into(),
            external: None,
            socket: "/run/citadel/agent.sock".into(),
            admin_socket: None,
            admin_listen: SocketAddr::from((Ipv6Addr::UNSPECIFIED, 15015)),
            cgroup_root: "/".into(),
            proc_root: "/proc".into(),
            svid_ttl: None,
            files: Vec::new(),
            pods: None,
            sds_files: Vec::new(),
            handover: HandoverConfig::default(),
            limits: LimitsConfig::default(),
            log: LogConfig::default(),
        }
    }
}

impl Default for CaConfig {
    fn default() -> Self {
        Self {
            addresses: vec!["citadel-ca.citadel-system.svc:15012".to_owned()],
            bundle_file: None,
            root_sha256: None,
        }
    }
}

impl Default for LimitsConfig {
    fn default() -> Self {
        let socket = Limits::default();
        Self {
            connections: socket.connections,
            connections_per_peer: socket.connections_per_peer,
            streams_per_connection: socket.streams_per_connection,
            identities: ManagerOptions::default().identities,
        }
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            level: "info".to_owned(),
            format: Format::default(),
        }
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
