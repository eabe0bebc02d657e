//! `citadel agent list`.

use citadel_ca_server::holders::counts;
use citadel_proto::v1::admin_service_client::AdminServiceClient;
use citadel_proto::v1::{Holder, ListHoldersRequest, ListHoldersResponse};
use serde_json::{Value, json};
use time::OffsetDateTime;
use tonic::Request;

use crate::exit::{Ended, Outcome};
use crate::log::{ServerArgs, refused};
use crate::output::{self, Format, Table, instant, span};

/// Bytes of an answer at most: 20,000 nodes with a few bundles each.
const MAX_ANSWER: usize = 64 << 20;

/// Lists the nodes whose agents report to a CA, and what their workloads have shown of the
/// trust bundle.
///
/// A holder counts as A once it acknowledged the CA's bundle of now over SDS, as B once it
/// renewed after it was sent it over the Workload API, and as behind otherwise.
// clap shows these comments as they are: no Markdown in them.
#[allow(clippy::doc_markdown)]
#[derive(Debug, clap::Args)]
pub(crate) struct ListArgs {
    /// A running CA: host:port of its gRPC, or unix:///path of its local administrators'
    /// socket.
    #[arg(long = "server", value_name = "ADDRESS")]
    server_address: String,

    #[command(flatten)]
    server: ServerArgs,
}

impl ListArgs {
    pub(crate) async fn run(self, format: Format) -> Result<Outcome, Ended> {
        let channel = self.server.channel(&self.server_address)?;
        let mut client = AdminServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER);
        let mut request = Request::new(ListHoldersRequest {});
        if let Some(authorization) = self.server.authorization()? {
            let metadata = request.metadata_mut();
            metadata.insert("authorization", authorization);
        }
        let answer = client.list_holders(request).await;
        let answer = answer.map_err(|status| refused(&status))?.into_inner();
        match format {
            Format::Json => output::json(&to_json(&answer))?,
            Format::Text => output::text(&to_text(&answer, OffsetDateTime::now_utc()))?,
        }
        Ok(Outcome::Done)
    }
}

fn to_text(answer: &ListHoldersResponse, now: OffsetDateTime) -> String {
    let header = [
        "NODE",
        "REPORTED",
        "FIRST TO EXPIRE BEHIND",
        "A",
        "B",
        "BEHIND",
    ];
    let mut table = Table::new(3, &header);
    for node in &answer.nodes {
        let report = node.report.clone().unwrap_or_default();
        let (grade_a, grade_b, behind) = counts(&report, &answer.bundle_sha256);
        let age = now.unix_timestamp().saturating_sub(node.received_ms / 1000);
        let first = report.earliest_behind.as_ref().map(|holder| {
            let until = OffsetDateTime::from_unix_timestamp(holder.not_after);
            let until = until.map_or_else(|_| holder.not_after.to_string(), instant);
            format!("{} at {until}", holder.spiffe_id)
        });
        let behind = if report.complete {
            behind.to_string()
        } else {
            format!("at least {behind}")
        };
        table.row(vec![
            format!("{}/{}", node.cluster, node.node),
            format!("{} ago", span(age.max(0))),
            first.unwrap_or_default(),
            grade_a.to_string(),
            grade_b.to_string(),
            behind,
        ]);
    }
    format!("bundle {}\n\n{}", answer.bundle_sha256, table.render())
}

fn to_json(answer: &ListHoldersResponse) -> Value {
    let holder = |holder: &Holder| {
        json!({
            "spiffe_id": holder.spiffe_id,
            "serial": holder.serial,
            "not_after": OffsetDateTime::from_unix_timestamp(holder.not_after).ok().map(instant),
            "pod_uid": holder.pod_uid,
            "bundle_sha256": holder.bundle_sha256,
        })
    };
    let nodes = answer.nodes.iter().map(|node| {
        let report = node.report.clone().unwrap_or_default();
        let (grade_a, grade_b, behind) = counts(&report, &answer.bundle_sha256);
        let bundles = report.bundles.iter().map(|of| {
            json!({
                "bundle_sha256": of.bundle_sha256,
                "grade_a": of.grade_a,
                "grade_b": of.grade_b,
            })
        });
        json!({
            "cluster": node.cluster,
            "node": node.node,
            "received": OffsetDateTime::from_unix_timestamp(node.received_ms / 1000).ok().map(instant),
            "agent_bundle_sha256": report.bundle_sha256,
            "current_a": grade_a,
            "current_b": grade_b,
            "behind": behind,
            "complete": report.complete,
            "bundles": bundles.collect::<Vec<_>>(),
            "earliest_behind": report.earliest_behind.as_ref().map(holder),
        })
    });
    json!({
        "bundle_sha256": answer.bundle_sha256,
        "nodes": nodes.collect::<Vec<_>>(),
    })
}
