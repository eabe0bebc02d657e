//! Two Envoys as two pods of one node.

use std::net::SocketAddr;
use std::time::Duration;

use citadel_tests::cgroup::{Cgroup, Version};
use citadel_tests::deploy::{self, Mtls};
use citadel_tests::dir::TestDir;
use citadel_tests::envoy::Envoy;
use citadel_tests::{http, ports, wait};

use crate::node::{Node, NodePod};

/// Whose pods the two are.
pub(crate) const ACCOUNTS: [&str; 2] = ["server", "client"];

/// CA, agent, and the two Envoys.
pub(crate) struct Mesh {
    pub(crate) pair: Pair,
    pub(crate) server_id: String,
    pub(crate) client_id: String,
    pub(crate) node: Node,
    // After what runs in them.
    server_cgroup: Cgroup,
    client_cgroup: Cgroup,
}

/// A server and a client that reaches it.
pub(crate) struct Pair {
    pub(crate) client: Envoy,
    pub(crate) server: Envoy,
    /// Where the client takes plain HTTP.
    pub(crate) plain: SocketAddr,
    /// Where the server takes mTLS.
    pub(crate) mtls: SocketAddr,
}

impl Mesh {
    /// With certificates of this lifetime, on a node of this name.
    pub(crate) async fn start(name: &str, ttl: &str) -> Self {
        Self::with(name, ttl, str::to_owned).await
    }

    /// The same with other files for the Envoys.
    pub(crate) async fn with(name: &str, ttl: &str, change: fn(&str) -> String) -> Self {
        let pods = NodePod::create(name, &ACCOUNTS).await;
        let node = Node::start(name, ttl).await;
        Self::of(node, &pods, change).await
    }

    /// On a node with pods of [`ACCOUNTS`].
    pub(crate) async fn of(node: Node, pods: &[NodePod], change: fn(&str) -> String) -> Self {
        let (server_id, client_id) = (pods[0].spiffe_id(), pods[1].spiffe_id());
        let server_cgroup = pods[0].cgroup(Version::V1);
        let client_cgroup = pods[1].cgroup(Version::V1);
        let cgroups = (&server_cgroup, &client_cgroup);
        let ids = (server_id.as_str(), client_id.as_str());
        let pair = Pair::start("envoy", &node, cgroups, ids, change).await;
        Self {
            pair,
            server_id,
            client_id,
            node,
            server_cgroup,
            client_cgroup,
        }
    }

    /// Another pair of Envoys in the same pods, which expect these IDs.
    pub(crate) async fn envoys(&self, name: &str, server_id: &str, client_id: &str) -> Pair {
        let cgroups = (&self.server_cgroup, &self.client_cgroup);
        let ids = (server_id, client_id);
        Pair::start(name, &self.node, cgroups, ids, str::to_owned).await
    }

    /// Waits for an answer through both.
    pub(crate) async fn first_answer(&self, deadline: Duration) {
        wait::until("an answer through both Envoys", deadline, async || {
            self.pair.ask().await.ok()
        })
        .await;
    }

    /// Panics if an Envoy refused a secret.
    pub(crate) fn refused_nothing(&self) {
        let log = self.node.agent.log();
        let refused: Vec<_> = log
            .lines()
            .filter(|line| line.contains("a proxy refused its secrets"))
            .collect();
        assert!(refused.is_empty(), "{refused:#?}");
    }
}

impl Pair {
    async fn start(
        name: &str,
        node: &Node,
        (server_cgroup, client_cgroup): (&Cgroup, &Cgroup),
        (server_id, client_id): (&str, &str),
        change: fn(&str) -> String,
    ) -> Self {
        let dir = TestDir::new(name);
        let (plain, mtls) = (ports::address(), ports::address());
        let socket = node.agent.socket();
        let of_server = Mtls {
            socket: &socket,
            admin: ports::address(),
            server: mtls,
            expected: client_id,
        };
        let of_client = Mtls {
            admin: ports::address(),
            expected: server_id,
            ..of_server.clone()
        };
        let (server_file, client_file) = (
            change(&deploy::envoy_server(&of_server)),
            change(&deploy::envoy_client(&of_client, plain)),
        );
        let (in_server, in_client) = (server_cgroup.wrapper(), client_cgroup.wrapper());
        let (server, client) = tokio::join!(
            Envoy::start_wrapped("server", &dir, &server_file, of_server.admin, &in_server),
            Envoy::start_wrapped("client", &dir, &client_file, of_client.admin, &in_client),
        );
        Self {
            client,
            server,
            plain,
            mtls,
        }
    }

    /// One request over new connections; the answer, or what came instead.
    pub(crate) async fn ask(&self) -> Result<http::Answer, String> {
        ask(self.plain).await
    }

    /// Waits until `envoy` counts a refusal (`PORT` stands for the server's), and
    /// panics if a request ever gets through.
    pub(crate) async fn refuses(&self, envoy: &Envoy, stat: &str, deadline: Duration) {
        let stat = stat.replace("PORT", &self.mtls.port().to_string());
        wait::until(&stat, deadline, async || {
            let answer = self.ask().await;
            assert!(answer.is_err(), "{answer:?}");
            (envoy.stat(&stat).await > 0).then_some(())
        })
        .await;
    }
}

pub(crate) async fn ask(plain: SocketAddr) -> Result<http::Answer, String> {
    match http::get(plain, "/").await {
        Some(answer) if answer.status == 200 => Ok(answer),
        Some(other) => Err(format!("{other:?}")),
        None => Err("no answer".into()),
    }
}
