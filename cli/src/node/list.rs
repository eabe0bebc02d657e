//! `citadel node list`, `evict` and `admit`.

use citadel_proto::v1::{AdmitNodeRequest, EvictNodeRequest, ListNodesRequest, NodeRecord};
use serde_json::{Value, json};

use super::admin::{CaArgs, unchanged};
use super::token::at;
use crate::exit::{Ended, Outcome};
use crate::log::refused;
use crate::output::{self, Format, Table};

/// Lists the nodes outside Kubernetes that joined or were evicted.
#[derive(Debug, clap::Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    ca: CaArgs,
}

/// Ends a node outside Kubernetes: its agent is refused from now on, its join tokens are
/// revoked, and it is not let in again until it is admitted.
///
/// Certificates that its workloads hold end with their lifetime. A node that never joined can be
/// evicted too.
#[derive(Debug, clap::Args)]
pub(crate) struct EvictArgs {
    /// Name of the node.
    #[arg(value_name = "NAME")]
    node: String,

    #[command(flatten)]
    ca: CaArgs,
}

/// Takes an eviction back: the node may join anew.
#[derive(Debug, clap::Args)]
pub(crate) struct AdmitArgs {
    /// Name of the node.
    #[arg(value_name = "NAME")]
    node: String,

    #[command(flatten)]
    ca: CaArgs,
}

impl ListArgs {
    pub(crate) async fn run(self, format: Format) -> Result<Outcome, Ended> {
        let request = self.ca.request(ListNodesRequest {})?;
        let answer = self.ca.client()?.list_nodes(request).await;
        let nodes = answer
            .map_err(|status| refused(&status))?
            .into_inner()
            .nodes;
        match format {
            Format::Json => {
                output::json(&nodes.iter().map(to_json).collect::<Vec<_>>())?;
            }
            Format::Text => {
                let header = ["NODE", "STATE", "BY", "JOINED", "EVICTED"];
                let mut table = Table::new(header.len(), &header);
                for node in &nodes {
                    table.row(vec![
                        node.node.clone(),
                        state(node).to_owned(),
                        node.method.clone(),
                        at(node.attested_ms).unwrap_or_default(),
                        at(node.evicted_ms).unwrap_or_default(),
                    ]);
                }
                output::text(&table.render())?;
            }
        }
        Ok(Outcome::Done)
    }
}

impl EvictArgs {
    pub(crate) async fn run(self) -> Result<Outcome, Ended> {
        let request = self.ca.request(EvictNodeRequest {
            node: self.node.clone(),
        })?;
        let answer = self.ca.client()?.evict_node(request).await;
        answer.map_err(|status| unchanged(&status))?;
        Ok(Outcome::Done)
    }
}

impl AdmitArgs {
    pub(crate) async fn run(self) -> Result<Outcome, Ended> {
        let request = self.ca.request(AdmitNodeRequest {
            node: self.node.clone(),
        })?;
        let answer = self.ca.client()?.admit_node(request).await;
        answer.map_err(|status| unchanged(&status))?;
        Ok(Outcome::Done)
    }
}

fn state(node: &NodeRecord) -> &'static str {
    if node.evicted_ms > 0 {
        "evicted"
    } else {
        "joined"
    }
}

fn to_json(node: &NodeRecord) -> Value {
    json!({
        "node": node.node,
        "state": state(node),
        "uid": node.uid,
        "method": node.method,
        "joined": at(node.attested_ms),
        "evicted": at(node.evicted_ms),
    })
}
