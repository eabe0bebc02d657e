//! `pods` of the agent's configuration.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use citadel_runtime::{HumanDuration, config::Checker};
use serde::Deserialize;

use super::Source;

/// The longest name of a node, in bytes.
const MAX_NODE: usize = 253;

/// Where a pod's service account finds the cluster's root.
const CLUSTER_ROOT: &str = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt";

/// Where the agent's own token for Kubernetes is.
const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// The pods of this node, as it is written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PodsConfig {
    /// Who is asked.
    pub source: SourceConfig,
    /// The node's name in Kubernetes.
    #[serde(default)]
    pub node: Option<String>,
    /// For `api_server`: a kubeconfig in place of the pod's own account.
    #[serde(default)]
    pub kubeconfig: Option<PathBuf>,
    /// For `kubelet`: its address, which is the node's.
    #[serde(default)]
    pub kubelet: Option<IpAddr>,
    /// For `kubelet`: its port.
    #[serde(default = "kubelet_port")]
    pub kubelet_port: u16,
    /// For `kubelet`: PEM file of the root that its serving certificate chains to.
    #[serde(default = "cluster_root")]
    pub kubelet_ca_file: PathBuf,
    /// For `kubelet`: the token to show it; read again for each use.
    #[serde(default = "token")]
    pub kubelet_token_file: PathBuf,
    /// For which pods the account's identity is made ready before they ask.
    #[serde(default)]
    pub prepare: PrepareFor,
    /// The most identities that are ready and were not asked for yet.
    #[serde(default = "prepare_limit")]
    pub prepare_limit: usize,
    /// How long one is kept for a pod that does not ask.
    #[serde(default = "prepare_keep")]
    pub prepare_keep: HumanDuration,
}

/// Who is asked for the pods of this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceConfig {
    /// The API server: a watch of the pods bound to this node.
    ApiServer,
    /// The kubelet of this node: its list of pods, again and again.
    Kubelet,
}

/// For which pods an identity is made ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PrepareFor {
    /// Those that mount the socket's folder of the node.
    #[default]
    Mounted,
    /// Every pod that has an account.
    All,
    /// None.
    Nobody,
}

fn kubelet_port() -> u16 {
    10250
}

fn cluster_root() -> PathBuf {
    CLUSTER_ROOT.into()
}

fn token() -> PathBuf {
    TOKEN.into()
}

fn prepare_limit() -> usize {
    512
}

fn prepare_keep() -> HumanDuration {
    HumanDuration::from_mins(5)
}

/// Good settings.
#[derive(Debug, Clone)]
pub struct PodsSettings {
    /// Whom to ask, and how.
    pub source: Source,
    /// For which pods identities are made ready.
    pub prepare: PrepareFor,
    /// The socket's folder.
    pub folder: PathBuf,
    /// The most of them.
    pub limit: usize,
    /// How long one is kept.
    pub keep: Duration,
    /// Lifetime to ask for, seconds; 0 leaves it to the CA.
    pub ttl_seconds: i64,
}

impl PodsConfig {
    /// Checks every value; `socket` is the agent's own, and `ttl_seconds` what it asks for.
    pub fn settings(
        &self,
        socket: &Path,
        ttl_seconds: i64,
        check: &mut Checker<'_>,
    ) -> Option<PodsSettings> {
        let node = self.node.clone().unwrap_or_default();
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b);
        if node.is_empty() || node.len() > MAX_NODE || !node.bytes().all(allowed) {
            check.problem(
                "pods.node",
                "is not the name of a node",
                "write this node's name in Kubernetes, or set CITADEL_AGENT_NODE_NAME from spec.nodeName",
            );
        }
        if self.prepare_keep.get() < Duration::from_secs(1) {
            check.problem(
                "pods.prepare_keep",
                "is less than a second",
                "write a time like 5m, or `prepare: nobody`",
            );
        }
        let source = match (self.source, self.kubelet) {
            (SourceConfig::ApiServer, _) => Source::ApiServer {
                node,
                kubeconfig: self.kubeconfig.clone(),
            },
            (SourceConfig::Kubelet, Some(address)) => Source::Kubelet {
                node,
                address: SocketAddr::new(address, self.kubelet_port),
                ca_file: self.kubelet_ca_file.clone(),
                token_file: self.kubelet_token_file.clone(),
            },
            (SourceConfig::Kubelet, None) => {
                check.problem(
                    "pods.kubelet",
                    "is missing",
                    "write the node's address, or set CITADEL_AGENT_KUBELET from status.hostIP",
                );
                return None;
            }
        };
        Some(PodsSettings {
            source,
            prepare: self.prepare,
            folder: socket.parent().unwrap_or(Path::new("/")).to_owned(),
            limit: self.prepare_limit,
            keep: self.prepare_keep.get(),
            ttl_seconds,
        })
    }
}
