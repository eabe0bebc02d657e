//! What the agent outlives: its CA, the API server, its own end, its own certificate, its
//! clock, and its clients. Two real Envoys and clients of the Workload API go on all the
//! while, and nothing of theirs fails as long as certificates last.

mod above;
mod clients;
mod handover;
mod life;
mod root;
mod supervisor;
mod upgrade;
mod workloads;

use std::time::Duration;

use citadel_tests::citadel::{Agent, AgentBuilder, CaBuilder};
use citadel_tests::kubernetes::ApiServer;
use citadel_tests::{http, wait};

use crate::envoy::mesh::{ACCOUNTS, Mesh};
use crate::envoy::traffic::{Seen, Traffic};
use crate::node::{Node, NodePod, user_entry};
use crate::support::series;
use workloads::{Fetches, Follower};

/// From the start to the first answer.
const FIRST: Duration = Duration::from_secs(30);

/// What a renewal takes at most, with certificates of [`TTL`].
const RENEWAL: Duration = Duration::from_secs(20);

/// The lifetime of certificates, where a test says no other.
const TTL: Duration = Duration::from_secs(18);

/// The agent's metrics, if it answers in time.
async fn try_metrics(agent: &Agent) -> Option<String> {
    Some(http::get(agent.admin(), "/metrics").await?.body)
}

/// A node with everything that goes on.
pub(crate) struct Scene {
    pub(crate) mesh: Mesh,
    traffic: Traffic,
    follower: Follower,
    fetches: Fetches,
}

impl Scene {
    /// On a node of this name, with certificates of this lifetime.
    async fn start(
        name: &str,
        ttl: Duration,
        ca: impl FnOnce(CaBuilder) -> CaBuilder,
        agent: impl FnOnce(AgentBuilder) -> AgentBuilder,
    ) -> Self {
        Self::on(ApiServer::shared().await, name, ttl, ca, agent).await
    }

    /// The same on another API server.
    async fn on(
        api: &ApiServer,
        name: &str,
        ttl: Duration,
        ca: impl FnOnce(CaBuilder) -> CaBuilder,
        agent: impl FnOnce(AgentBuilder) -> AgentBuilder,
    ) -> Self {
        let pods = NodePod::create_on(api, name, &ACCOUNTS).await;
        // This very process, for the clients of the Workload API.
        let entry = user_entry("/unix/root", name, 0);
        let node = Node::on(
            api,
            name,
            |builder| ca(builder.set("entries", vec![entry])),
            |builder| agent(builder.set("svid_ttl", format!("{}s", ttl.as_secs()))),
        )
        .await;
        let mesh = Mesh::of(node, &pods, str::to_owned).await;
        mesh.first_answer(FIRST).await;
        let socket = mesh.node.agent.socket();
        Self {
            traffic: Traffic::start(&mesh),
            follower: Follower::start(&socket).await,
            fetches: Fetches::start(&socket),
            mesh,
        }
    }

    /// Waits until the clients of the Workload API have another certificate than they had; that
    /// the Envoys have is seen at the end, in what failed.
    async fn renewed(&self) {
        self.renewed_within(RENEWAL).await;
    }

    async fn renewed_within(&self, deadline: Duration) {
        self.follower.renewed(deadline).await;
    }

    /// Waits until the agent holds nothing from before `since`, in seconds since the epoch:
    /// every certificate lasts a whole [`TTL`] from then on.
    async fn all_renewed_since(&self, since: f64) {
        let lasts = since + TTL.as_secs_f64();
        wait::until("everything is renewed", RENEWAL, async || {
            let metrics = try_metrics(&self.mesh.node.agent).await?;
            let next = series(&metrics, "citadel_agent_next_expiry_timestamp_seconds")?;
            (next >= lasts).then_some(())
        })
        .await;
    }

    /// Ends it. Panics if anything failed.
    async fn stop(self) -> Seen {
        let seen = self.traffic.stop().await;
        seen.none_failed();
        assert!(seen.answers > 10, "only {} connections", seen.answers);
        self.mesh.refused_nothing();
        self.follower.stop().await;
        self.fetches.stop().await.none_failed();
        seen
    }
}
