//! The two servers of `citadel dev`, wired together in this process.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use citadel_ca_server::clusters::{ClusterParts, Mode};
use citadel_kubernetes::{ClusterApi, Inventory};
use citadel_node_agent::ca_client::TokenSource;
use citadel_runtime::Shutdown;
use serde::Deserialize;
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::task::JoinHandle;
use zeroize::Zeroizing;

use super::cluster::{self, DevCluster};
use super::place::Place;
use super::{DevArgs, user_path};
use crate::exit::Failure;

/// In the data folder.
pub(crate) const STORE: &str = "citadel.db";
pub(crate) const TRUST_BUNDLE: &str = "root-cert.pem";

const CA_PORT: u16 = 15_012;
const CA_ADMIN_PORT: u16 = 15_014;
const AGENT_ADMIN_PORT: u16 = 15_015;
const MAX_STALENESS: Duration = Duration::from_secs(600);

/// Both servers, running.
pub(crate) struct Servers {
    pub(crate) addresses: Addresses,
    ca_task: Running,
    agent_task: Running,
}

/// Where they listen, with the real ports.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Addresses {
    pub(crate) ca: SocketAddr,
    pub(crate) ca_admin: SocketAddr,
    pub(crate) agent_admin: SocketAddr,
}

struct Running {
    name: &'static str,
    shutdown: Shutdown,
    task: Option<JoinHandle<Result<(), String>>>,
}

/// Who the agent is: where its token comes from, and what its node is called.
struct AgentIdentity {
    token: Arc<dyn TokenSource>,
    node: String,
    /// `namespace/account`
    account: String,
}

impl Servers {
    pub(crate) async fn start(args: &DevArgs, place: &Place) -> Result<Self, Failure> {
        // clap sees to it that a kubeconfig and a token come together.
        let (clusters, identity) = if let Some(token_file) = &args.token_file {
            (None, AgentIdentity::from_file(token_file)?)
        } else {
            let (parts, identity) = local_cluster()?;
            (Some(vec![parts]), identity)
        };
        let shutdown = Shutdown::new();
        let config = ca_config(args, place, &identity)?;
        let mut parts = citadel_ca_server::Parts::new(shutdown.clone());
        parts.clusters = clusters;
        let ca = citadel_ca_server::build(config, parts)
            .await
            .map_err(|error| Failure::local(format!("the CA does not start: {error}")))?;
        let (ca_address, ca_admin) = (ca.grpc, ca.admin);
        let ca_task = Running::new("CA", shutdown, async move {
            ca.serve().await.map_err(|error| error.to_string())
        });

        let shutdown = Shutdown::new();
        let mut parts = citadel_node_agent::Parts::new(shutdown.clone());
        parts.token = Some(identity.token);
        let agent = citadel_node_agent::build(agent_config(args, place, ca_address), parts).await;
        let agent = match agent {
            Ok(agent) => agent,
            Err(error) => {
                // The CA must not be torn down in the middle of a write.
                let _ = ca_task.stop().await;
                return Err(Failure::local(format!("the agent does not start: {error}")));
            }
        };
        let agent_admin = agent.admin;
        let agent_task = Running::new("agent", shutdown, async move {
            let served = agent.serve().await;
            served.map(drop).map_err(|error| error.to_string())
        });
        let addresses = Addresses {
            ca: ca_address,
            ca_admin,
            agent_admin,
        };
        Ok(Self {
            addresses,
            ca_task,
            agent_task,
        })
    }

    /// Waits until one of the two ends by itself.
    pub(crate) async fn failed(&mut self) -> Failure {
        tokio::select! {
            failure = self.ca_task.failed() => failure,
            failure = self.agent_task.failed() => failure,
        }
    }

    /// Ends both in order: who depends on the other goes first.
    pub(crate) async fn stop(self) -> Result<(), Failure> {
        let agent = self.agent_task.stop().await;
        self.ca_task.stop().await?;
        agent
    }
}

impl Running {
    fn new(
        name: &'static str,
        shutdown: Shutdown,
        serve: impl Future<Output = Result<(), String>> + Send + 'static,
    ) -> Self {
        Self {
            name,
            shutdown,
            task: Some(tokio::spawn(serve)),
        }
    }

    async fn failed(&mut self) -> Failure {
        let Some(task) = &mut self.task else {
            return std::future::pending().await;
        };
        let ended = task.await;
        self.task = None;
        let why = match ended {
            Ok(Ok(())) => "it ended".to_owned(),
            Ok(Err(error)) => error,
            Err(_) => "it panicked".to_owned(),
        };
        Failure::local(format!("the {} failed: {why}", self.name))
    }

    async fn stop(self) -> Result<(), Failure> {
        self.shutdown.trigger();
        let Some(task) = self.task else { return Ok(()) };
        match task.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Failure::local(format!(
                "the {} ended badly: {error}",
                self.name
            ))),
            Err(_) => Err(Failure::local(format!("the {} panicked", self.name))),
        }
    }
}

