//! Where the pods of this node are read.

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use citadel_kubernetes::{Cluster, ClusterConfig, ConnectError, Kubelet, KubeletConfig, NodePods};
use citadel_runtime::ShutdownSignal;

/// Who is asked.
#[derive(Debug, Clone)]
pub enum Source {
    /// The API server.
    ApiServer {
        /// The node's name.
        node: String,
        /// Credentials; without it, those of the agent's own pod.
        kubeconfig: Option<PathBuf>,
    },
    /// The kubelet of this node.
    Kubelet {
        /// The node's name.
        node: String,
        /// Where it listens.
        address: SocketAddr,
        /// What its serving certificate chains to.
        ca_file: PathBuf,
        /// The token to show it.
        token_file: PathBuf,
    },
}

/// A source whose credentials could be read.
pub(crate) enum Connected {
    ApiServer(Arc<Cluster>, String),
    Kubelet(Box<Kubelet>),
}

impl Source {
    /// What it feeds.
    pub(crate) fn inventory(&self) -> NodePods {
        match self {
            Self::ApiServer { .. } => NodePods::default(),
            Self::Kubelet { .. } => NodePods::forgetful(),
        }
    }

    /// Reads the credentials. Nobody is asked yet.
    pub(crate) async fn connect(&self) -> Result<Connected, ConnectError> {
        Ok(match self {
            Self::ApiServer { node, kubeconfig } => {
                let config = ClusterConfig::new("this node's", kubeconfig.clone());
                Connected::ApiServer(Cluster::connect(config).await?, node.clone())
            }
            Self::Kubelet {
                node,
                address,
                ca_file,
                token_file,
            } => {
                let config = KubeletConfig::new(node, *address, ca_file, token_file);
                Connected::Kubelet(Box::new(Kubelet::connect(config)?))
            }
        })
    }
}

impl Connected {
    /// Keeps `pods` current until the shutdown.
    pub(crate) async fn run(self, pods: Arc<NodePods>, shutdown: ShutdownSignal) {
        let ended = shutdown.wait_owned();
        match self {
            Self::ApiServer(cluster, node) => cluster.run_node_watch(&node, pods, ended).await,
            Self::Kubelet(kubelet) => kubelet.run(&pods, ended).await,
        }
    }
}
