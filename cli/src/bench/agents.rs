//! Agents of the population's nodes, each attested by the server under test.

use std::sync::Arc;

use citadel_identity::TrustDomain;
use citadel_identity::bundle::BundleSet;
use citadel_identity::key::WorkloadKey;
use time::OffsetDateTime;

use super::args::IssueArgs;
use super::load::Lane;
use super::material::{self, PodRef};
use super::population::Population;
use super::rsa_key::RsaKey;
use super::target;
use super::wire::Line;
use crate::exit::Failure;
use crate::trust::{self, ClientIdentity};

/// What agents are made of.
pub(crate) struct Agents<'a> {
    pub(crate) population: &'a Population,
    pub(crate) key: &'a RsaKey,
    pub(crate) csrs: &'a [Vec<u8>],
}

impl Agents<'_> {
    /// One agent for each connection, each of a node of its own.
    pub(crate) async fn lanes(
        &self,
        args: &IssueArgs,
        address: &str,
        trust_domain: &TrustDomain,
        bundles: &BundleSet,
    ) -> Result<Vec<Lane>, Failure> {
        let nodes = self.population.nodes.len();
        let agents = (args.connections as usize).min(nodes);
        let mut lanes = Vec::with_capacity(agents);
        for agent in 0..agents {
            let node = agent * nodes / agents;
            let identity = self.attest(node, address, trust_domain, bundles).await?;
            let tls = trust::client_config(trust_domain, bundles, Some(identity))?;
            lanes.push(Lane {
                line: Line::new(address, tls),
                calls: material::batch_calls(&self.pods(node), self.csrs, args.batch as usize),
                next: Arc::default(),
            });
        }
        Ok(lanes)
    }

    /// The SVID of a node's agent.
    pub(crate) async fn attest(
        &self,
        node: usize,
        address: &str,
        trust_domain: &TrustDomain,
        bundles: &BundleSet,
    ) -> Result<ClientIdentity, Failure> {
        let now = OffsetDateTime::now_utc().unix_timestamp();
        let token = self
            .key
            .token(&self.population.claims(self.population.agent(node), now))?;
        let own_key = WorkloadKey::generate()
            .map_err(|error| Failure::local(format!("can't make a key: {error}")))?;
        let plain = Line::new(address, trust::client_config(trust_domain, bundles, None)?);
        target::attest(&plain, &token, own_key).await
    }

    /// The pods of a node.
    pub(crate) fn pods(&self, node: usize) -> Vec<PodRef> {
        let on_node = self.population.on_node(node).iter();
        on_node
            .map(|pod| {
                let account = &self.population.accounts[pod.account];
                PodRef {
                    uid: pod.uid.clone(),
                    namespace: account.namespace.clone(),
                    account: account.name.clone(),
                    node: self.population.nodes[node].name.clone(),
                }
            })
            .collect()
    }
}