/// The local issuer and what its cluster holds.
fn local_cluster() -> Result<(ClusterParts, AgentIdentity), Failure> {
    let cluster = Arc::new(DevCluster::new()?);
    let inventory = Arc::new(Inventory::default());
    cluster.show(&inventory);
    tokio::spawn(Arc::clone(&cluster).keep_alive(Arc::clone(&inventory)));
    let identity = AgentIdentity {
        token: Arc::new(LocalToken(Arc::clone(&cluster))),
        node: cluster::NODE.to_owned(),
        account: cluster::agent_account(),
    };
    let parts = ClusterParts {
        name: cluster::CLUSTER.to_owned(),
        mode: Mode::Local,
        issuers: vec![cluster::ISSUER.to_owned()],
        api: cluster as Arc<dyn ClusterApi>,
        inventory,
        max_staleness: MAX_STALENESS,
    };
    Ok((parts, identity))
}

fn ca_config(
    args: &DevArgs,
    place: &Place,
    identity: &AgentIdentity,
) -> Result<citadel_ca_server::config::Config, Failure> {
    let listen = args.listen.unwrap_or_else(|| args.loopback(CA_PORT));
    let admin = args
        .admin_listen
        .unwrap_or_else(|| args.loopback(CA_ADMIN_PORT));
    let node = format!("{}/{}", cluster::CLUSTER, identity.node);
    let text = json!({
        "trust_domain": args.trust_domain,
        "listen": listen,
        "admin_listen": admin,
        "data_dir": place.data,
        "store": format!("sqlite:{}", place.data.join(STORE).display()),
        "clusters": [{ "name": cluster::CLUSTER, "kubeconfig": args.kubeconfig }],
        "agents": { "accounts": [identity.account] },
        "entries": [user_entry(&node)],
    });
    citadel_ca_server::config::Config::from_yaml("citadel dev", &text.to_string())
        .map_err(|error| Failure::local(format!("the CA's configuration: {error}")))
}

/// The identity of whoever started us, for every process of that user.
fn user_entry(node: &str) -> Value {
    json!({
        "id": user_path(),
        "nodes": [node],
        "selectors": [format!("unix:uid:{}", nix::unistd::getuid())],
    })
}

fn agent_config(
    args: &DevArgs,
    place: &Place,
    ca: SocketAddr,
) -> citadel_node_agent::config::Config {
    let mut config = citadel_node_agent::config::Config {
        trust_domain: args.trust_domain.clone(),
        cluster: Some(cluster::CLUSTER.to_owned()),
        socket: place.agent_socket(),
        admin_socket: Some(place.agent_admin_socket()),
        admin_listen: args
            .agent_admin_listen
            .unwrap_or_else(|| args.loopback(AGENT_ADMIN_PORT)),
        ..Default::default()
    };
    config.ca.addresses = vec![ca.to_string()];
    // Whoever may connect as this user gets every key: that is for a user of the agent's own.
    config.handover.enabled = false;
    config.ca.bundle_file = Some(place.data.join(TRUST_BUNDLE));
    config
}

/// The agent's token from the local issuer: a fresh one for each use.
#[derive(Debug)]
struct LocalToken(Arc<DevCluster>);

impl TokenSource for LocalToken {
    fn token(&self) -> io::Result<Zeroizing<String>> {
        let token = self.0.agent_token(OffsetDateTime::now_utc());
        token
            .map(Zeroizing::new)
            .map_err(|failure| io::Error::other(failure.to_string()))
    }
}

impl AgentIdentity {
    /// From a token of a real API server: it names its node and account.
    fn from_file(path: &Path) -> Result<Self, Failure> {
        let source = citadel_node_agent::ca_client::FileToken(path.to_path_buf());
        let token = source
            .token()
            .map_err(|error| Failure::local(format!("can't read the agent's token: {error}")))?;
        let Some((node, account)) = node_and_account(&token) else {
            return Err(Failure::usage(format!(
                "{} holds no token of a pod on a node",
                path.display()
            ))
            .next(
                "Make one with `kubectl create token ACCOUNT --bound-object-kind Pod \
                 --bound-object-name POD --audience citadel`, for a pod that is scheduled.",
            ));
        };
        Ok(Self {
            token: Arc::new(source),
            node,
            account,
        })
    }
}

/// The node and `namespace/account` in a token. Nothing is verified: the CA does that.
fn node_and_account(token: &str) -> Option<(String, String)> {
    #[derive(Deserialize)]
    struct Claims {
        #[serde(rename = "kubernetes.io")]
        bound: Bound,
    }
    #[derive(Deserialize)]
    struct Bound {
        namespace: String,
        serviceaccount: Named,
        node: Named,
    }
    #[derive(Deserialize)]
    struct Named {
        name: String,
    }
    let payload = URL_SAFE_NO_PAD
        .decode(token.trim().split('.').nth(1)?)
        .ok()?;
    let bound = serde_json::from_slice::<Claims>(&payload).ok()?.bound;
    Some((
        bound.node.name,
        format!("{}/{}", bound.namespace, bound.serviceaccount.name),
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn a_token_names_its_node_and_account() {
        let cluster = DevCluster::new().unwrap();
        let token = cluster.agent_token(OffsetDateTime::now_utc()).unwrap();
        let (node, account) = node_and_account(&token).unwrap();
        assert_eq!(node, "localhost");
        assert_eq!(account, "citadel-system/citadel-agent");
        assert_eq!(node_and_account("a.b.c"), None);
        assert_eq!(node_and_account(""), None);
    }

    #[test]
    fn a_token_without_a_node_is_refused_with_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        std::fs::write(&path, "a.e30.c").unwrap();
        let refused = AgentIdentity::from_file(&path).err().unwrap().to_string();
        assert!(refused.contains("kubectl create token"), "{refused}");
    }
}
